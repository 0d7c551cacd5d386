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
    last_at: float
    interval: float = FIRST_SECONDS
    count: int = 0


class RepeatedFailure:
    """One thing that is tried again and again, and fails: for good, now and then, or each time in other words."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        #: Text -> when it was logged, since the thing last worked for a while.
        self._told: dict[str, _Told] = {}
        self._is_failing = self._is_reported = False
        self._worked_at = 0.0

    def failed(self, text: str, level: int = logging.ERROR) -> None:
        """Log a failure, or count it where it was logged a short time ago."""
        now = self._clock()
        if not self._is_failing and now - self._worked_at > FIRST_SECONDS:
            self._told.clear()
        self._is_failing = True
        self._told = {one: told for one, told in self._told.items() if now - told.last_at < LONGEST_SECONDS}
        told = self._told.get(text)
        if told is None and len(self._told) < TEXTS:
            self._told[text] = _Told(now + FIRST_SECONDS, now)
            log.log(level, "%s", text)
            self._is_reported = True
            return
        # One text too many counts with the first.
        told = told or next(iter(self._told.values()))
        told.count, told.last_at = told.count + 1, now
        if now >= told.next_at:
            log.log(level, "%s; %d more times", text, told.count)
            self._is_reported = True
            told.interval = min(2 * told.interval, LONGEST_SECONDS)
            told.next_at, told.count = now + told.interval, 0

    def worked(self, text: str) -> None:
        """Log that it works again, if the log says that it does not."""
        if not self._is_failing:
            return
        self._is_failing, self._worked_at = False, self._clock()
        if self._is_reported:
            self._is_reported = False
            log.info("%s", text)
