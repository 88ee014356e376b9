"""Timings of this package against what a user would write without it."""
