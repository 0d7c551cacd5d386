"""HTTP for strangers: what is read, what is refused, and what connections and pages may cost."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock

from blockd.hosts import read_authority, read_host
from blockd.observe.lag import BOUNDS, MAX_MISSED, TICK_SECONDS, WATCH_SECONDS, ReactorLag, missed_ticks, where
from blockd.observe.rendering import SharedPage, paced
from blockd.transport.http import MAX_FIELDS, Refused, is_host_of, read_request
from tests.support.daemon import Blockd, free_port
from tests.support.questions import message
from tests.support.upstream import Upstream

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost"
REQUESTS: dict[str, tuple[bytes, int | str]] = {
    "plain": (GET, "/metrics"),
    "query": (b"GET /readyz?a=/b HTTP/1.1\r\nHost: a", "/readyz"),
    "absolute": (b"GET http://Localhost:9/metrics?x HTTP/1.1\r\nHost: localhost:9", "/metrics"),
    "absolute-without-path": (b"GET http://a HTTP/1.1\r\nHost: a", "/"),
    "old-without-host": (b"GET /metrics HTTP/1.0", "/metrics"),
    "empty-host": (b"GET / HTTP/1.1\r\nHost:", "/"),
    "odd-method": (b"M-SEARCH / HTTP/1.1\r\nHost: a", "/"),
    "small-body": (GET + b"\r\nContent-Length: 1024", "/metrics"),
    "nothing": (b"", 400),
    "no-version": (b"GET /", 400),
    "version-2": (b"PRI * HTTP/2.0", 505),
    "version-3": (b"GET / HTTP/3.1\r\nHost: a", 505),
    "long-version": (b"GET / HTTP/1.10\r\nHost: a", 400),
    "two-spaces": (b"GET  / HTTP/1.1\r\nHost: a", 400),
    "tab": (b"GET\t/ HTTP/1.1\r\nHost: a", 400),
    "nul": (b"GET /\0 HTTP/1.1\r\nHost: a", 400),
    "octet-above-127": (b"GET /\xff HTTP/1.1\r\nHost: a", 400),
    "relative": (b"GET metrics HTTP/1.1\r\nHost: a", 400),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a", 400),
    "connect": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443", 400),
    "https": (b"GET https://a/ HTTP/1.1\r\nHost: a", 400),
    "fragment": (b"GET http://a/#b HTTP/1.1\r\nHost: a", 400),
    "another-host-in-target": (b"GET http://a/ HTTP/1.1\r\nHost: b", 400),
    "long-method": (b"G" * 33 + b" / HTTP/1.1\r\nHost: a", 400),
    "no-host": (b"GET / HTTP/1.1", 400),
    "two-hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a", 400),
    "space-before-colon": (b"GET / HTTP/1.1\r\nHost : a", 400),
    "folded": (b"GET / HTTP/1.1\r\nHost: a\r\n b", 400),
    "no-colon": (b"GET / HTTP/1.1\r\nHost: a\r\nb", 400),
    "no-name": (b"GET / HTTP/1.1\r\nHost: a\r\n: b", 400),
    "control-in-value": (b"GET / HTTP/1.1\r\nHost: a\r\nB: \x0bc", 400),
    "cr-in-value": (b"GET / HTTP/1.1\r\nHost: a\r\nB: \rc", 400),
    "many-fields": (b"GET / HTTP/1.1\r\nHost: a" + b"\r\nB: c" * MAX_FIELDS, 431),
    "large-body": (GET + b"\r\nContent-Length: 1025", 413),
    "huge-body": (GET + b"\r\nContent-Length: 99999999999999999999", 413),
    "length-too-long": (GET + b"\r\nContent-Length: " + b"0" * 21, 400),
    "signed-length": (GET + b"\r\nContent-Length: +1", 400),
    "hex-length": (GET + b"\r\nContent-Length: 0x1", 400),
    "two-lengths": (GET + b"\r\nContent-Length: 1\r\nContent-Length: 1", 400),
    "list-of-lengths": (GET + b"\r\nContent-Length: 1, 1", 400),
    "chunked": (GET + b"\r\nTransfer-Encoding: Chunked", 413),
    "chunked-in-1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked", 400),
    "length-and-chunked": (GET + b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 0", 400),
    "two-codings": (GET + b"\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
    "odd-coding": (GET + b"\r\nTransfer-Encoding: xchunked", 501),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_requests_are_read_strictly(case: str) -> None:
    """What two servers could read in two ways is refused."""
    head, expected = REQUESTS[case]
    if isinstance(expected, str):
        assert read_request(head).path == expected
    else:
        with pytest.raises(Refused) as refused:
            read_request(head)
        assert refused.value.status == expected


def test_a_connection_is_kept_only_where_nothing_follows() -> None:
    """Bodies are never read, so a connection that has one ends."""
    assert read_request(GET).is_kept_alive
    for more in (b"\r\nConnection: x, CLOSE", b"\r\nContent-Length: 1", b"\r\nConnection: a\r\nConnection: close"):
        assert not read_request(GET + more).is_kept_alive
    assert not read_request(b"GET / HTTP/1.0\r\nConnection: keep-alive").is_kept_alive


@pytest.mark.parametrize(
    ("host", "local", "expected"),
    [
        (None, "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1:9153", "127.0.0.1", True),
        ("127.0.0.1:", "127.0.0.1", True),
        ("LOCALHOST.:80", "127.0.0.1", True),
        ("localhost", "::1", True),
        ("[::1]", "::1", True),
        ("[0:0:0:0:0:0:0:1]:9153", "::1", True),
        ("[2001:DB8::5]", "2001:db8::5", True),
        ("Admin.Dept.Example.", "10.0.0.5", True),
        ("admin.dept.example:443", "10.0.0.5", True),
        ("localhost", "10.0.0.5", False),
        ("127.0.0.1", "10.0.0.5", False),
        ("127.1", "127.0.0.1", False),
        ("evil.example:9153", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("::1", "::1", None),
        ("[::1", "::1", None),
        ("[::1]x", "::1", None),
        ("[fe80::1%25eth0]", "fe80::1", None),
        ("", "127.0.0.1", None),
        (".", "127.0.0.1", None),
        ("localhost..", "127.0.0.1", None),
        ("localhost:65536", "127.0.0.1", None),
        ("localhost:-1", "127.0.0.1", None),
        ("localhost:80:80", "127.0.0.1", None),
        ("user@localhost", "127.0.0.1", None),
        ("localhost/", "127.0.0.1", None),
        ("localhost, evil.example", "127.0.0.1", None),
        ("l\xf6calhost", "127.0.0.1", None),
    ],
)
def test_a_request_names_us_or_is_refused(host: str | None, local: str, expected: bool | None) -> None:
    """The address that was connected to, localhost there, and names of the config; None is a malformed host."""
    names = frozenset({"admin.dept.example"})
    if expected is None:
        with pytest.raises(Refused) as refused:
            is_host_of(host, local, names)
        assert refused.value.status == 400
    else:
        assert is_host_of(host, local, names) is expected


def test_hosts_of_the_config_are_read() -> None:
    """Names and addresses in the form that requests are compared in; a port is a mistake."""
    assert [read_host(text) for text in ("A.Example.", "2001:DB8::1", "[2001:db8::1]", "10.0.0.1")] == [
        "a.example",
        "2001:db8::1",
        "2001:db8::1",
        "10.0.0.1",
    ]
    for text in ("a.example:80", "a.example:", "", "http://a.example", "*.example"):
        with pytest.raises(ValueError, match="expected a host name or an address, without a port"):
            read_host(text)
    assert read_authority("a:80") == ("a", 80)


class Reactor(Clock):
    """A clock whose threads report when the test lets them."""

    def callFromThread(self, call: Any, *arguments: Any) -> None:
        """Call it as the reactor would."""
        self.callLater(0, call, *arguments)


def test_a_page_is_rendered_once_for_many() -> None:
    """Those who ask while it is made share it, and so do those who ask within its age; then it is made anew."""
    reactor = Reactor()
    made: list[str] = []
    gathered: list[int] = []

    def gather() -> int:
        gathered.append(1)
        return len(gathered)

    def render(number: int) -> bytes:
        made.append(threading.current_thread().name)
        return b"%d" % number

    page = SharedPage(reactor, lambda: 1.0, gather, render)
    got: list[bytes] = []

    def wait(count: int) -> None:
        deadline = time.monotonic() + 5
        while len(got) < count:
            assert time.monotonic() < deadline
            reactor.advance(0)
            time.sleep(0.001)

    for _ in range(50):
        page.get().addCallback(got.append)
    wait(50)
    page.get().addCallback(got.append)
    reactor.advance(0.9)
    page.get().addCallback(got.append)
    assert got == [b"1"] * 52
    reactor.advance(0.2)
    page.get().addCallback(got.append)
    wait(53)
    assert got[-1] == b"2"
    assert (page.rendered, made) == (2, ["page", "page"])


def test_a_page_that_fails_is_tried_again() -> None:
    """Whoever waits is told, on the reactor or in the thread, and the next who asks has another try."""
    reactor = Reactor()
    failed: list[Any] = []
    answers: Iterator[Any] = iter([1, 1, 0])

    def gather() -> int:
        return int(1 / next(answers))

    page = SharedPage(reactor, lambda: 1.0, gather, lambda number: b"%d" % (1 // (number - 1)))
    for _ in range(3):
        waiting: Any = page.get()
        waiting.addErrback(failed.append)
        deadline = time.monotonic() + 5
        while not failed:
            assert time.monotonic() < deadline
            reactor.advance(0)
        assert failed.pop().check(ZeroDivisionError)
    assert page.rendered == 0


def test_pauses_are_made_beside_the_reactor_alone() -> None:
    """The main thread never sleeps; another gives way, and gives all items."""
    assert list(paced(range(100))) == list(range(100))
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.extend(paced(range(5_000))))
    thread.start()
    thread.join(10)
    assert got == list(range(5_000))


def test_a_stall_counts_for_every_tick_that_it_kept_from_running() -> None:
    """One second late is fifty ticks late; small delays are one each and do not add up."""
    late = list(missed_ticks(1.0))
    assert len(late) == 51
    assert late[0] == 1.0
    assert len(list(missed_ticks(1e9))) == MAX_MISSED + 1
    clock = Clock()
    lag = ReactorLag(clock)
    lag._due = TICK_SECONDS
    clock.callLater(TICK_SECONDS, lag._tick)
    for _ in range(10):
        clock.advance(TICK_SECONDS)
    assert lag.counts[0] == sum(lag.counts) == 10
    clock.advance(0.5)
    assert sum(lag.counts) == 10 + 25
    assert lag.total == pytest.approx(sum(missed_ticks(0.48)))
    assert lag.counts[BOUNDS.index(0.5)] > 10


def test_a_stall_is_logged_once_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """A loop that does not run is noticed by a thread; it is watched until it is told to stop."""
    lag = ReactorLag(Clock())
    with caplog.at_level(logging.WARNING, "blockd"):
        lag.start()
        deadline = time.monotonic() + 10
        while not caplog.records:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(3 * WATCH_SECONDS)
        lag.stop()
    assert len(caplog.records) == 1
    assert "test_a_stall_is_logged_once_with_its_place (" in caplog.records[0].getMessage()


def test_the_place_where_the_loop_stands_is_named() -> None:
    """Function, file and line of this test, and nothing for a thread that has gone."""
    assert "test_the_place_where_the_loop_stands_is_named (" in where(threading.get_ident())
    assert where(0) == "unknown"


class Site:
    """A daemon, and ways to talk to its pages."""

    def __init__(self, blockd: Blockd, page: int) -> None:
        """Know both."""
        self.blockd, self.page = blockd, page

    def ask(self, request: bytes, port: int | None = None, *, is_closing: bool = True) -> bytes:
        """Send a request, and give all until the end."""
        with socket.create_connection(("127.0.0.1", port or self.blockd.admin), timeout=5) as client:
            received = b""
            with contextlib.suppress(ConnectionError):
                client.sendall(request)
                if is_closing:
                    client.shutdown(socket.SHUT_WR)
                while chunk := client.recv(65_536):
                    received += chunk
        return received

    def until(self, count: int, listener: str) -> None:
        """Wait until so many connections are open at most."""
        deadline = time.monotonic() + 10
        while self.blockd.metric("blockd_http_connections", listener=listener) > count:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Share a daemon with an admin address and a block page."""
    page = free_port()
    with Upstream({}) as upstream:
        blockd = Blockd(
            tmp_path_factory.mktemp("http"),
            [upstream.address],
            admin={"hosts": ["Admin.Dept.Example"]},
            block_page={"listen": [f"127.0.0.1:{page}"]},
        ).start()
        yield Site(blockd, page)
        blockd.stop()


