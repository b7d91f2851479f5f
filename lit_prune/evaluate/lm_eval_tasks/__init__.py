"""Definitions of tasks that lm-eval has not."""
