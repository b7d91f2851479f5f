"""Which units matter: one streaming pass of the teacher over calibration data, many criteria."""
