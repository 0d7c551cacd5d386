"""DNS over TCP (RFC 7766): pipelined, answered out of order, every client and connection bounded."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any
from typing import Protocol as Interface

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IPushProducer
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import ServerFactory
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer


class Limits(Interface):
    """Bounds, as the config gives them."""

    @property
    def connections(self) -> int:
        """Open connections in all."""

    @property
    def connections_a_client(self) -> int:
        """Open connections of one client."""

    @property
    def queries_a_connection(self) -> int:
        """Queries on one connection."""

    @property
    def queries_at_once(self) -> int:
        """Unanswered queries on one connection."""

    @property
    def idle(self) -> float:
        """Seconds."""


#: Of the connections longest unused, how many are searched for one that is owed no answer.
SEARCHED_FOR_IDLE = 64

#: Octets of replies that may wait for slow readers, in all; a reader is slow when 64 KiB wait for it. Without a bound,
#: each connection could have as many replies of 64 KiB as it may have queries at once.
MAX_UNSENT_OCTETS = 64 << 20

#: What a PROXY header of version 2 begins with, and the most that one may have.
PROXY, PROXY_OCTETS = b"\r\n\r\n\0\r\nQUIT\n", 4_096

#: Length of the header, and whose address it conveys; None where it is not whole yet.
ReadProxy = Callable[[bytes], tuple[int, str | None] | None]
Answer = Callable[[bytes, tuple[str, int], int, tuple[str | None] | None], bytes | None]


@dataclass
class StreamCounts:
    """What happened to connections."""

    accepted: int = 0
    refused_client: int = 0
    refused_stranger: int = 0
    closed_for_another: int = 0
    closed_idle: int = 0
    closed_slow_reader: int = 0
    closed_many_queries: int = 0
    closed_forged: int = 0


@implementer(IPushProducer, IHalfCloseableProtocol)
class _Connection(Int16StringReceiver):
    MAX_LENGTH = 65535
    transport: Any
    #: What came before it is known whether a PROXY header begins the connection.
    _beginning: bytes | None = b""

    def __init__(self, listener: TcpListener, peer: tuple[str, int]) -> None:
        self._listener = listener
        #: Whose connection it is; and what a forwarder's PROXY header said of who asks.
        self.source = peer
        self._proxied: tuple[str | None] | None = None
        #: Whom it is counted with.
        self.counted = client_bucket(peer[0])
        self._queries = 0
        self._unanswered: set[int] = set()
        self._is_slow = False
        self._is_closing = False
        self._has_waited = False
        self._timer: DelayedCall | None = None

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self._timer = self._listener.later(self._expire)

    def dataReceived(self, data: bytes) -> None:
        """Take a PROXY header off first, of a forwarder that is listed; of others it ends the connection."""
        if self._beginning is None:
            super().dataReceived(data)
            return
        begun = self._beginning = self._beginning + data
        if begun[: len(PROXY)] == PROXY[: len(begun)]:
            if len(begun) < len(PROXY):
                # Too little to tell it from the length of a query.
                return
            if not self._listener.is_forwarder(self.source[0]):
                self._listener.counts.closed_forged += 1
                self.transport.abortConnection()
                return
            header = self._listener.read_proxy(begun)
            if header is None:
                if len(begun) > PROXY_OCTETS:
                    self.transport.abortConnection()
                return
            length, host = header
            self._proxied, begun = (host,), begun[length:]
            if host is not None and not self._listener.admits_behind(self, host):
                self.transport.abortConnection()
                return
        self._beginning = None
        super().dataReceived(begun)

    def stringReceived(self, string: bytes) -> None:
        self._listener.used(self)
        self._reset_timer()
        self._has_waited = False
        self._queries += 1
        token = self._listener.next_token(self)
        self._unanswered.add(token)
        reply = self._listener.answer(string, self.source, token, self._proxied)
        if self._queries >= self._listener.limits.queries_a_connection:
            self._listener.counts.closed_many_queries += 1
            self._is_closing = True
        if reply is not None:
            self.reply(token, reply or None)
        self._pace()

    def reply(self, token: int, reply: bytes | None) -> None:
        """Send a reply; none is the policy's silence."""
        self._listener.forget_token(token)
        self._unanswered.discard(token)
        if reply is not None:
            self.sendString(reply)
            if self._is_slow:
                self._listener.unsent(self, len(reply))
        self._pace()
        self._close_if_done()

    def _close_if_done(self) -> None:
        # Not abort: what was written and not sent yet must still go out.
        if self._is_closing and not self._unanswered:
            self.end()

    def end(self) -> None:
        """Close it, once what was written to it is sent."""
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    @property
    def is_waiting(self) -> bool:
        """Whether an answer is owed."""
        return bool(self._unanswered)

    def _pace(self) -> None:
        # A client that pipelines without end, or does not read, waits: what it sent stays in its own socket.
        is_full = len(self._unanswered) >= self._listener.limits.queries_at_once
        must_wait = self._is_slow or self._is_closing or is_full
        if must_wait and not self.paused:
            super().pauseProducing()
        elif not must_wait and self.paused:
            super().resumeProducing()

    def pauseProducing(self) -> None:
        """Stop reading: the client does not read."""
        self._is_slow = True
        self._pace()

    def resumeProducing(self) -> None:
        """Read again: all that waited is sent."""
        self._is_slow = False
        self._listener.has_read(self)
        self._pace()

    def stopProducing(self) -> None:
        """Do nothing: the connection is gone already."""

    def readConnectionLost(self) -> None:
        """Answer what is under way to a client that has said all it will (RFC 7766 6.2.4)."""
        self._is_closing = True
        self._close_if_done()

    def writeConnectionLost(self) -> None:
        """End: nobody reads any more."""
        self.transport.abortConnection()

    def _reset_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.reset(self._listener.limits.idle)

    def _expire(self) -> None:
        counts = self._listener.counts
        if self._is_slow:
            self.close_slow()
        elif self._unanswered and not self._has_waited:
            # It waits for an upstream; that has a deadline of its own, well below this one.
            self._has_waited = True
            self._timer = self._listener.later(self._expire)
        else:
            counts.closed_idle += 1
            self.transport.abortConnection()

    def close_slow(self) -> None:
        """Close it, and drop what its client did not read."""
        self._listener.counts.closed_slow_reader += 1
        self._listener.gone(self)
        self.transport.abortConnection()

    def make_room(self) -> None:
        """Close for a newer connection; it counts no more from now on, though the transport closes a turn later."""
        self._listener.counts.closed_for_another += 1
        self._listener.gone(self)
        self.transport.abortConnection()

    def lengthLimitExceeded(self, length: int) -> None:
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for token in self._unanswered:
            self._listener.forget_token(token)
        self._listener.gone(self)


