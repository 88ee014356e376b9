"""Web pages: the demo and the user study."""
