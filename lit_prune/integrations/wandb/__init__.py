"""Weights & Biases: runs, dashboards, reports."""