class TcpListener(ServerFactory):
    """The connections of all TCP listeners, and their bounds."""

    noisy = False

    def __init__(
        self,
        reactor: PosixReactorBase,
        answer: Answer,
        is_client: Callable[[str], bool],
        limits: Callable[[], Limits],
        is_forwarder: Callable[[str], bool] = lambda _: False,
        read_proxy: ReadProxy = lambda _: None,
    ) -> None:
        """``answer(query, peer, token, proxied)`` gives a reply, b"" for silence, or None when :meth:`reply` brings it.

        ``limits()`` is asked at each use, so that a reload takes them in; so is ``is_forwarder(host)``: of whom a PROXY
        header is believed, which ``read_proxy`` reads.
        """
        self.is_forwarder, self.read_proxy = is_forwarder, read_proxy
        self._is_client = is_client
        self._reactor = reactor
        self.answer = answer
        self._limits = limits
        self.counts = StreamCounts()
        self._waiting: dict[int, _Connection] = {}
        self._next_token = 0
        #: Oldest use first.
        self._connections: OrderedDict[_Connection, None] = OrderedDict()
        self._by_client: Counter[str] = Counter()
        #: Slow readers, and the octets that were written to each since it is slow; and of all.
        self._unsent: dict[_Connection, int] = {}
        self._unsent_octets = 0

    @property
    def limits(self) -> Limits:
        """The bounds in force."""
        return self._limits()

    def close(self) -> None:
        """Close every connection, once what was written to it is sent."""
        for connection in list(self._connections):
            connection.end()

    @property
    def open_connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    def buildProtocol(self, addr: IAddress | None) -> _Connection | None:
        """Take a connection in, close the oldest for it, an idle one if there is one, or refuse it."""
        # A link-local client has its interface behind a %; limits and policy know addresses.
        host, port = addr.host.partition("%")[0], addr.port  # type: ignore[union-attr]
        if not self._is_client(host):
            self.counts.refused_stranger += 1
            return None
        # A forwarder's connections are many clients': for them there is the bound of all alone.
        is_full = self._by_client[client_bucket(host)] >= self.limits.connections_a_client
        if is_full and not self.is_forwarder(host):
            self.counts.refused_client += 1
            return None
        if len(self._connections) >= self.limits.connections:
            oldest = itertools.islice(self._connections, SEARCHED_FOR_IDLE)
            idle = next((connection for connection in oldest if not connection.is_waiting), None)
            (idle or next(iter(self._connections))).make_room()
        connection = _Connection(self, (host, port))
        connection.factory = self
        self._connections[connection] = None
        self._by_client[client_bucket(host)] += 1
        self.counts.accepted += 1
        return connection

    def admits_behind(self, connection: _Connection, host: str) -> bool:
        """Count a connection with the device that a forwarder has it for; False when that has as many as it may."""
        bucket = client_bucket(host)
        if self._by_client[bucket] >= self.limits.connections_a_client:
            self.counts.refused_client += 1
            return False
        self._by_client[connection.counted] -= 1
        if not self._by_client[connection.counted]:
            del self._by_client[connection.counted]
        connection.counted = bucket
        self._by_client[bucket] += 1
        return True

    def later(self, call: Callable[[], None]) -> DelayedCall:
        """Run a call when a connection was idle for too long."""
        return self._reactor.callLater(self.limits.idle, call)

    def next_token(self, connection: _Connection) -> int:
        """Number a query."""
        self._next_token += 1
        self._waiting[self._next_token] = connection
        return self._next_token

    def forget_token(self, token: int) -> None:
        """Drop a query's number: it is answered, or its connection is gone."""
        self._waiting.pop(token, None)

    def reply(self, token: int, reply: bytes | None) -> None:
        """Bring the answer of a query that had to wait."""
        connection = self._waiting.get(token)
        if connection is None:
            return
        try:
            connection.reply(token, reply)
        except Exception:
            # It cannot be written to: it is not counted any more, and its client may connect anew.
            self.gone(connection)
            connection.transport.abortConnection()
            raise

    def used(self, connection: _Connection) -> None:
        """Note that a connection is in use."""
        if connection in self._connections:
            self._connections.move_to_end(connection)

    def unsent(self, connection: _Connection, octets: int) -> None:
        """Count what waits for a slow reader; where that is too much in all, the one that has most is closed."""
        if connection not in self._connections:
            return
        self._unsent[connection] = self._unsent.get(connection, 0) + octets
        self._unsent_octets += octets
        if self._unsent_octets > MAX_UNSENT_OCTETS:
            max(self._unsent, key=self._unsent.__getitem__).close_slow()

    def has_read(self, connection: _Connection) -> None:
        """Note that nothing waits for a connection any more."""
        self._unsent_octets -= self._unsent.pop(connection, 0)

    def gone(self, connection: _Connection) -> None:
        """Note that a connection is closed."""
        self.has_read(connection)
        if self._connections.pop(connection, self) is None:
            bucket = connection.counted
            self._by_client[bucket] -= 1
            if not self._by_client[bucket]:
                del self._by_client[bucket]


def client_bucket(host: str) -> str:
    """Give what a client is counted by: an IPv4 address, or a /64, since a host picks freely inside one."""
    return str(IPv6Address(int(IPv6Address(host)) >> 64 << 64)) if ":" in host else host
