"""The rules of Ebbtide: pure functions from what is seen to what is to be done. No clock, no I/O, no framework."""
