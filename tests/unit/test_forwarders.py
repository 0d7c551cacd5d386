"""What a query says of who asked first: believed of a listed forwarder, ignored and counted of others."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.query
import dns.rcode
import pytest

from blockd.fastpath import proxy_header
from tests.conftest import Serve
from tests.support.daemon import Blockd
from tests.support.people import ALICE, CAROL, ask_as, socket_for_all
from tests.support.questions import CORPORATE, GUEST, PERSONAL
from tests.support.upstream import Upstream
from tests.unit.test_exemptions import EXEMPTIONS, soon, wish

FORWARDER, OTHER, PROXY = "127.0.0.9", "127.0.0.3", "127.0.0.10"
ALL = {"address": FORWARDER, "says": ["mac", "subnet", "proxy"]}
LAPTOP, PHONE = "02:16:3e:00:47:11", "02:16:3e:00:99:01"
NAME = "www.tiktok.com"


@pytest.fixture
def blockd(serve: Serve, upstream: Upstream, tmp_path: Path) -> Blockd:
    """Give a daemon that believes one forwarder, and knows a laptop by its MAC."""
    for name in (NAME, "fine.example"):
        upstream.records[name] = [f"{name}. 300 IN A 192.0.2.1"]
    (tmp_path / "devices.csv").write_text(f"mac,hostname,serial\n{LAPTOP},laptop-7,SER-4711\n")
    inventory = {"networks": ["127.0.0.1/32"], "inventory": [{"file": str(tmp_path / "devices.csv")}]}
    return serve(
        [upstream.address],
        server={"forwarders": [ALL, {"address": "::1", "says": ["proxy"]}, {"address": PROXY, "says": ["proxy"]}]},
        groups={"corporate": inventory},
        log={"format": "text"},
    )


def mac(text: str) -> dns.edns.GenericOption:
    """Write dnsmasq's option."""
    return dns.edns.GenericOption(dns.edns.OptionType.make(65_001), bytes.fromhex(text.replace(":", "")))


def asked(blockd: Blockd, source: str, *options: dns.edns.Option, name: str = NAME, **more: Any) -> str:
    """Ask with options; give the response code."""
    query = dns.message.make_query(name, "A", use_edns=0, options=list(options))
    where = {"port": blockd.port, "source": source, "timeout": 5.0, **more}
    return dns.rcode.to_text(dns.query.udp(query, "127.0.0.1", **where).rcode())


def counts(blockd: Blockd) -> dict[tuple[str, str], float]:
    """Give what was conveyed, by outcome and kind."""
    kinds = [(outcome, kind) for outcome in ("believed", "ignored") for kind in ("mac", "subnet", "proxy")]
    found = {(o, k): blockd.metric("blockd_conveyed_total", outcome=o, kind=k) for o, k in kinds}
    return {key: value for key, value in found.items() if value}


def test_a_listed_forwarder_is_believed_and_nobody_else(blockd: Blockd, upstream: Upstream) -> None:
    """A MAC, a subnet, both; a MAC that nobody knows leaves the address to decide. Nothing goes upstream."""
    personal, corporate = dns.edns.ECSOption(PERSONAL, 32), dns.edns.ECSOption(CORPORATE, 32)
    assert asked(blockd, FORWARDER) == "NOERROR", "the forwarder itself is nobody in particular"
    assert asked(blockd, FORWARDER, mac(LAPTOP)) == "NXDOMAIN"
    assert asked(blockd, FORWARDER, mac(PHONE)) == "NOERROR"
    assert asked(blockd, FORWARDER, corporate) == "NXDOMAIN"
    assert asked(blockd, FORWARDER, personal) == "NOERROR"
    assert asked(blockd, FORWARDER, mac(PHONE), corporate) == "NXDOMAIN"
    assert asked(blockd, FORWARDER, mac(LAPTOP), personal) == "NXDOMAIN"
    assert counts(blockd) == {("believed", "mac"): 4, ("believed", "subnet"): 4}
    # A corporate device that says it is somebody else, and a stranger that says it is one.
    assert asked(blockd, CORPORATE, mac(PHONE), personal) == "NXDOMAIN"
    assert asked(blockd, OTHER, mac(LAPTOP), corporate) == "NOERROR"
    assert counts(blockd)["ignored", "mac"] == counts(blockd)["ignored", "subnet"] == 2
    asked(blockd, OTHER, mac(LAPTOP), corporate, name="fine.example")
    assert upstream.asked
    for one in upstream.asked:
        assert not dns.message.from_wire(one.wire).options, "what a client says of itself is not passed on"
    assert f"by {LAPTOP}" not in blockd.log.read_text()
    assert f"for {LAPTOP} by {FORWARDER} (corporate)" in blockd.log.read_text()


