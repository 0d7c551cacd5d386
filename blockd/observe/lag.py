"""How late the reactor is: the time that a packet, a command or a timer of Python's may have to wait."""

from __future__ import annotations

import bisect
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger("blockd")

#: Upper bounds, seconds.
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
#: Seconds between two ticks.
TICK_SECONDS = 0.02
#: Ticks that one stall counts for at most: a minute.
MAX_MISSED = 3_000
#: Seconds without a tick after which the log says where the reactor is, and between two looks at that.
STALL_SECONDS, WATCH_SECONDS = 1.0, 0.25


class ReactorLag:
    """A histogram of how late a timer of the reactor runs.

    A stall counts once for every tick that it kept from running: otherwise a second without the reactor would weigh as
    much as a tick that was a millisecond late.
    """

    def __init__(self, reactor: Any) -> None:
        """``reactor`` is measured from `start` on."""
        self._reactor = reactor
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self._due = 0.0
        self._is_over = threading.Event()
        self._ticked = time.monotonic()

    def start(self) -> None:
        """Tick from now on, and have a thread watch over it, which also runs while the reactor does not."""
        self._due, self._ticked = self._reactor.seconds() + TICK_SECONDS, time.monotonic()
        self._reactor.callLater(TICK_SECONDS, self._tick)
        threading.Thread(target=self._watch, args=(threading.get_ident(),), name="lag", daemon=True).start()

    def stop(self) -> None:
        """Watch no more: the reactor ends."""
        self._is_over.set()

    def _tick(self) -> None:
        now = self._reactor.seconds()
        self._ticked = time.monotonic()
        late = max(0.0, now - self._due)
        for missed in missed_ticks(late):
            self.counts[bisect.bisect_left(BOUNDS, missed)] += 1
            self.total += missed
        # Small delays do not add up, and the ticks that a long one kept from running are counted already.
        self._due += TICK_SECONDS
        if self._due <= now:
            self._due = now + TICK_SECONDS
        self._reactor.callLater(self._due - now, self._tick)

    def _watch(self, thread: int) -> None:
        is_said = False
        while not self._is_over.wait(WATCH_SECONDS):
            stalled = time.monotonic() - self._ticked
            if stalled < STALL_SECONDS:
                is_said = False
            elif not is_said:
                is_said = True
                log.warning("the event loop does not run since %.1f s: %s", stalled, where(thread))


def missed_ticks(late: float) -> Iterator[float]:
    """Give how late each tick was that ought to have run until now, the oldest first."""
    for missed in range(min(int(late / TICK_SECONDS + 1e-9), MAX_MISSED) + 1):
        yield late - missed * TICK_SECONDS


def where(thread: int, frames: Callable[[], dict[int, Any]] = sys._current_frames) -> str:
    """Say what a thread is at: its innermost calls, the last one first."""
    found: list[str] = []
    frame = frames().get(thread)
    while frame is not None and len(found) < 4:
        found.append(f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})")
        frame = frame.f_back
    return ", in ".join(found) or "unknown"
