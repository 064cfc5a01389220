"""Measurements, run by hand (`make bench-quick`); they print what they measured and how."""