def header(source: str, kind: int = 0x12) -> bytes:
    """Write a PROXY header of version 2."""
    parts = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 50_000, 53)
    return b"\r\n\r\n\0\r\nQUIT\n" + bytes([0x21, kind]) + struct.pack("!H", len(parts)) + parts


def proxied(blockd: Blockd, source: str, said: str) -> str | None:
    """Ask by UDP with a header; None when nobody answers."""
    query = dns.message.make_query(NAME, "A")
    with socket.socket(type=socket.SOCK_DGRAM) as way:
        way.bind((source, 0))
        way.settimeout(1.5)
        way.sendto(header(said) + query.to_wire(), ("127.0.0.1", blockd.port))
        try:
            reply = dns.message.from_wire(way.recv(4096))
        except TimeoutError:
            return None
    assert reply.id == query.id
    return dns.rcode.to_text(reply.rcode())


def proxied_stream(blockd: Blockd, source: str, said: str, pieces: int) -> str | None:
    """Ask by TCP with a header, in pieces; None when the connection ends."""
    wire = dns.message.make_query(NAME, "A").to_wire()
    data = header(said, 0x11) + struct.pack("!H", len(wire)) + wire
    with socket.create_connection(("127.0.0.1", blockd.port), 5, (source, 0)) as way:
        step = len(data) // pieces + 1
        try:
            for at in range(0, len(data), step):
                way.sendall(data[at : at + step])
            length = way.recv(2)
            return dns.rcode.to_text(dns.message.from_wire(way.recv(4096)).rcode()) if length else None
        except ConnectionError:
            return None


def test_a_proxy_header_is_believed_of_a_listed_forwarder(blockd: Blockd) -> None:
    """Over UDP and TCP, in any pieces; of others it is no query."""
    assert proxied(blockd, FORWARDER, CORPORATE) == "NXDOMAIN"
    assert proxied(blockd, FORWARDER, PERSONAL) == "NOERROR"
    assert proxied(blockd, CORPORATE, PERSONAL) is None
    assert blockd.metric("blockd_dropped_total", reason="forged") == 1
    for pieces in (1, 2, 5, 30):
        assert proxied_stream(blockd, FORWARDER, CORPORATE, pieces) == "NXDOMAIN"
        assert proxied_stream(blockd, FORWARDER, PERSONAL, pieces) == "NOERROR"
    assert proxied_stream(blockd, CORPORATE, PERSONAL, 1) is None
    assert blockd.metric("blockd_tcp_closed_total", reason="forged") == 1
    held = [socket.create_connection(("127.0.0.1", blockd.port), 5, (FORWARDER, 0)) for _ in range(64)]
    for one in held:
        one.sendall(header(GUEST, 0x11))
    assert proxied_stream(blockd, FORWARDER, GUEST, 1) is None, (
        "a device behind it has no more connections than another"
    )
    assert proxied_stream(blockd, FORWARDER, PERSONAL, 1) == "NOERROR"
    for one in held:
        one.close()
    # A forwarder may also ask as others do.
    assert asked(blockd, FORWARDER) == "NOERROR"
    assert dns.query.tcp(dns.message.make_query(NAME, "A"), "127.0.0.1", 5, blockd.port, source=FORWARDER).rcode() == 0
    assert proxy_header(header(CORPORATE) + b"x") == (28, CORPORATE)
    assert proxy_header(header(CORPORATE)[:20]) is None


