"""Timings of this package against the code that a user would write without it."""
