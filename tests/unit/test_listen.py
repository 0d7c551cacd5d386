"""Addresses to listen on: a host without IPv6, or without IPv4, serves on what it has."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import selectors
import socket
import subprocess
import sys
import urllib.request
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import ServerFactory

from blockd.transport.listen import ACCEPTS_AT_ONCE, listen_tcp, listen_unix
from blockd.transport.turns import EVENTS_AT_ONCE, PunctualReactor, ShortTurns
from tests.support.daemon import BLOCKD, Blockd
from tests.support.lan import Lan, run
from tests.support.upstream import Upstream

RECORDS = {"here.example": ["A 192.0.2.1"]}


def without(family: str) -> list[str]:
    """Give the words before a command by which it runs without an address family."""
    return [sys.executable, "-m", "tests.support.without_family", family]


def dig(blockd: Blockd, server: str, *prefix: str) -> str:
    """Ask for a local record, over UDP and TCP; give both answers."""
    question = ["dig", f"@{server}", "-p", str(blockd.port), "here.example", "A", "+short", "+tries=1", "+time=3"]
    return run(*prefix, *question) + run(*prefix, *question, "+tcp")


@pytest.mark.parametrize(("lacking", "server"), [("inet6", "127.0.0.1"), ("inet", "::1")])
def test_a_family_that_the_kernel_lacks_is_left_out(
    upstream: Upstream, tmp_path: Path, lacking: str, server: str
) -> None:
    """With a warning for each address; the other family serves, metrics and status included."""
    blockd = Blockd(tmp_path, [upstream.address], records=RECORDS)
    blockd.start(prefix=without(lacking))
    try:
        assert dig(blockd, server) == "192.0.2.1\n192.0.2.1\n"
        log = blockd.log.read_text()
        left_out = f"[::1]:{blockd.port}" if lacking == "inet6" else f"127.0.0.1:{blockd.port}"
        assert f"server.listen: {left_out} is left out: this host has no IPv" in log
        host = "127.0.0.1" if lacking == "inet6" else "[::1]"
        with urllib.request.urlopen(f"http://{host}:{blockd.admin}/healthz", timeout=5) as page:
            assert page.status == 200
        status = blockd.run("status", "--json").stdout
        assert left_out not in status
        assert f"{host}:{blockd.port}" in status
    finally:
        blockd.stop()
    blockd.values["server"]["listen"] = [left_out]
    blockd.write()
    done = subprocess.run(
        [*without(lacking), *BLOCKD, "serve", "--config", str(blockd.file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"{left_out} is left out" in done.stderr
    assert "name an address that this host has" in done.stderr


def test_a_host_whose_ipv6_is_turned_off_serves_by_ipv4(tmp_path: Path, upstream: Upstream) -> None:
    """By sysctl, as hosts turn it off: ::1 does not exist. An address that is only missing is an error still."""
    with Lan(tmp_path) as lan:
        inside = ["ip", "netns", "exec", lan.gateway]
        run(*inside, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        (tmp_path / "off").mkdir()
        blockd = Blockd(tmp_path / "off", [upstream.address], records=RECORDS)
        blockd.start(prefix=inside)
        try:
            assert dig(blockd, "127.0.0.1", *inside) == "192.0.2.1\n192.0.2.1\n"
            assert f"server.listen: [::1]:{blockd.port} is left out: this host has no IPv6" in blockd.log.read_text()
        finally:
            blockd.stop()
        blockd.values["server"]["listen"] = [f"127.0.0.1:{blockd.port}", f"10.99.99.99:{blockd.port}"]
        blockd.write()
        words = [*inside, *BLOCKD, "serve", "--config", str(blockd.file)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "this machine has no such address" in done.stderr


class Accepted(ServerFactory):
    """Counts connections, and takes none of them in."""

    noisy = False

    def __init__(self) -> None:
        """Start with none."""
        self.count = 0

    def buildProtocol(self, addr: object) -> None:
        """Refuse a connection."""
        self.count += 1


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_one_turn_accepts_few_connections(tmp_path: Path, family: socket.AddressFamily) -> None:
    """However many come, those who are connected already have their turn in between."""
    loop = asyncio.new_event_loop()
    reactor, accepted = PunctualReactor(loop), Accepted()
    place: Any = str(tmp_path / "socket")
    if family == socket.AF_UNIX:
        port = listen_unix(reactor, Path(place), accepted, 0o600)
    else:
        (port,) = listen_tcp(reactor, (ip_address("127.0.0.1"), 0), accepted, "server.listen")
        place = ("127.0.0.1", port.getHost().port)
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.socket(family)).connect(place)
        turns = []
        while accepted.count < 300:
            before = accepted.count
            port.doRead()
            turns.append(accepted.count - before)
    port.stopReading()
    port.socket.close()
    reactor.waker.connectionLost(None)
    loop.close()
    assert max(turns) <= ACCEPTS_AT_ONCE


def test_one_turn_serves_few_descriptors() -> None:
    """Of hundreds that are ready, each has its turn before any comes again."""
    with ShortTurns() as selector, contextlib.ExitStack() as stack:
        for _ in range(200):
            near, far = socket.socketpair()
            stack.enter_context(near)
            stack.enter_context(far).send(b"x")
            selector.register(near, selectors.EVENT_READ)
        turns = [[key.fd for key, _ in selector.select(0)] for _ in range(-(-200 // EVENTS_AT_ONCE))]
    assert max(map(len, turns)) <= EVENTS_AT_ONCE
    assert len({descriptor for turn in turns for descriptor in turn}) == 200


def test_timers_run_while_others_are_set_to_be_sooner() -> None:
    """Each turn of a busy server does that; Twisted's reactor alone runs no timer then."""
    loop = asyncio.new_event_loop()
    reactor: Any = PunctualReactor(loop)
    turns, late = itertools.count(), list[float]()
    began = reactor.seconds()
    reactor.callLater(0.02, lambda: late.append(reactor.seconds() - began))

    def turn() -> None:
        reactor.callLater(30, lambda: None).reset(2)
        if not late and next(turns) < 100_000 and reactor.seconds() - began < 2:
            loop.call_soon(turn)
        else:
            loop.stop()

    loop.call_soon(turn)
    loop.run_forever()
    reactor.waker.connectionLost(None)
    loop.close()
    assert late
    assert late[0] < 1
