"""What is measured: each module is one case, and gives it as `CASE`."""
