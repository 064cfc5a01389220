"""Measurements, run by hand (`make bench`); they print what they measured and how."""
