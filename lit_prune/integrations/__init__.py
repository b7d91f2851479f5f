"""Services outside this package."""
