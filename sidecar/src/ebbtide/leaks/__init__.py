"""What looks like a leak: single units of work that nobody ends, and their number over time."""
