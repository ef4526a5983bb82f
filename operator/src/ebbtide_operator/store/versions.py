"""Which versions of etcd are known to be bad. Pure."""

from __future__ import annotations

import re

LEAST = {(3, 5): 30, (3, 6): 11}
"""The first patch release of each line with the fixes of CVE-2026-33413, of CVE-2026-33343 and of what was found after
them: before, a user with rights on one prefix reads and changes what is another's."""
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(-)?.*", re.DOTALL)


def fault_of(version: str) -> str:
    """Say what is wrong with a version; empty: nothing that is known, or it is no version that could be judged."""
    parts = _VERSION.fullmatch(version)
    if parts is None:
        return ""
    line, patch = (int(parts[1]), int(parts[2])), int(parts[3])
    oldest = min(LEAST)
    if line < oldest:
        return f"older than {oldest[0]}.{oldest[1]}, which is neither fixed nor tried here"
    least = LEAST.get(line, 0)
    # What is released before a release may lack what that brings.
    if (patch, parts[4] is None) < (least, True) and line in LEAST:
        return f"one user can read and change what is another's: at least {line[0]}.{line[1]}.{least}"
    return ""
