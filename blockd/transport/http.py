"""HTTP/1.1 for strangers: GET and small requests alone, every size, number and time bounded.

A server of our own: it answers without ever reading a body, so requests cannot be smuggled or pipelined past it, and
each bound is one line here. docs/decisions/0017-event-loop-and-http.md has the reasons.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IPullProducer
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from blockd.guard import Guard
from blockd.hosts import read_authority
from blockd.transport.tcp import client_bucket

#: Octets of a request line, of all fields, and of a body that is announced; fields.
MAX_LINE_OCTETS, MAX_FIELDS_OCTETS, MAX_BODY_OCTETS, MAX_FIELDS = 4_096, 8_192, 1_024, 64
#: Seconds from the first octet of a request, or from the connection, to its last.
REQUEST_SECONDS = 10.0
#: Seconds between two requests of one connection; scrapers come every quarter of a minute to every minute.
IDLE_SECONDS = 75.0
#: Seconds from a request to the last octet of its answer.
ANSWER_SECONDS = 30.0
#: Seconds of a connection, and requests on it, then it is closed.
CONNECTION_SECONDS, MAX_REQUESTS = 600.0, 100
#: After the last answer, what still comes is read and dropped for so long and so far: a close with unread octets is a
#: reset, which may overtake the answer.
LINGER_SECONDS, LINGER_OCTETS = 2.0, 1 << 20
#: Octets that are given to the kernel at once: an answer that nobody reads is not copied for each client.
CHUNK_OCTETS = 1 << 16

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_FIELD_NAME = re.compile(_TOKEN + rb"+")
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_ABSOLUTE = re.compile(r"(?i:http)://([^/?#]+)([^#]*)")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LONE_LF = re.compile(rb"(?<!\r)\n")


@dataclass(frozen=True)
class Request:
    """What is asked for; every part as the client wrote it."""

    method: str
    #: Without the query.
    path: str
    #: `Host`, or the authority of a target in absolute form; None where HTTP/1.0 has neither.
    host: str | None
    #: Address of the client, and the address of ours that it connected to.
    client: str
    local: str
    is_kept_alive: bool = True


@dataclass(frozen=True)
class Response:
    """An answer; its length and the connection's fate are written by the server."""

    status: int
    body: bytes = b""
    fields: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """A request that gets an error, and the end of its connection."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


Handler = Callable[[Request], "Response | Deferred[Response]"]


def read_request(head: bytes, client: str = "", local: str = "") -> Request:
    """Read request line and fields, all before the empty line. Refused says what is wrong."""
    line, *rows = head.split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise Refused(400, "malformed request line")
    method, target, major, minor = (part.decode("ascii") for part in found.groups())
    if major != "1":
        raise Refused(505, "expected HTTP/1.1 or HTTP/1.0")
    if len(rows) > MAX_FIELDS:
        raise Refused(431, f"more than {MAX_FIELDS} fields")
    fields: dict[bytes, list[bytes]] = {}
    for row in rows:
        name, colon, value = row.partition(b":")
        # A space before the colon, or at the beginning of a line, is how one server is made to read another request
        # than the next (RFC 9112 sections 5.1 and 5.2).
        if not colon or not _FIELD_NAME.fullmatch(name) or _CONTROL.search(value):
            raise Refused(400, "malformed field")
        fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
    is_old = minor == "0"
    hosts = fields.get(b"host", [])
    if len(hosts) > 1 or (not hosts and not is_old):
        raise Refused(400, "expected one Host field")
    host = hosts[0].decode("latin-1") if hosts else None
    has_body = _check_body(fields, is_old)
    path, host = _read_target(target, host)
    options = b",".join(fields.get(b"connection", [])).lower().replace(b" ", b"").split(b",")
    return Request(method, path, host, client, local, not (is_old or has_body or b"close" in options))


def _check_body(fields: Mapping[bytes, list[bytes]], is_old: bool) -> bool:
    """Say whether a body follows. It is not read: one that has no small length is refused."""
    codings, lengths = fields.get(b"transfer-encoding", []), fields.get(b"content-length", [])
    if codings and (lengths or is_old):
        raise Refused(400, "Transfer-Encoding beside Content-Length, or in HTTP/1.0")
    if codings and [coding.lower() for coding in codings] != [b"chunked"]:
        raise Refused(501, "unknown transfer coding")
    if len(lengths) > 1 or (lengths and not re.fullmatch(rb"[0-9]{1,20}", lengths[0])):
        raise Refused(400, "malformed Content-Length")
    length = int(lengths[0]) if lengths else 0
    if codings or length > MAX_BODY_OCTETS:
        raise Refused(413, f"expected a body of at most {MAX_BODY_OCTETS} octets, of known length")
    return length > 0


def _read_target(target: str, host: str | None) -> tuple[str, str | None]:
    if target.startswith("/"):
        return target.partition("?")[0], host
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise Refused(400, "expected a path")
    authority, rest = absolute.groups()
    # The target decides (RFC 9112 section 3.2.2): a Host that says another name is there to mislead somebody.
    if host is not None and host.lower() != authority.lower():
        raise Refused(400, "Host and target differ")
    return rest.partition("?")[0] or "/", authority


@dataclass
class HttpCounts:
    """What happened to connections and requests."""

    #: Answers, by status.
    answers: Counter[int] = field(default_factory=Counter)
    #: Connections that a bound closed, by reason.
    closed: Counter[str] = field(default_factory=Counter)


@implementer(IPullProducer)
class _Connection(Protocol):
    """One client: a request is read, answered and sent before the next is looked at."""

    transport: Any

    def __init__(self, listener: HttpListener, client: str) -> None:
        self._listener, self._client = listener, client
        self.bucket = client_bucket(client)
        self._received = b""
        self._requests = 0
        self._dropped = 0
        self._is_lingering = False
        #: Whether a whole request came, and its answer is not sent yet.
        self.is_answering = False
        self._is_kept = False
        self._request: Request | None = None
        #: What is not sent yet: the head, and the body from an offset on. A body may be shared by many clients.
        self._head, self._body, self._sent = b"", b"", 0
        self._timer: DelayedCall | None = None
        self._ends = 0.0

    def connectionMade(self) -> None:
        self._listener.opened(self)
        self._ends = self.transport.reactor.seconds() + CONNECTION_SECONDS
        self._wait(REQUEST_SECONDS)
        self.transport.setTcpNoDelay(True)

    def _wait(self, seconds: float) -> None:
        """Have so many seconds for what comes now; the connection as a whole has its own."""
        now = self.transport.reactor.seconds()
        seconds = seconds if self.is_answering or self._is_lingering else min(seconds, max(0.0, self._ends - now))
        if self._timer is not None and self._timer.active():
            self._timer.reset(seconds)
        else:
            self._timer = self.transport.reactor.callLater(seconds, self._expire)

    def _expire(self) -> None:
        if not self._is_lingering:
            is_idle = not self.is_answering and self._requests and not self._received
            reason = "slow_reader" if self.is_answering else "idle" if is_idle else "slow_request"
            self._listener.counts.closed[reason] += 1
        self.abort()

    def abort(self) -> None:
        """Close now, and count no more from now on."""
        self._end()
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._end()

    def _end(self) -> None:
        self.is_answering, self._head, self._body = False, b"", b""
        self._listener.gone(self)

    def dataReceived(self, data: bytes) -> None:
        if self._is_lingering:
            self._dropped += len(data)
            if self._dropped > LINGER_OCTETS:
                self.abort()
            return
        if self._requests and not self._received:
            self._wait(REQUEST_SECONDS)
        # Never more than is bounded below, and what one read gives.
        self._received += data
        if not self.is_answering:
            self._read()

    def _read(self) -> None:
        """Begin to answer if a whole request is there."""
        received = self._received = self._received.removeprefix(b"\r\n")
        try:
            head = _head(received)
            if head is None:
                return
            self._received = received[len(head) + 4 :]
            request = read_request(head, self._client, self.transport.getHost().host.partition("%")[0])
        except Refused as refused:
            self._begin(None)
            self._refuse(refused)
            return
        self._begin(request)
        listener = self._listener
        try:
            answer = listener.handle(request)
        except Refused as refused:
            self._refuse(refused)
        except Exception as error:  # noqa: BLE001  a page that fails must not end more than its connection
            self._fail(error)
        else:
            if isinstance(answer, Response):
                self._respond(answer)
            else:
                answer.addCallbacks(self._respond, lambda failure: self._fail(failure.value))

    def _begin(self, request: Request | None) -> None:
        self.is_answering, self._request = True, request
        self._requests += 1
        is_over = self._requests >= MAX_REQUESTS or self.transport.reactor.seconds() >= self._ends
        self._is_kept = self._listener.keeps_alive and request is not None and request.is_kept_alive and not is_over
        if not self._is_kept:
            self._received = b""
        # What follows stays in the client's own socket until this is answered.
        self.transport.pauseProducing()
        self._listener.answering(self)
        self._wait(ANSWER_SECONDS)

    def _refuse(self, refused: Refused) -> None:
        self._is_kept, self._received = False, b""
        self._respond(_error(refused.status, str(refused)))

    def _fail(self, error: BaseException) -> None:
        self._listener.guard.failed("http", error)
        self._respond(_error(500, "internal error"))

    def _respond(self, response: Response) -> None:
        if not self.is_answering:
            # The client has gone meanwhile.
            return
        self._listener.counts.answers[response.status] += 1
        rows = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}", f"Date: {formatdate(usegmt=True)}"]
        rows += [f"{name}: {value}" for name, value in response.fields.items()]
        rows += [f"Content-Length: {len(response.body)}", *([] if self._is_kept else ["Connection: close"]), "", ""]
        is_head = self._request is not None and self._request.method == "HEAD"
        self._head, self._body, self._sent = "\r\n".join(rows).encode("latin-1", "replace"), response.body, 0
        if is_head:
            self._body = b""
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send the next part: all before is sent."""
        part = self._head + self._body[self._sent : self._sent + CHUNK_OCTETS]
        if part:
            self._head, self._sent = b"", self._sent + CHUNK_OCTETS
            self.transport.write(part)
            return
        self.transport.unregisterProducer()
        self.is_answering, self._request, self._body = False, None, b""
        if self._is_kept:
            self._listener.waiting(self)
            self._wait(REQUEST_SECONDS if self._received else IDLE_SECONDS)
            self.transport.resumeProducing()
            if self._received:
                self._read()
            return
        self._is_lingering = True
        self._listener.lingering(self)
        self._wait(LINGER_SECONDS)
        self.transport.loseWriteConnection()
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: the connection is gone already."""


def _head(received: bytes) -> bytes | None:
    """Give all before the empty line; None while it may still come. Refused where a bound is passed."""
    if received[:1] and received[:1] != b"\r" and not _FIELD_NAME.match(received):
        # Such as TLS.
        raise Refused(400, "malformed request line")
    end = received.find(b"\r\n\r\n")
    line = received.find(b"\r\n")
    if (line if line >= 0 else len(received)) > MAX_LINE_OCTETS:
        raise Refused(414, f"a request line of more than {MAX_LINE_OCTETS} octets")
    if line >= 0 and (end if end >= 0 else len(received)) - line > MAX_FIELDS_OCTETS:
        raise Refused(431, f"fields of more than {MAX_FIELDS_OCTETS} octets")
    if _LONE_LF.search(received, 0, end if end >= 0 else len(received)):
        raise Refused(400, "a line ends in CR LF")
    return received[:end] if end >= 0 else None


def _error(status: int, text: str) -> Response:
    fields = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return Response(status, f"{text}\n".encode(), fields)


class HttpListener(ServerFactory):
    """The connections of one kind of listener, and their bounds."""

    noisy = False

    def __init__(self, handler: Handler, connections: int, connections_per_client: int, *, keeps_alive: bool) -> None:
        """``handler`` answers a request; without ``keeps_alive`` a connection has one."""
        self.handle, self.keeps_alive = handler, keeps_alive
        self.counts = HttpCounts()
        self.guard = Guard()
        self._most, self._most_of_client = connections, connections_per_client
        #: Those whose request is not whole, the longest first; those whose answer is not sent, likewise.
        self._waiting: OrderedDict[_Connection, None] = OrderedDict()
        self._answering: OrderedDict[_Connection, None] = OrderedDict()
        #: The same by client, the latest change last.
        self._by_client: dict[str, OrderedDict[_Connection, None]] = {}

    @property
    def open_connections(self) -> int:
        """How many there are."""
        return len(self._waiting) + len(self._answering)

    def buildProtocol(self, addr: IAddress | None) -> _Connection:
        """Take a connection in; the oldest that is unfinished makes room, of the same client or of all."""
        connection = _Connection(self, addr.host.partition("%")[0])  # type: ignore[union-attr]
        connection.factory = self
        mine = self._by_client.get(connection.bucket, OrderedDict())
        if len(mine) >= self._most_of_client:
            self.counts.closed["client"] += 1
            next((one for one in mine if not one.is_answering), next(iter(mine))).abort()
        elif self.open_connections >= self._most:
            self.counts.closed["for_another"] += 1
            next(iter(self._waiting or self._answering)).abort()
        return connection

    def opened(self, connection: _Connection) -> None:
        """Note that a connection is open."""
        self._by_client.setdefault(connection.bucket, OrderedDict())[connection] = None
        self._waiting[connection] = None

    def answering(self, connection: _Connection) -> None:
        """Note that a whole request came."""
        if self._waiting.pop(connection, self) is None:
            self._answering[connection] = None

    def waiting(self, connection: _Connection) -> None:
        """Note that an answer is sent, and another request may come."""
        if self._answering.pop(connection, self) is None:
            self._waiting[connection] = None
            self._by_client[connection.bucket].move_to_end(connection)

    def lingering(self, connection: _Connection) -> None:
        """Note that all is sent: it is the first to make room."""
        if self._answering.pop(connection, self) is None:
            self._waiting[connection] = None
            self._waiting.move_to_end(connection, last=False)
            self._by_client[connection.bucket].move_to_end(connection, last=False)

    def gone(self, connection: _Connection) -> None:
        """Note that a connection is closed."""
        if self._waiting.pop(connection, self) is None or self._answering.pop(connection, self) is None:
            mine = self._by_client[connection.bucket]
            del mine[connection]
            if not mine:
                del self._by_client[connection.bucket]


def is_host_of(host: str | None, local: str, names: frozenset[str]) -> bool:
    """Whether a request is meant for us: its host is the address that was connected to, or one of ``names``.

    A page of a stranger whose name is made to resolve to our address (DNS rebinding) has that name here. Refused where
    the host is malformed. HTTP/1.0 without one is no browser's.
    """
    if host is None:
        return True
    found = read_authority(host)
    if found is None:
        raise Refused(400, "malformed Host")
    name = found[0]
    is_loopback = local.startswith("127.") or local == "::1"
    return name == local or name in names or (is_loopback and name == "localhost")
