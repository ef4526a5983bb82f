"""Work in flight: scopes, what they start, and the limits and ends of it."""
