"""From the start of a process to its end: the state machine, what carries it out, and what it leaves on record."""
