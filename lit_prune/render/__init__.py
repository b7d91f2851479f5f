"""Render reports in a terminal and as files. Computes no statistics (`lit_prune.report` does). No torch."""
