"""How fast the system is, each time against the code that a user would write without it."""
