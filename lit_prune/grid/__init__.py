"""Compute a table with several workers: one driver, and executors that run its tasks on a machine or a cluster."""
