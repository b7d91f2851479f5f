"""The stages of a cell, one a file."""
