"""Importance of units: passes over calibration data that collect statistics, and criteria that score from them."""
