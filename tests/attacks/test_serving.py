"""Attacks on the Python half: it goes on to serve others, in bounded memory, and counts what it closed."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.daemon import Blockd, free_port
from tests.support.questions import CORPORATE, ask, message, rcode
from tests.support.upstream import Upstream

row = pytest.mark.row

HOST = b"Host: 127.0.0.1\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\n" + HOST
#: What no attack may take, octets; and of all ticks of the event loop, the most that may be late by half a second.
MOST_MEMORY, MOST_LATE = 20 << 20, 0.2


class Site:
    """A daemon that is attacked, and somebody else who needs it meanwhile."""

    def __init__(self, blockd: Blockd, page: int) -> None:
        """Know both."""
        self.blockd, self.page = blockd, page
        # Of the first use of everything.
        self.is_well()
        self.memory = blockd.memory()

    def connect(self, port: int, client: str = "127.0.0.1") -> socket.socket:
        """Connect as a client."""
        return socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(client, 0))

    def get(self, request: bytes, port: int, client: str = "127.0.0.1") -> bytes:
        """Send, and give all until the end; b"" where the connection is refused or reset before anything comes."""
        received = b""
        with contextlib.suppress(ConnectionError), self.connect(port, client) as one:
            one.sendall(request)
            while chunk := one.recv(65_536):
                received += chunk
        return received

    def is_well(self) -> None:
        """See that another client is served over HTTP, UDP and TCP, from another address."""
        close = b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + HOST
        assert self.get(close, self.blockd.admin, "127.0.0.77").endswith(b"alive\n")
        assert self.get(b"GET / HTTP/1.1\r\n" + HOST, self.page, "127.0.0.77").startswith(b"HTTP/1.1 404 ")
        assert rcode(ask(self.blockd, "tiktok.com", client=CORPORATE)) == "NXDOMAIN"
        assert rcode(ask(self.blockd, "tiktok.com", client=CORPORATE, tcp=True)) == "NXDOMAIN"

    def has_held(self) -> None:
        """See that memory and lag stayed bounded, and nothing failed."""
        self.is_well()
        metrics = self.blockd.metrics()
        assert self.blockd.memory() - self.memory < MOST_MEMORY
        ticks = metrics['blockd_reactor_lag_seconds_bucket{le="+Inf"}']
        assert ticks - metrics['blockd_reactor_lag_seconds_bucket{le="0.5"}'] <= MOST_LATE * ticks
        assert sum(value for name, value in metrics.items() if name.startswith("blockd_internal_errors_total")) == 0

    def closed(self, listener: str, reason: str) -> float:
        """Count the connections that a bound closed."""
        return self.blockd.metric("blockd_http_closed_total", listener=listener, reason=reason)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Share a daemon: every attack leaves it well."""
    page = free_port()
    with Upstream({}) as upstream:
        blockd = Blockd(
            tmp_path_factory.mktemp("serving"),
            [upstream.address],
            block_page={"listen": [f"127.0.0.1:{page}"]},
        )
        with blockd:
            yield Site(blockd, page)


@row("http-pipelining")
@pytest.mark.parametrize("listener", ["admin", "block_page"])
def test_pipelined_requests_are_answered_one_by_one_and_not_for_ever(site: Site, listener: str) -> None:
    """40,000 requests, read or not: a connection has as many as it may, then it is closed."""
    port, most = (site.blockd.admin, 100) if listener == "admin" else (site.page, 1)
    for _ in range(20):
        assert 1 <= site.get(HEALTH * 1_900, port).count(b"HTTP/1.1 ") <= most
    with site.connect(port) as unread:
        unread.settimeout(0.2)
        with contextlib.suppress(OSError):
            unread.sendall(HEALTH * 2_000)
        site.is_well()
    site.has_held()


@row("http-idle")
def test_idle_connections_make_room(site: Site) -> None:
    """600 to each listener, one after the other: an address has its share of them, and whoever comes is served."""
    for port in (site.blockd.admin, site.page):
        held = []
        for at in range(600):
            with contextlib.suppress(OSError):
                held.append(site.connect(port, f"127.0.5.{at % 50 + 1}"))
        site.is_well()
        for one in held:
            one.close()
    assert site.closed("admin", "for_another") >= 500
    held = [site.connect(site.page, "127.0.6.1") for _ in range(100)]
    site.is_well()
    assert site.closed("block_page", "client") >= 36
    for one in held:
        one.close()
    site.has_held()


