"""The number of processors that this process may use, on every supported system and Python version.

Dividing the work among them is left to the callers.
"""

import os
import sys


def usable_processors() -> int:
    """Return the number of processors that this process may use, by its CPU affinity where the system has one."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
