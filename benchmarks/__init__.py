"""Benchmarks: ratios of costs, measured side by side on this machine. They assert nothing."""