@row("http-slow-requests")
def test_a_request_has_a_time_in_all(site: Site) -> None:
    """Header after header, each in time, never the last: closed by the clock of the request."""
    slow = [site.connect(port) for port in (site.blockd.admin, site.page)]
    for one in slow:
        one.sendall(b"GET / HTTP/1.1\r\n")
    began = time.monotonic()
    closed: set[socket.socket] = set()
    while len(closed) < len(slow):
        assert time.monotonic() - began < 30, "never closed"
        for one in slow:
            try:
                one.sendall(b"X: y\r\n")
            except OSError:
                closed.add(one)
        time.sleep(0.3)
    # Below any number of headers that would have been too many.
    assert site.closed("admin", "slow_request") + site.closed("block_page", "slow_request") >= 2
    for one in slow:
        one.close()
    site.has_held()


@row("http-slow-readers")
def test_an_answer_that_nobody_reads_costs_little(site: Site) -> None:
    """Metrics for 30 clients that never read: nothing more is read of them, and one rendering serves them."""
    held = [site.connect(site.blockd.admin) for _ in range(30)]
    for one in held:
        one.setblocking(False)
        with contextlib.suppress(OSError):
            one.send((b"GET /metrics HTTP/1.1\r\n" + HOST) * 2_000)
    site.has_held()
    for one in held:
        one.close()


@row("http-smuggling")
def test_nothing_hides_behind_a_request(site: Site) -> None:
    """Lengths and codings that two servers could read differently: one error, and the connection ends."""
    for fields in (
        b"Content-Length: 30\r\nTransfer-Encoding: chunked",
        b"Content-Length: 0\r\nContent-Length: 30",
        b"Content-Length: 30, 30",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding : chunked",
        b"Content-Length: 0\n",
        b"X: y\r\n Content-Length: 30",
    ):
        for port in (site.blockd.admin, site.page):
            answer = site.get(b"GET /healthz HTTP/1.1\r\n" + fields + b"\r\n" + HOST + b"0\r\n\r\n" + HEALTH, port)
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")), (fields, answer[:100])
            assert answer.count(b"HTTP/1.1 ") == 1, fields
    # A body is not read, and nothing behind it is either.
    answer = site.get(b"GET /healthz HTTP/1.1\r\nContent-Length: 5\r\n" + HOST + b"12345" + HEALTH, site.blockd.admin)
    assert answer.count(b"HTTP/1.1 ") == 1
    site.has_held()


@row("http-scrapes")
def test_many_scrapes_cost_one_rendering(site: Site) -> None:
    """Eight clients, one after the other request: most of what they get is the same page."""
    pages: list[bytes] = []
    admin = site.blockd.values["admin"]
    admin["metrics_max_age"] = "1s"
    assert site.blockd.reload().returncode == 0

    def scrape(client: str) -> None:
        for _ in range(20):
            page = site.get(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n" + HOST, site.blockd.admin, client)
            assert page.startswith(b"HTTP/1.1 200 ")
            pages.append(page.partition(b"\r\n\r\n")[2])

    began = time.monotonic()
    threads = [threading.Thread(target=scrape, args=(f"127.0.7.{at}",)) for at in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pages) == 160
    assert len(set(pages)) <= time.monotonic() - began + 2
    admin["metrics_max_age"] = "0s"
    assert site.blockd.reload().returncode == 0
    site.has_held()


@row("dns-rebinding")
def test_a_page_of_a_stranger_cannot_read_ours(site: Site) -> None:
    """A name that resolves to our address is no name of ours, on any path, in whatever form."""
    for host in (
        "evil.example",
        f"evil.example:{site.blockd.admin}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
    ):
        for path in ("/metrics", "/readyz", "/egress/all.json", "/", f"http://{host}/metrics"):
            answer = site.get(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() * 2, site.blockd.admin)
            assert answer.startswith(b"HTTP/1.1 421 "), (host, path)
            assert answer.count(b"HTTP/1.1 ") == 1
    twice = b"GET http://evil.example/metrics HTTP/1.1\r\n" + HOST
    assert site.get(twice, site.blockd.admin).startswith(b"HTTP/1.1 400 ")
    site.has_held()


@row("tcp-resets")
def test_resets_harm_nobody(site: Site) -> None:
    """Resets after data on three listeners at once, while others are served; none stays counted."""
    query = message("tiktok.com").to_wire()
    ways = (
        (site.blockd.port, struct.pack("!H", len(query)) + query),
        (site.blockd.admin, b"GET /metrics HTTP/1.1\r\n" + HOST),
        (site.page, b"GET / HTTP/1.1\r\n" + HOST),
    )
    for _ in range(3):
        for port, data in ways:
            for _ in range(100):
                with contextlib.suppress(ConnectionError), site.connect(port) as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.sendall(data)
        site.is_well()
    deadline = time.monotonic() + 10
    while site.blockd.metric("blockd_tcp_connections") + site.blockd.metric("blockd_http_connections") > 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    site.has_held()
