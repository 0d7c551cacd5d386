"""/metrics, /healthz and /readyz over HTTP: small, read-only, bounded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone as CONNECTION_DONE
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

#: Nobody has a body to send here.
MAX_BODY_OCTETS = 1024
#: A dashboard or two, and people.
MAX_CONNECTIONS = 64
#: Seconds until a connection that sends nothing is closed.
IDLE = 15


class _Request(Request):
    transport: Any

    def gotLength(self, length: int | None) -> None:
        # None is a body in chunks, as long as it likes.
        if length is None or length > MAX_BODY_OCTETS:
            self.setResponseCode(413)
            self.transport.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.transport.loseConnection()
            return
        super().gotLength(length)


class _Channel(HTTPChannel):
    maxHeaders = 64
    totalHeadersSize = 8192

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        self.factory.open_connections -= 1
        super().connectionLost(reason)


class _BoundedSite(Site):
    """A site that takes so many connections and no more."""

    open_connections = 0

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self.open_connections >= MAX_CONNECTIONS:
            return None
        self.open_connections += 1
        return super().buildProtocol(addr)


class _Page(Resource):
    isLeaf = True

    def __init__(self, content_type: str, page: Callable[[], tuple[int, bytes]]) -> None:
        super().__init__()
        self._content_type = content_type
        self._page = page

    def render_GET(self, request: Request) -> bytes:
        code, body = self._page()
        request.setResponseCode(code)
        request.setHeader("content-type", self._content_type)
        return body


class AliveCheck:
    """Whether every serve thread turned since the last look."""

    def __init__(self, beats: Callable[[], list[int]]) -> None:
        """``beats()`` gives the turns of each thread."""
        self._beats = beats
        self._last: list[int] = []
        self.is_alive = True

    def look(self) -> None:
        """Compare with the last look; threads turn four times a second at least."""
        beats = self._beats()
        self.is_alive = all(now != before for now, before in zip(beats, self._last, strict=False))
        self._last = beats


def admin_site(registry: CollectorRegistry, alive: AliveCheck, ready: Callable[[], dict[str, Any]]) -> Any:
    """Build the site. ``ready()`` says what is in force, and what is wrong with it."""

    def healthz() -> tuple[int, bytes]:
        return (200, b"alive\n") if alive.is_alive else (503, b"a serve thread stands still\n")

    def readyz() -> tuple[int, bytes]:
        return 200, json.dumps(ready(), indent=1).encode() + b"\n"

    root: Any = Resource()
    root.putChild(b"metrics", _Page(CONTENT_TYPE_LATEST, lambda: (200, generate_latest(registry))))
    root.putChild(b"healthz", _Page("text/plain; charset=utf-8", healthz))
    root.putChild(b"readyz", _Page("application/json", readyz))
    site: Any = _BoundedSite(root, requestFactory=_Request, timeout=IDLE)
    site.protocol = _Channel
    site.noisy = False
    site.displayTracebacks = False
    return site
