"""Evaluate models: validation losses, losses of texts, lm-eval tasks, throughput and memory."""
