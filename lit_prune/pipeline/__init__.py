"""From a request to results: expand, resolve, validate, run."""
