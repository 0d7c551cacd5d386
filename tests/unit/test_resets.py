"""Clients that reset their connections after data: on every listener, none stays open, and nothing raises."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import pytest
import trustme

from tests.support.daemon import Blockd, free_port
from tests.support.questions import CORPORATE, PERSONAL, addresses, ask, message, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer

RESETS = 200


def slow(query: dns.message.Message, asked: Asked) -> Reply:
    """Answer names that begin with `late` only when their client has gone."""
    if asked.name.startswith("late"):
        time.sleep(0.2)
    return answer(query, f"{asked.name}. 60 IN A 192.0.2.1")


class Site:
    """A daemon with every kind of listener that there is."""

    def __init__(self, directory: Path, upstream: Upstream) -> None:
        """Start it."""
        self.page, self.transfer, self.firewalls = free_port(), free_port(), free_port()
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(directory / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(directory / "certificate.pem")
        authority.cert_pem.write_to_path(directory / "authority.pem")
        zone = {"zone": "corporate.test", "secondaries": [{"address": "127.0.0.9:53", "notify": False}]}
        self.blockd = Blockd(
            directory,
            [upstream.address],
            server={"tcp": {"idle": 60.0, "connections_a_client": 1_000}, "client_rate": 100_000},
            block_page={"listen": [f"127.0.0.1:{self.page}"]},
            transfer={"listen": [f"127.0.0.1:{self.transfer}"], "zones": {"corporate": zone}},
            egress={
                "enabled": True,
                "socket": "egress.sock",
                "listen": f"127.0.0.1:{self.firewalls}",
                "certificate": "certificate.pem",
                "key": "key.pem",
                "authority": "authority.pem",
            },
        ).start()

    def sockets(self) -> int:
        """Count the open sockets of the daemon and its processes, without those of UDP, which come and go."""
        assert self.blockd.process is not None
        pid = self.blockd.process.pid
        rows = [Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:] for table in ("udp", "udp6")]
        datagrams = {row.split()[9] for table in rows for row in table}
        return len({inode for one in _family(pid) for inode in _inodes(one)} - datagrams)

    def is_empty(self, before: int) -> bool:
        """Whether no more sockets are open than before, and no connection is counted.

        Those that wait to be accepted come before the request for metrics; it may be turned away among them.
        """
        try:
            counted = self.blockd.metric("blockd_tcp_connections")
        except OSError:
            return False
        return counted == 0 and self.sockets() <= before


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Share one daemon: every test leaves it as it was."""
    with Upstream(slow) as upstream:
        made = Site(tmp_path_factory.mktemp("resets"), upstream)
        yield made
        made.blockd.stop()


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in _family(int(child)))]


def _inodes(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                kind, _, inode = os.readlink(descriptor).removesuffix("]").partition(":[")
                if kind == "socket":
                    yield inode


def framed(name: str) -> bytes:
    """Make a query as it is sent over TCP."""
    wire = message(name).to_wire()
    return struct.pack("!H", len(wire)) + wire


def tcp(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Connect, so that closing is a reset."""
    one = socket.create_connection((host, port), timeout=5)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return one


def local(path: Path) -> socket.socket:
    """Connect to a socket of this machine."""
    one = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + 5
    while one.connect_ex(str(path)):
        # Its backlog is full for a moment.
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return one


GET = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CASES: dict[str, tuple[Callable[[Site], socket.socket], bytes]] = {
    "dns-late-answer": (lambda s: tcp(s.blockd.port), framed("late.example")),
    "dns-ready-answer": (lambda s: tcp(s.blockd.port, "::1"), framed("tiktok.com") * 3),
    "dns-part-of-a-query": (lambda s: tcp(s.blockd.port), framed("tiktok.com")[:9]),
    "admin-request": (lambda s: tcp(s.blockd.admin), GET),
    "admin-part-of-a-request": (lambda s: tcp(s.blockd.admin), GET[:20]),
    "block-page": (lambda s: tcp(s.page), b"GET / HTTP/1.1\r\nHost: tiktok.com\r\n\r\n"),
    "block-page-post": (lambda s: tcp(s.page), b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9\r\n\r\n1"),
    "control-command": (lambda s: local(s.blockd.directory / "control.sock"), b'{"command": "status"}\n'),
    "control-part-of-a-command": (lambda s: local(s.blockd.directory / "control.sock"), b'{"command'),
    "firewall-socket": (lambda s: local(s.blockd.directory / "egress.sock"), b'{"done": 0}\n'),
    "firewall-handshake": (lambda s: tcp(s.firewalls), b"\x16\x03\x01\x02\x00\x01"),
    "transfer": (lambda s: tcp(s.transfer), framed("corporate.test")),
}


@pytest.mark.parametrize("case", CASES)
def test_connections_that_are_reset_are_forgotten(site: Site, case: str) -> None:
    """200 of them, long before any idle time ends; whoever comes next is served."""
    connect, data = CASES[case]
    before = site.sockets()
    for _ in range(RESETS):
        # A listener may turn the next one away while it is busy with those before: that is a close, too.
        with contextlib.suppress(ConnectionError), connect(site) as one:
            one.sendall(data)
    deadline = time.monotonic() + 8
    while not site.is_empty(before):
        assert time.monotonic() < deadline, f"{site.sockets() - before} connections are still open"
        time.sleep(0.05)
    assert site.blockd.metric("blockd_internal_errors_total") == 0
    assert "Traceback" not in site.blockd.log.read_text()
    assert rcode(ask(site.blockd, "tiktok.com", client=CORPORATE, tcp=True)) == "NXDOMAIN"
    assert site.blockd.run("status").returncode == 0


def test_others_in_the_same_batch_have_their_answers(site: Site) -> None:
    """Clients that went away and clients that stay wait for the same upstream: those that stay are answered."""
    gone = [tcp(site.blockd.port) for _ in range(20)]
    for one in gone:
        one.sendall(framed("late-gone.example"))
    stay = [tcp(site.blockd.port) for _ in range(5)]
    for one in stay:
        one.sendall(framed("late-stays.example"))
    for one in gone:
        one.close()
    for one in stay:
        assert len(one.recv(65535)) > 12
        one.close()
    assert addresses(ask(site.blockd, "after.example", client=PERSONAL)) == ["192.0.2.1"]
    assert site.blockd.metric("blockd_internal_errors_total") == 0
