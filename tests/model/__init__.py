"""A model of the state machine and of its counters, and what compares it with the real statements."""
