"""Zart as its users meet it: real processes, real signals."""
