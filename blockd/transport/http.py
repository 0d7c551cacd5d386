"""HTTP that strangers may reach: small, read-only, bounded in connections, headers, bodies and time."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone as CONNECTION_DONE
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

#: Nobody has a body to send here.
MAX_BODY_OCTETS = 1024
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


class BoundedSite(Site):
    """A site that takes so many connections and no more."""

    noisy = False
    displayTracebacks = False

    def __init__(self, root: Any, connections: int) -> None:
        """``root`` is the resource that answers."""
        super().__init__(root, requestFactory=_Request, timeout=IDLE)
        self.protocol: Any = _Channel
        self.open_connections = 0
        self._connections = connections

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Take a connection in, or close it at once."""
        if self.open_connections >= self._connections:
            return None
        self.open_connections += 1
        return super().buildProtocol(addr)
