"""Several processes, one pod: prefork workers find each other, one of them speaks for all, and another takes over.

`snapshot.py` and `group.py` are pure: how workers add up, and who belongs. `place.py` and `channel.py` are the local
socket. `hub.py` is the end of the worker that leads, `link.py` that of the others, and `pod.py` puts them together.
"""
