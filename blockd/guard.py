"""Runs pieces of work so that the failure of one costs none of the others."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

log = logging.getLogger("blockd")

#: Seconds between two log lines about failures of one kind of work.
LOG_INTERVAL_SECONDS = 60.0

T = TypeVar("T")


class Guard:
    """Catches whatever a piece of work raises, counts it by kind, and logs the first of each kind and minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock()`` gives seconds."""
        self._clock = clock
        #: Failures by kind of work. Kinds are words of the code, never of a packet.
        self.failures: Counter[str] = Counter()
        #: Kind -> when it was logged last, and how many there were then.
        self._logged: dict[str, tuple[float, int]] = {}

    def know(self, *kinds: str) -> None:
        """Count these from zero on: a counter that appears with its first failure shows no increase."""
        self.failures.update(dict.fromkeys(kinds, 0))

    def run(self, work: str, call: Callable[..., Any], *arguments: Any) -> bool:
        """Call it; False when it raised."""
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001  the caller serves others, who must not pay for it
            self.failed(work, error)
            return False
        return True

    def each(self, work: str, call: Callable[[T], Any], items: Iterable[T]) -> None:
        """Call it for every item, whatever becomes of the others."""
        for item in items:
            self.run(work, call, item)

    def failed(self, work: str, error: BaseException) -> None:
        """Count a failure. The log has the traceback of the first, then at most one line a minute with a count."""
        self.failures[work] += 1
        now, count = self._clock(), self.failures[work]
        last, known = self._logged.get(work, (None, 0))
        if last is not None and now - last < LOG_INTERVAL_SECONDS:
            return
        self._logged[work] = (now, count)
        text = f"internal error in {work}: {type(error).__name__}: {error}"
        if last is None:
            log.error("%s", text, exc_info=error)
        else:
            log.error("%s; %d such errors since the last line, %d in all", text, count - known, count)
