"""Pages that are dear to make: made in a thread of their own, and shared by all who ask within a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

#: Seconds of work after which a rendering pauses, and how long: the reactor needs the interpreter's lock after every
#: system call, and would wait for it each time.
WORK_SECONDS, PAUSE_SECONDS = 0.0005, 0.0005
#: Items between two looks at the clock.
PACE_ITEMS = 32

T = TypeVar("T")
Page = TypeVar("Page")


def paced(items: Iterable[T]) -> Iterator[T]:
    """Give the items, on a thread beside the reactor's with pauses in which other threads run."""
    if threading.current_thread() is threading.main_thread():
        yield from items
        return
    until = time.perf_counter() + WORK_SECONDS
    for count, item in enumerate(items):
        yield item
        if count % PACE_ITEMS == 0 and time.perf_counter() >= until:
            time.sleep(PAUSE_SECONDS)
            until = time.perf_counter() + WORK_SECONDS


class SharedPage(Generic[Page]):
    """One page: ``gather`` runs on the reactor and gives what ``render`` writes in a thread."""

    def __init__(
        self, reactor: Any, max_age: Callable[[], float], gather: Callable[[], T], render: Callable[[T], Page]
    ) -> None:
        """``max_age()`` gives the seconds for which a page is shared."""
        self._reactor, self._max_age, self._gather, self._render = reactor, max_age, gather, render
        #: How often it was made.
        self.rendered = 0
        self._page: Page | None = None
        self._began = 0.0
        self._waiting: list[Deferred[Page]] = []

    def get(self) -> Deferred[Page]:
        """Give the page: the last one while it is new enough, else the next."""
        is_new = self._reactor.seconds() - self._began < self._max_age()
        if self._page is not None and is_new and not self._waiting:
            return succeed(self._page)
        got: Deferred[Page] = Deferred()
        self._waiting.append(got)
        if len(self._waiting) == 1:
            self._start()
        return got

    def _start(self) -> None:
        began = self._reactor.seconds()
        try:
            gathered = self._gather()
        except Exception:  # noqa: BLE001  whoever waits is told, and the next request tries again
            self._finish(began, Failure())
            return

        def make() -> None:
            made: Page | Failure
            try:
                made = self._render(gathered)
            except Exception:  # noqa: BLE001  likewise
                made = Failure()
            self._reactor.callFromThread(self._finish, began, made)

        # A thread of its own: those of the reactor's pool may all wait for a file server that hangs.
        threading.Thread(target=make, name="page", daemon=True).start()

    def _finish(self, began: float, made: Page | Failure) -> None:
        waiting, self._waiting = self._waiting, []
        if not isinstance(made, Failure):
            self.rendered += 1
            self._page, self._began = made, began
        for one in waiting:
            if isinstance(made, Failure):
                one.errback(made)
            else:
                one.callback(made)
