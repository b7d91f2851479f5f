"""Pruning: from importance scores and a target size to a plan, and from a plan to a smaller Hugging Face model."""
