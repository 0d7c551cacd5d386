"""An event loop that does little in one turn, so that timers and other clients have theirs in between."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.main import installReactor

#: Descriptors that one turn serves; a request for the block page costs 0.3 ms, and no turn may take 20 ms. What else is
#: ready comes in the next turns, in the kernel's order: each descriptor once before any comes again (epoll(7)).
EVENTS_AT_ONCE = 32


class _FewEvents:
    """An epoll object that reports few events at once."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = self._epoll.poll(timeout, EVENTS_AT_ONCE)
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


class ShortTurns(selectors.EpollSelector):
    """Finds ready descriptors, a few in one turn: asyncio would serve a thousand before the next timer."""

    _selector: Any

    def __init__(self) -> None:
        """Watch nothing yet."""
        super().__init__()
        self._selector = _FewEvents(self._selector)


class PunctualReactor(AsyncioSelectorReactor):
    """Runs timers while requests come: Twisted's puts them off to the next turn each time a timer is set to be sooner.

    An answered request does that, for its last seconds: clients that kept one coming in each turn stopped every timer.
    """

    _scheduledAt: Any
    _asyncioEventloop: asyncio.AbstractEventLoop

    def _reschedule(self) -> None:
        timeout = self.timeout()
        if timeout is None:
            return
        if self._scheduledAt is None or self._asyncioEventloop.time() + timeout < self._scheduledAt:
            super()._reschedule()  # type: ignore[no-untyped-call]


def install_reactor() -> asyncio.AbstractEventLoop:
    """Install Twisted's reactor on an event loop of short turns, and give the loop.

    It is asyncio's own: uvloop does not report most resets to Twisted's reactor.
    """
    loop = asyncio.SelectorEventLoop(ShortTurns())
    loop.set_debug(False)
    asyncio.set_event_loop(loop)
    installReactor(PunctualReactor(loop))  # type: ignore[no-untyped-call]
    return loop
