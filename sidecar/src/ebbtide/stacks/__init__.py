"""Where work is, and where it came from: read off frames, from any thread, without stopping it."""
