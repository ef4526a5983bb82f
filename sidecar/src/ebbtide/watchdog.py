"""The last resort: a process that is drained and does not end is ended."""

from __future__ import annotations

import logging
import os
import sys
import threading

logger = logging.getLogger("ebbtide")

LEAD_S = 1.0
"""Seconds before the kubelet's SIGKILL: logs that are flushed are worth more than a second of waiting."""
FLUSH_S = 0.5


def end_process_after(seconds: float) -> None:
    """End the process by force in so many seconds, unless it ended until then."""
    timer = threading.Timer(seconds, _end, args=(seconds,))
    timer.name = "ebbtide-watchdog"
    timer.daemon = True
    timer.start()


def _end(seconds: float) -> None:
    # In a thread: a handler's lock may be held by the very thread that hangs.
    last_words = threading.Thread(target=_flush, args=(seconds,), daemon=True)
    last_words.start()
    last_words.join(FLUSH_S)
    os._exit(1)


def _flush(seconds: float) -> None:
    logger.critical("ebbtide: still here %.1f s after the drain ended; ending the process", seconds)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
