"""The tables, one per module. Importing one imports neither torch nor another table."""
