"""An app's IPv4 networks are recognised behind NAT64 prefixes, of the config and of upstream servers."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import dns.message
import pytest
from pydantic import BaseModel, ValidationError

from blockd.endpoint import Endpoint
from blockd.resolver.nat64 import KEEP_SECONDS, MAX_OF_A_SERVER, Discovery, ipv4_inside, prefixes_in, read_answer
from blockd.settings.upstreams import Nat64Prefix
from tests.conftest import Serve
from tests.support.questions import CORPORATE, PERSONAL, ask, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer

BAD, GOOD = IPv4Address("198.51.100.7"), IPv4Address("203.0.113.7")
CHAT = {"suffixes": ["chat.example"], "networks": ["198.51.100.0/24"]}
PREFIXES = [
    IPv6Network(text)
    for text in (
        "2001:db8:64::/96",
        "2001:db8:65:1::/64",
        "2001:db8:66:100::/56",
        "2001:db8:67::/48",
        "2001:db9:6800::/40",
        "2001:dba::/32",
    )
]
LOCAL_USE = [
    IPv6Network(text) for text in ("64:ff9b:1::/48", "64:ff9b:1:4200::/56", "64:ff9b:1:7::/64", "64:ff9b:1:fffe::/96")
]


def written(prefix: IPv6Network, ipv4: IPv4Address) -> IPv6Address:
    """Write an IPv4 address behind a prefix, bits 64 to 71 zero (RFC 6052 2.2)."""
    if prefix.prefixlen == 96:
        return IPv6Address(int(prefix.network_address) | int(ipv4))
    octets = prefix.network_address.packed[: prefix.prefixlen // 8] + ipv4.packed
    octets = octets[:8] + b"\0" + octets[8:]
    return IPv6Address(octets.ljust(16, b"\0"))


class Dns64:
    """A server whose names say which address they have."""

    def __init__(self) -> None:
        self.addresses: dict[str, IPv6Address] = {}

    def name(self, label: str, address: IPv6Address) -> str:
        """Give a name that has this address."""
        self.addresses[f"{label}.example"] = address
        return f"{label}.example"

    def __call__(self, query: dns.message.Message, asked: Asked) -> Reply:
        """Answer AAAA and HTTPS."""
        address = self.addresses[asked.name]
        if asked.qtype == "HTTPS":
            return answer(query, f"{asked.name}. 60 IN HTTPS 1 . alpn=h2 ipv6hint={address}")
        return answer(query, f"{asked.name}. 60 IN AAAA {address}")


def test_prefixes_of_the_config_and_of_rfc_8215_in_every_length(serve: Serve) -> None:
    """AAAA and ipv6hint; other addresses of the prefix pass, and so do other prefixes, and other groups."""
    script = Dns64()
    with Upstream(script) as upstream:
        named = {"servers": [upstream.address], "nat64_prefixes": [str(prefix) for prefix in PREFIXES]}
        blockd = serve(
            [upstream.address], apps={"chat": CHAT}, upstream=named, policies={"corporate": {"block": ["chat"]}}
        )
        for at, prefix in enumerate([*PREFIXES, *LOCAL_USE, IPv6Network("64:ff9b::/96")]):
            bad, good = (script.name(f"{what}{at}", written(prefix, ip)) for what, ip in (("bad", BAD), ("good", GOOD)))
            for qtype in ("AAAA", "HTTPS"):
                assert rcode(ask(blockd, bad, qtype, client=CORPORATE)) == "NXDOMAIN", (prefix, qtype)
                assert ask(blockd, bad, qtype, client=PERSONAL).answer, (prefix, qtype)
                assert ask(blockd, good, qtype, client=CORPORATE).answer, (prefix, qtype)
        elsewhere = script.name("elsewhere", written(IPv6Network("2001:db8:99::/96"), BAD))
        assert ask(blockd, elsewhere, "AAAA", client=CORPORATE).answer
        assert blockd.metric("blockd_nat64_prefix", source="config") == len(PREFIXES)


def test_prefixes_are_learned_and_kept(serve: Serve) -> None:
    """What is cached obeys, a reload forgets nothing, and neither does a server that falls silent; zones see it too."""
    script, prefix = Dns64(), IPv6Network("2001:db8:71:5::/64")
    with Upstream(script) as upstream:
        bad, listed = script.name("bad", written(prefix, BAD)), script.name("listed", written(prefix, GOOD))
        apps = {"chat": CHAT, "zone": {"suffixes": ["zone.example"]}}
        blockd = serve([upstream.address], apps=apps, policies={"corporate": {"block": ["chat", "zone"]}})
        assert ask(blockd, bad, "AAAA", client=CORPORATE).answer
        (blockd.directory / "apps" / "zone.rpz").write_text(
            "@ 60 SOA localhost. host.localhost. 1 60 60 60 60\n@ 60 NS localhost.\n32.7.113.0.203.rpz-ip CNAME .\n"
        )
        blockd.write_app("zone", lists=[{"file": "zone.rpz", "format": "rpz"}])
        assert blockd.reload().returncode == 0
        upstream.nat64 = [str(written(prefix, IPv4Address(f"192.0.0.{last}"))) for last in (170, 171)]
        blockd.stop()
        blockd.start()
        assert ask(blockd, bad, "AAAA", client=PERSONAL).answer
        deadline = time.monotonic() + 8
        while rcode(ask(blockd, bad, "AAAA", client=CORPORATE)) != "NXDOMAIN":
            assert time.monotonic() < deadline, "what is cached obeys as soon as the prefix is known"
            time.sleep(0.05)
        assert rcode(ask(blockd, listed, "AAAA", client=CORPORATE)) == "NXDOMAIN"
        assert ask(blockd, listed, "AAAA", client=PERSONAL).answer
        assert blockd.metric("blockd_nat64_prefix", prefix=str(prefix), source="upstream") == 1
        assert f"{prefix} (upstream)" in blockd.run("status").stdout
        blockd.values["answers"]["ttl"] = 77
        assert blockd.reload().returncode == 0
        assert rcode(ask(blockd, bad, "AAAA", client=CORPORATE)) == "NXDOMAIN"
        blockd.values["upstream"]["nat64_discovery"] = False
        assert blockd.reload().returncode == 0
        deadline = time.monotonic() + 5
        while not ask(blockd, bad, "AAAA", client=CORPORATE).answer:
            assert time.monotonic() < deadline, "turned off, it is forgotten"
            time.sleep(0.05)


class Value(BaseModel):
    """A key of the config."""

    prefix: Nat64Prefix


@pytest.mark.parametrize(
    "text", ["2001:db8::/33", "2001:db8::/128", "2001:db8::1/96", "10.0.0.0/8", "2001:db8:0:0:100::/96", "x", ""]
)
def test_what_is_no_prefix_is_refused(text: str) -> None:
    """By RFC 6052 2.2: six lengths, nothing behind them, zero at bits 64 to 71."""
    with pytest.raises(ValidationError):
        Value(prefix=text)


def test_every_length_is_found_in_an_answer() -> None:
    """By either of the well-known addresses."""
    for prefix in PREFIXES:
        for last in (170, 171):
            address = written(prefix, IPv4Address(f"192.0.0.{last}"))
            assert ipv4_inside(address, prefix.prefixlen) == IPv4Address(f"192.0.0.{last}")
            assert prefixes_in([address]) == [prefix]
        both = [written(prefix, IPv4Address(f"192.0.0.{last}")) for last in (170, 171)]
        assert prefixes_in(both) == [prefix]


def test_answers_that_tell_nothing() -> None:
    """No well-known address, another octet at bits 64 to 71, two places at once; then the other address decides."""
    assert prefixes_in([IPv6Address("2001:db8::1"), IPv6Address("2001:db8::c000:ac"), IPv6Address("::")]) == []
    assert prefixes_in([IPv6Address("2001:db8:1:2:100:0:c000:aa")]) == []
    twice = IPv6Address("2001:db8:c000:aa::c000:aa")
    assert prefixes_in([twice]) == []
    assert prefixes_in([twice, IPv6Address("2001:db8:c000:aa::c000:ab")]) == [IPv6Network("2001:db8:c000:aa::/96")]


def reply(*records: str, name: str = "ipv4only.arpa", code: int = 0) -> bytes:
    """Make an answer."""
    return answer(dns.message.make_query(name, "AAAA"), *records, rcode=code)


def test_hostile_answers_are_read_as_nothing() -> None:
    """Cut off anywhere, another question, an error, rubbish."""
    good = reply("ipv4only.arpa. 60 IN AAAA 2001:db8::c000:aa")
    assert read_answer(good) == ([IPv6Network("2001:db8::/96")], 60.0)
    assert read_answer(reply(name="example.com")) is None
    assert read_answer(reply(code=2)) is None
    for cut in range(len(good)):
        read_answer(good[:cut])
    for at in range(2, len(good)):
        for octet in (0, 0x3F, 0xC0, 0xFF):
            read_answer(good[:at] + bytes([octet]) + good[at + 1 :])


def test_a_lying_server_fills_its_own_places_alone() -> None:
    """However many prefixes it tells of, those of another stay; all is forgotten when it is no upstream any more."""
    many = [IPv6Address(f"2001:db8:{number:x}::c000:aa") for number in range(1, 40)]
    found: list[list[IPv6Network]] = []
    discovery = Discovery(found.append)
    liar = Upstream()
    honest = Upstream()
    servers = [Endpoint(IPv4Address("127.0.0.1"), server.port) for server in (liar, honest)]
    liar.nat64 = [str(address) for address in many]
    honest.nat64 = ["64:ff9b:1::c000:ab"]
    now = 0.0
    with liar, honest:

        def look(seconds: float) -> None:
            nonlocal now
            now += seconds
            for _ in range(20):
                discovery.look(servers, now)
                time.sleep(0.02)

        look(1.0)
        assert len(discovery.prefixes) == MAX_OF_A_SERVER + 1
        assert IPv6Network("64:ff9b:1::/96") in discovery.prefixes
        liar.nat64 = [str(address) for address in reversed(many)]
        look(100.0)
        assert len(discovery.prefixes) == MAX_OF_A_SERVER + 1
        liar.nat64 = []
        look(100.0)
        assert len(discovery.prefixes) == MAX_OF_A_SERVER + 1, "kept, though it is told of no more"
    look(4_000.0)
    assert len(discovery.prefixes) == MAX_OF_A_SERVER + 1, "kept while no server answers"
    look(KEEP_SECONDS)
    assert discovery.prefixes == []
    discovery.look([], now)
    assert found[-1] == []
