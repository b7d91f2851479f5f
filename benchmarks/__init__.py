"""Ratios of costs, measured side by side on the machine at hand; nothing is asserted."""
