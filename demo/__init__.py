"""The demo: three ways to end a pod, side by side, under load, on a real cluster. `python -m demo`."""
