"""Scores and a budget -> a plan -> a smaller Hugging Face model."""
