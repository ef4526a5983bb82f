"""What a process says of itself: the HTTP server for probes and people, dumps, metrics."""
