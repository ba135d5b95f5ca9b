"""How many processors this process may use, on every supported system and Python.

Dividing the work among them is left to the callers.
"""

import os
import sys


def usable_processors() -> int:
    """Return how many processors this process may use, at least one: its affinity where the system has one."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