def test_a_forwarder_says_what_it_is_listed_for(blockd: Blockd) -> None:
    """What a client behind it wrote is not its word: other kinds, what is behind a header, what is there twice."""
    corporate, personal = dns.edns.ECSOption(CORPORATE, 32), dns.edns.ECSOption(PERSONAL, 32)
    assert asked(blockd, PROXY, corporate) == asked(blockd, PROXY, mac(LAPTOP)) == "NOERROR"
    assert counts(blockd) == {("ignored", "mac"): 1, ("ignored", "subnet"): 1}
    query = dns.message.make_query(NAME, "A", use_edns=0, options=[mac(PHONE), personal])
    for source in (PROXY, FORWARDER):
        with socket.socket(type=socket.SOCK_DGRAM) as way:
            way.bind((source, 0))
            way.settimeout(5)
            way.sendto(header(CORPORATE) + query.to_wire(), ("127.0.0.1", blockd.port))
            assert dns.message.from_wire(way.recv(4096)).rcode() == dns.rcode.NXDOMAIN, source
    for twice in ([mac(PHONE), mac(LAPTOP)], [personal, corporate]):
        assert asked(blockd, FORWARDER, *twice) == "FORMERR"


def test_limits_are_each_clients_and_a_forwarder_has_one_of_its_own(serve: Serve, upstream: Upstream) -> None:
    """One that floods through a forwarder takes nothing from another; all of them together have a ceiling."""
    upstream.records[NAME] = [f"{NAME}. 300 IN A 192.0.2.1"]
    limits = {"client_rate": 1, "client_burst": 5, "forwarders": [ALL], "forwarder_rate": 40}
    blockd = serve([upstream.address], server=limits)

    def flood(source: str, count: int) -> int:
        query = dns.message.make_query(NAME, "A", use_edns=0, options=[dns.edns.ECSOption(source, 32)]).to_wire()
        answered = 0
        with socket.socket(type=socket.SOCK_DGRAM) as way:
            way.bind((FORWARDER, 0))
            way.settimeout(0.5)
            for at in range(count):
                way.sendto(at.to_bytes(2, "big") + query[2:], ("127.0.0.1", blockd.port))
            try:
                while way.recv(4096):
                    answered += 1
            except TimeoutError:
                pass
        return answered

    assert 5 <= flood(PERSONAL, 20) <= 8
    assert 5 <= flood(GUEST, 10) <= 8
    assert blockd.metric("blockd_dropped_total", reason="client_rate") > 10
    flood(CORPORATE, 200)
    assert blockd.metric("blockd_dropped_total", reason="forwarder_rate") > 100


def over_tcp(blockd: Blockd, source: str, before: bytes, *queries: bytes) -> list[int]:
    """Send messages behind what comes before the first; give the response codes until the connection or a wait ends."""
    codes: list[int] = []
    with socket.create_connection(("127.0.0.1", blockd.port), timeout=2, source_address=(source, 0)) as way:
        way.sendall(before + b"".join(len(query).to_bytes(2, "big") + query for query in queries))
        reader = way.makefile("rb")
        try:
            while head := reader.read(2):
                codes.append(int(dns.message.from_wire(reader.read(int.from_bytes(head, "big"))).rcode()))
        except (TimeoutError, ConnectionResetError):
            pass
    return codes


def test_over_tcp_a_forwarder_is_what_it_is_over_udp(serve: Serve, upstream: Upstream) -> None:
    """Options behind a header are a client's own; a header inside a message is none; there is one ceiling."""
    upstream.records[NAME] = [f"{NAME}. 300 IN A 192.0.2.1"]
    limits = {"client_rate": 10_000, "client_burst": 10_000, "forwarders": [ALL], "forwarder_rate": 100}
    blockd = serve([upstream.address], server=limits)
    plain = dns.message.make_query(NAME, "A").to_wire()
    sly = dns.message.make_query(NAME, "A", use_edns=0, options=[dns.edns.ECSOption(PERSONAL, 32)]).to_wire()
    assert over_tcp(blockd, FORWARDER, header(CORPORATE), plain) == [dns.rcode.NXDOMAIN]
    assert over_tcp(blockd, FORWARDER, header(PERSONAL), plain) == [dns.rcode.NOERROR]
    assert over_tcp(blockd, FORWARDER, header(CORPORATE), sly) == [dns.rcode.NXDOMAIN]
    assert over_tcp(blockd, FORWARDER, b"", header(PERSONAL) + plain) != [dns.rcode.NOERROR]
    assert blockd.metric("blockd_conveyed_total", outcome="believed", kind="proxy") == 3
    queries = [at.to_bytes(2, "big") + plain[2:] for at in range(120)]
    answered = [len(over_tcp(blockd, FORWARDER, header(PERSONAL), *queries)) for _ in range(3)]
    assert sum(answered) < 320, answered
    assert blockd.metric("blockd_dropped_total", reason="forwarder_rate") > 30


