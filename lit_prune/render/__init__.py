"""A report as people read it: in a terminal, and as files. Computes no statistics (report.py does). No torch."""
