"""What the voting app and the demo page share: limits, security headers, pages, one heavy computation at a time."""
