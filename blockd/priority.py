"""Who waits when the processor is short: Python, TCP among it, gives way to the serve threads, a compile to both."""

from __future__ import annotations

import contextlib
import os

#: Of the threads beside the serve threads: of a core that both want they get a quarter.
PYTHON = 5
#: Of a compile: a tenth. Not SCHED_IDLE, which a core that is busy with answers would starve, and a ban would be late.
COMPILE = 10


def give_way(task: int, niceness: int) -> None:
    """Let a process, or a thread of ours (0: this one), run at this niceness. It stays as it is when it may not.

    A thread that is started later has the niceness of the one that starts it, on Linux.
    """
    # A sandbox may forbid it, and a process may be gone: then latency suffers, and nothing else.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, task, max(niceness, os.getpriority(os.PRIO_PROCESS, task)))
