"""The reading of the answers: figures from what the store holds. Nothing imports this, and it imports no torch."""

from pathlib import Path

RECORDS = Path(__file__).parents[1] / "experiments"
"""Folder of the records of finished tables."""
