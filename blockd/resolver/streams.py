"""Questions to upstreams over TCP, when one datagram was not enough (RFC 7766)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure

from blockd.endpoint import Endpoint, Native

if TYPE_CHECKING:
    from twisted.internet.posixbase import PosixReactorBase

#: Servers that are tried; they share the time that is left.
MAX_SERVERS = 2
#: Exchanges at once; more are failed at once, and counted.
MAX_EXCHANGES = 1_000

#: Takes an exchange, the place of the server that was asked, and its answer, or none at the end. False when the answer
#: is of no use, a query when that server is to be asked once more.
Complete = Callable[[int, int, bytes | None], bool | bytes]


class _Exchange(Int16StringReceiver):
    """Sends one query, takes the first message that comes back."""

    MAX_LENGTH = 65535

    def __init__(self, query: bytes, done: Callable[[bytes | None], None]) -> None:
        self._query = query
        self._done = done

    def connectionMade(self) -> None:
        self.sendString(self._query)

    def stringReceived(self, string: bytes) -> None:
        self._done(string)

    def lengthLimitExceeded(self, length: int) -> None:
        self._done(None)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._done(None)


class _Once(ClientFactory):
    noisy = False

    def __init__(self, query: bytes, done: Callable[[bytes | None], None]) -> None:
        self._query = query
        self._done = done

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Exchange(self._query, self._done)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._done(None)


class Streams:
    """All stream exchanges under way."""

    def __init__(self, reactor: PosixReactorBase, complete: Complete) -> None:
        """``complete`` is called for every answer of an ``ask`` until one is of use, or with none at the end."""
        self._reactor = reactor
        self._complete = complete
        self.under_way = 0
        self.refused = 0

    def ask(self, exchange: int, servers: list[tuple[Native, bytes]], patience: float) -> None:
        """Ask the servers in turn, each its query, until one answers or `patience` seconds are over."""
        if self.under_way >= MAX_EXCHANGES:
            self.refused += 1
            self._complete(exchange, 0, None)
            return
        self.under_way += 1
        asked = [(at, (Endpoint.from_native(one), query)) for at, (one, query) in enumerate(servers[:MAX_SERVERS])]
        self._try(exchange, asked, self._reactor.seconds() + patience)

    def _try(self, exchange: int, servers: list[tuple[int, tuple[Endpoint, bytes]]], deadline: float) -> None:
        left = deadline - self._reactor.seconds()
        if not servers or left <= 0:
            self.under_way -= 1
            self._complete(exchange, 0, None)
            return
        patience = left / len(servers)
        (place, (server, query)), rest = servers[0], servers[1:]
        is_done = False

        def done(answer: bytes | None) -> None:
            nonlocal is_done
            if is_done:
                return
            is_done = True
            if timer.active():
                timer.cancel()
            connector.disconnect()
            said: bool | bytes = False
            try:
                said = answer is not None and self._complete(exchange, place, answer)
            finally:
                # Also after an exception: the exchange must end, and be counted out.
                if said is True:
                    self.under_way -= 1
                elif isinstance(said, bytes):
                    self._try(exchange, [(place, (server, said)), *rest], deadline)
                else:
                    self._try(exchange, rest, deadline)

        timer = self._reactor.callLater(patience, done, None)
        try:
            connector: Any = self._reactor.connectTCP(server.host, server.port, _Once(query, done), timeout=patience)
        except (ConnectError, OSError):
            timer.cancel()
            self._try(exchange, rest, deadline)
