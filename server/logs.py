"""Logging of every process of ours: one line an event on stderr, with the role in front."""

from __future__ import annotations

import logging
import sys
import time


def setup(role: str) -> logging.Logger:
    """Send this process's log to stderr with `role` in front and return the logger `headrace`.

    Times are UTC. A process writes its own prefix: were the supervisor to add it, the children
    would lose their stderr with it, and they go on when it is killed (CONTRACTS §2).
    """
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ {role} %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # A log line that cannot be written (a closed terminal) must not end in a traceback on the same
    # stderr.
    logging.raiseExceptions = False
    return logging.getLogger("headrace")
