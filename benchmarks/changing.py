"""blockd with devices that come and go: the daemon as it is, and beside it a thousand changes a second."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from blockd.daemon import Daemon
from blockd.observe import log_format
from blockd.supervisor import Supervisor

#: Changes each time, and seconds between: a thousand a second, as they would come from leases and neighbour tables.
CHANGES, INTERVAL = 20, 0.02


class ChangingDaemon(Daemon):
    """Gives one address after another a view of its own, and takes back what it gave half a round before."""

    _next = 0
    _due = 0.0

    def _serve(self, reactor: Any, loop: asyncio.AbstractEventLoop) -> None:
        # Serving returns when the daemon ends: the first change waits until it has begun.
        self._due = loop.time() + 1
        loop.call_at(self._due, self._change, loop)
        super()._serve(reactor, loop)

    def _change(self, loop: asyncio.AbstractEventLoop) -> None:
        half = 1 << 15
        changes: list[tuple[str, int | None]] = []
        for at in range(self._next, self._next + CHANGES // 2):
            changes.append((f"127.1.{at >> 8 & 127}.{at & 255}", 0))
            changes.append((f"127.1.{at + half // 2 >> 8 & 127}.{at & 255}", None))
        self._next = (self._next + CHANGES // 2) % half
        self._fastpath.set_devices(self._fastpath.sizes()["views.generation"], changes)
        # By the clock: a turn that came late does not make the next one later.
        self._due += INTERVAL
        loop.call_at(self._due, self._change, loop)


if __name__ == "__main__":
    log_format.set_up()
    ChangingDaemon(Path(sys.argv[1]), Supervisor(os.environ)).run()
