"""Definitions of tasks that lm-eval lacks."""
