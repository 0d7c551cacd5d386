"""The way to an upstream server: scopes of link-local addresses, no route, links that are down, what is refused."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import pytest

from tests.support.daemon import Blockd
from tests.support.lan import Lan, inside, run
from tests.support.questions import PERSONAL, addresses, ask, ede, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer

LINK_LOCAL, GLOBAL = "fe80::53", "10.9.0.53"


def any_address(query: dns.message.Message, asked: Asked) -> Reply:
    """Answer every A question; what is big comes over TCP alone."""
    wire = bytearray(answer(query, f"{asked.name}. 0 IN A 192.0.2.1"))
    if asked.name.startswith("big") and not asked.tcp:
        wire[2] |= 2
    return bytes(wire)


class Site:
    """A machine that runs the daemon, and behind a link of its own the router that has the upstream server."""

    def __init__(self, lan: Lan) -> None:
        self.machine, self.router = lan.gateway, lan.space()
        self.names = iter(range(1_000))
        self.connect()

    def connect(self) -> None:
        """Make the link, with new numbers of its interfaces."""
        run(
            "ip",
            "-n",
            self.machine,
            "link",
            "add",
            "up0",
            "type",
            "veth",
            "peer",
            "name",
            "down0",
            "netns",
            self.router,
        )
        for space, device, addresses_of in (
            (self.machine, "up0", ("10.9.0.1/24", "fe80::1/64")),
            (self.router, "down0", (f"{GLOBAL}/24", f"{LINK_LOCAL}/64")),
        ):
            for address in addresses_of:
                nodad = ["nodad"] if ":" in address else []
                run("ip", "-n", space, "address", "add", address, "dev", device, *nodad)
            run("ip", "-n", space, "link", "set", device, "up")
        # A neighbour that is silent is given up after three questions, one a second.
        run("ip", "-n", self.machine, "neigh", "flush", "dev", "up0")

    def set(self, space: str, device: str, state: str) -> None:
        """Turn an interface up or down."""
        run("ip", "-n", space, "link", "set", device, state)

    def asks(self, blockd: Blockd) -> dns.message.Message:
        """Ask a question that is not cached."""
        with inside(self.machine):
            return ask(blockd, f"n{next(self.names)}.example", client=PERSONAL)

    def ready(self, blockd: Blockd) -> list[str]:
        """Give the upstream servers that are of no use."""
        with inside(self.machine):
            dead: list[str] = blockd.ready()["dead_upstreams"]
            return dead

    def state(self, blockd: Blockd, server: str) -> str:
        """Give the state of a server, as metrics have it."""
        with inside(self.machine):
            found = [
                row for row, value in blockd.metrics().items() if server in row and "_state{" in row and value == 1
            ]
        return found[0].split('state="')[1].split('"')[0]


def until(check: Callable[[], bool], seconds: float, text: str, between: Callable[[], object] | None = None) -> None:
    """Wait for something, and do something else meanwhile."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, text
        if between is not None:
            between()
        time.sleep(0.1)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Give a machine and a router."""
    with Lan(tmp_path) as lan:
        yield Site(lan)


def start(site: Site, tmp_path: Path, servers: list[str]) -> Blockd:
    """Run the daemon on the machine."""
    directory = tmp_path / "blockd"
    directory.mkdir()
    return Blockd(directory, servers).start(prefix=["ip", "netns", "exec", site.machine])


def test_a_link_local_server_is_asked_by_its_interface(site: Site, tmp_path: Path) -> None:
    """By name and number, over UDP and TCP, also after the interface was made anew; one that is gone is an error."""
    with inside(site.router):
        first = Upstream(any_address, host=f"{LINK_LOCAL}%down0")
    with first:
        server = f"[{LINK_LOCAL}%up0]:{first.port}"
        blockd = start(site, tmp_path, [server])
        try:
            assert addresses(site.asks(blockd)) == ["192.0.2.1"]
            with inside(site.machine):
                assert addresses(ask(blockd, "big.example", client=PERSONAL, tcp=True)) == ["192.0.2.1"]
                index = socket.if_nametoindex("up0")
                assert blockd.metric("blockd_upstream_server_answers_total", server=server) == 2
            blockd.values["upstream"]["servers"] = [f"[{LINK_LOCAL}%{index}]:{first.port}"]
            assert blockd.reload().returncode == 0
            assert addresses(site.asks(blockd)) == ["192.0.2.1"]
            blockd.values["upstream"]["servers"] = [server, f"[{LINK_LOCAL}%gone0]:53"]
            refused = blockd.reload()
            assert refused.returncode == 1
            line = next(at for at, text in enumerate(blockd.file.read_text().splitlines(), 1) if "gone0" in text)
            assert f"blockd.yaml:{line}: upstream.servers.1: " in refused.stdout + refused.stderr
            assert 'there is no interface "gone0"' in refused.stdout + refused.stderr
            blockd.values["upstream"]["servers"] = [server]
            assert blockd.reload().returncode == 0
            run("ip", "-n", site.machine, "link", "delete", "up0")
            until(lambda: site.state(blockd, "up0") == "unreachable", 5, "the interface is gone")
            got = site.asks(blockd)
            assert (rcode(got), [code for code, _ in ede(got)]) == ("SERVFAIL", [23])
            # Another number than before: the loopback interface and the bridge are not all there is by then.
            run("ip", "-n", site.machine, "link", "add", "other0", "type", "bridge")
            site.connect()
            with inside(site.router):
                second = Upstream(any_address, host=f"{LINK_LOCAL}%down0", port=first.port)
            with second:
                until(lambda: rcode(site.asks(blockd)) == "NOERROR", 5, "found by its new number")
                until(lambda: site.state(blockd, "up0") == "up", 5, "well again")
                with inside(site.machine):
                    assert socket.if_nametoindex("up0") != index
        finally:
            blockd.stop()


def test_what_cannot_be_reached_is_said_within_seconds_and_so_is_its_return(site: Site, tmp_path: Path) -> None:
    """Each in turn: the link is down, there is no route, a firewall refuses, nothing listens, the cable is pulled."""
    with inside(site.router):
        upstream = Upstream(any_address, host=GLOBAL)
    refuse = ["nft", "add table ip t; add chain ip t out { type filter hook output priority 0; }; "]
    refuse[1] += f"add rule ip t out ip daddr {GLOBAL} drop"
    machine = ["ip", "netns", "exec", site.machine]
    blackhole = ["ip", "-n", site.machine, "route", "replace", "unreachable", f"{GLOBAL}/32"]
    faults: dict[str, tuple[Callable[[], object], Callable[[], object], bool, str]] = {
        "link down": (
            lambda: site.set(site.machine, "up0", "down"),
            lambda: site.set(site.machine, "up0", "up"),
            False,
            "Network is unreachable",
        ),
        "no route": (
            lambda: run(*blackhole),
            lambda: run("ip", "-n", site.machine, "route", "delete", "unreachable", f"{GLOBAL}/32"),
            False,
            "No route to host",
        ),
        "refused by a firewall": (
            lambda: run(*machine, *refuse),
            lambda: run(*machine, "nft", "delete table ip t"),
            True,
            "Operation not permitted",
        ),
        "no neighbour": (
            lambda: site.set(site.router, "down0", "down"),
            lambda: site.set(site.router, "down0", "up"),
            True,
            "",
        ),
    }
    with upstream:
        blockd = start(site, tmp_path, [upstream.address])
        try:
            assert addresses(site.asks(blockd)) == ["192.0.2.1"]
            assert blockd.run("status").returncode == 0

            def has_lines(text: str, count: int) -> bool:
                return blockd.log.read_text().count(text) == count

            for lines, (name, (fault, mend, needs_query, error)) in enumerate(faults.items(), 1):
                fault()
                question = (lambda: site.asks(blockd)) if needs_query else None
                is_found = lambda: site.state(blockd, GLOBAL) == "unreachable"  # noqa: E731
                until(is_found, 8, name, question)
                assert site.ready(blockd) == [upstream.address], name
                for _ in range(3):
                    assert rcode(site.asks(blockd)) == "SERVFAIL", name
                status = blockd.run("status")
                assert status.returncode == 1, name
                assert f"upstream {upstream.address} cannot be reached: {error}" in status.stdout, name
                mend()
                until(lambda: site.ready(blockd) == [], 6, f"{name}: well again")
                assert addresses(site.asks(blockd)) == ["192.0.2.1"], name
                until(functools.partial(has_lines, "is well again", lines), 2, name)
                assert blockd.log.read_text().count("cannot be reached (") == lines, name
        finally:
            blockd.stop()


def test_a_server_where_nothing_listens_is_unreachable(site: Site, tmp_path: Path) -> None:
    """The router says so by ICMP; when the server is started, it is used within seconds."""
    with inside(site.router):
        upstream = Upstream(any_address, host=GLOBAL)
    port = upstream.port
    with upstream:
        pass
    server = f"{GLOBAL}:{port}"
    blockd = start(site, tmp_path, [server])
    try:
        until(lambda: site.state(blockd, GLOBAL) == "unreachable", 6, "port", lambda: site.asks(blockd))
        text = f"upstream {server} cannot be reached (Connection refused)"
        until(lambda: text in blockd.log.read_text(), 2, text)
        with inside(site.router):
            again = Upstream(any_address, host=GLOBAL, port=port)
        with again:
            until(lambda: site.ready(blockd) == [], 6, "well again")
            assert addresses(site.asks(blockd)) == ["192.0.2.1"]
    finally:
        blockd.stop()
