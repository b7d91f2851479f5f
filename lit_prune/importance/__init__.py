"""Which units matter: passes of the teacher over calibration data, and many criteria that read what they found."""