def test_admin_pages_have_small_and_safe_heads(site: Site) -> None:
    """Statuses, and no word of which software it is."""
    for path, status in (("/metrics", 200), ("/healthz", 200), ("/readyz", 200), ("/egress/all.json", 200)):
        answer = site.ask(b"GET %s HTTP/1.1\r\nHost: admin.dept.example:1\r\n\r\n" % path.encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"content-length: %d" % len(body) in head.lower()
        assert b"server:" not in head.lower()
        assert b"twisted" not in head.lower()
        headed = site.ask(b"HEAD %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        assert headed.endswith(b"\r\n\r\n")
        assert headed.startswith(b"HTTP/1.1 %d " % status)
    for path in ("/", "//metrics", "/metrics/", "/%6detrics", "/egress/tiktok", "/egress/../metrics"):
        assert site.ask(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode()).startswith(b"HTTP/1.1 404 ")
    assert b"\r\nAllow: GET, HEAD\r\n" in site.ask(b"PUT /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert site.ask(b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n").startswith(b"HTTP/1.1 421 ")


def test_what_is_pipelined_on_admin_is_answered_in_order(site: Site) -> None:
    """One after the other on one connection, in whatever pieces they come; each answer is whole."""
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = site.ask(request * 20 + b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" + request)
    assert answer.count(b"HTTP/1.1 200 OK") == 21
    assert answer.count(b"alive\n") == 20
    assert answer.rstrip().endswith(b"}")
    with socket.create_connection(("127.0.0.1", site.blockd.admin), timeout=5) as client:
        for at in range(len(request)):
            client.sendall(request[at : at + 1])
        assert client.recv(4096).endswith(b"alive\n")
        client.sendall(b"\r\n" + request)
        assert client.recv(4096).endswith(b"alive\n")


def test_the_page_answers_one_request_and_closes(site: Site) -> None:
    """Whatever comes behind it; the client that waits for the end has it, and is not counted any more."""
    request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
    for after in (b"", request * 1_000, b"x" * 300_000):
        answer = site.ask(request + after, site.page, is_closing=False)
        assert answer.count(b"HTTP/1.1 404 ") == 1
        assert answer.endswith(b"</html>")
    posted = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 900\r\n\r\n" + b"x" * 900
    assert site.ask(posted, site.page, is_closing=False).startswith(b"HTTP/1.1 404 ")
    site.until(0, "block_page")


def test_a_client_has_a_share_and_its_oldest_unfinished_request_goes_first(site: Site) -> None:
    """64 of one address on the page: a later request of it is answered, and of another address, too."""
    held = [socket.create_connection(("127.0.0.1", site.page), timeout=5) for _ in range(70)]
    for one in held:
        with contextlib.suppress(ConnectionError):
            one.sendall(b"GET / HT")
    assert site.ask(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", site.page).startswith(b"HTTP/1.1 404 ")
    assert site.blockd.metric("blockd_http_closed_total", listener="block_page", reason="client") >= 7
    assert site.blockd.metric("blockd_http_connections", listener="block_page") <= 64
    # The newest is there still, and may end its request.
    held[-1].sendall(b"TP/1.1\r\nHost: a.example\r\n\r\n")
    assert held[-1].recv(100).startswith(b"HTTP/1.1 404 ")
    for one in held:
        one.close()
    site.until(0, "block_page")


def test_readiness_is_that_of_the_policy_the_upstreams_and_the_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    """503 without upstreams where the config says so, and while it stops; a refused reload leaves it ready."""

    def state(blockd: Blockd) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{blockd.admin}/readyz", timeout=5) as page:
                return page.status, json.loads(page.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    with Upstream(lambda query, asked: None) as silent:
        directory = tmp_path_factory.mktemp("ready")
        with Blockd(directory, [silent.address], admin={"ready_needs_upstream": True}) as blockd:
            status, said = state(blockd)
            assert (status, said["is_ready"], said["not_ready"]) == (200, True, [])
            deadline = time.monotonic() + 20
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                for at in itertools.count():
                    client.sendto(message(f"n{at}.example").to_wire(), ("127.0.0.1", blockd.port))
                    status, said = state(blockd)
                    if status == 503:
                        break
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                assert said["not_ready"] == ["no upstream is usable"]
                blockd.values["admin"]["ready_needs_upstream"] = False
                assert blockd.reload().returncode == 0
                assert state(blockd)[0] == 200
                blockd.values["policies"]["corporate"]["block"].append("no-such-app")
                assert blockd.reload().returncode == 1
                status, said = state(blockd)
                assert (status, said["is_ready"], said["config_in_force"]) == (200, True, False)
                # It waits for this one when it is told to stop.
                client.sendto(message("last.example").to_wire(), ("127.0.0.1", blockd.port))
                assert blockd.process is not None
                blockd.process.send_signal(signal.SIGTERM)
                while (found := state(blockd))[0] == 200:
                    assert time.monotonic() < deadline
                assert (found[0], found[1]["not_ready"]) == (503, ["blockd is stopping"])
