"""Turn a request into results: expand, resolve, validate, run."""
