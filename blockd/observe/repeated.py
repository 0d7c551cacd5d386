"""Failures that repeat: the first is logged, the others are counted and reported at growing intervals."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("blockd")

#: Seconds until the first report of a failure that goes on, and the most between two.
FIRST_SECONDS, LONGEST_SECONDS = 60.0, 3_600.0
#: Texts that are told apart: one with something random in it must not be a new failure each time.
TEXTS = 8


@dataclass
class _Told:
    next_at: float
    interval: float = FIRST_SECONDS
    count: int = 0


class RepeatedFailure:
    """One thing that is tried again and again, and fails."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._told: dict[str, _Told] = {}

    @property
    def is_failing(self) -> bool:
        """Whether it failed since it last worked."""
        return bool(self._told)

    def failed(self, text: str, level: int = logging.ERROR) -> None:
        """Log a failure, or count it where it was logged a short time ago."""
        now = self._clock()
        told = self._told.get(text)
        if told is None and len(self._told) < TEXTS:
            self._told[text] = _Told(now + FIRST_SECONDS)
            log.log(level, "%s", text)
            return
        # One text too many counts with the first.
        told = told or next(iter(self._told.values()))
        told.count += 1
        if now >= told.next_at:
            log.log(level, "%s; %d more times", text, told.count)
            told.interval = min(2 * told.interval, LONGEST_SECONDS)
            told.next_at, told.count = now + told.interval, 0

    def worked(self, text: str) -> None:
        """Log that it works again, if it failed before."""
        if self._told:
            self._told.clear()
            log.info("%s", text)
