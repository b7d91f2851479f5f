"""Ablations of LLM pruning and distillation, with the papers' tables beside your own."""

__version__ = "0.2.0"