def test_an_exemption_holds_for_a_mac_that_is_conveyed(serve: Serve, upstream: Upstream, tmp_path: Path) -> None:
    """The device of an inventory, by the MAC that its forwarder gives; not where it has to be in a network."""
    upstream.records[NAME] = [f"{NAME}. 300 IN A 192.0.2.1"]
    (tmp_path / "devices.csv").write_text(f"mac,hostname,serial\n{LAPTOP},laptop-7,SER-4711\n")
    inventory = {"networks": ["127.0.0.1/32"], "inventory": [{"file": str(tmp_path / "devices.csv")}]}
    with socket_for_all() as place:
        blockd = serve(
            [upstream.address],
            admin={"socket": str(place)},
            server={"forwarders": [ALL]},
            groups={"corporate": inventory},
            exemptions={**EXEMPTIONS, "sets": {}},
        )
        assert asked(blockd, FORWARDER, mac(LAPTOP)) == "NXDOMAIN"
        for networks, code in ((["10.0.0.0/8"], "NXDOMAIN"), ([], "NOERROR")):
            values = wish(networks=networks, expires_at=soon(days=5))
            name = ask_as(CAROL, place, "request", **values)["exemption"]["name"]
            assert ask_as(ALICE, place, "approve", exemption=name)["ok"]
            assert asked(blockd, FORWARDER, mac(LAPTOP)) == code
        assert asked(blockd, FORWARDER, mac(PHONE)) == "NOERROR"
        assert ask_as(ALICE, place, "revoke", exemption=name, reason="over")["ok"]
        assert asked(blockd, FORWARDER, mac(LAPTOP)) == "NXDOMAIN"
        blockd.stop()


def test_who_asks_for_very_many_names_is_likely_a_forwarder(serve: Serve, upstream: Upstream) -> None:
    """Told once, by its network where devices are not logged; not who asks one name often, nor one listed."""
    limits = {"client_rate": 100_000, "client_burst": 100_000, "forwarders": [ALL], "threads": 1}
    blockd = serve([upstream.address], server=limits)

    def ask_for(names: int, source: str, queries: int = 6_000) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as way:
            way.bind((source, 0))
            for at in range(queries):
                query = dns.message.make_query(f"n{at % names}.tiktok.com", "A")
                way.sendto(query.to_wire(), ("127.0.0.1", blockd.port))
                if at % 100 == 0:
                    time.sleep(0.01)

    for source, names in ((CORPORATE, 6_000), (PERSONAL, 6_000), (FORWARDER, 6_000), ("127.0.0.8", 3)):
        ask_for(names, source)
    shown = blockd.run("devices").stdout
    assert f"likely a forwarder, and not listed under server.forwarders: {CORPORATE} (corporate)" in shown
    assert "somebody in 127.0.0.0/24 (personal)" in shown
    assert PERSONAL not in shown
    assert shown.count("likely a forwarder") == 2, shown
    assert blockd.metric("blockd_likely_forwarders") == 2
    ask_for(6_000, CORPORATE)
    assert blockd.run("devices").stdout == shown
    text = blockd.log.read_text()
    assert text.count(f"{CORPORATE} (corporate) asked for very many names") == 1
    assert f"{PERSONAL} (" not in text


def test_a_forwarder_is_an_address(serve: Serve, upstream: Upstream) -> None:
    """And no network: whoever is in it could say that he is anybody; a reload takes the list in."""
    blockd = serve([upstream.address])
    blockd.values["server"]["forwarders"] = [{"address": "127.0.0.0/8", "says": ["mac"]}]
    failed = blockd.reload()
    assert failed.returncode == 1
    assert "server.forwarders" in failed.stderr
    assert "expected one address, and found 127.0.0.0/8" in failed.stderr
    upstream.records[NAME] = [f"{NAME}. 300 IN A 192.0.2.1"]
    assert asked(blockd, FORWARDER, dns.edns.ECSOption(CORPORATE, 32)) == "NOERROR"
    blockd.values["server"]["forwarders"] = [ALL]
    assert blockd.reload().returncode == 0
    assert asked(blockd, FORWARDER, dns.edns.ECSOption(CORPORATE, 32)) == "NXDOMAIN"
