"""What locally served zones say of themselves, and which Extended DNS Error goes with REFUSED."""

from __future__ import annotations

from collections.abc import Iterator

import dns.flags
import dns.message
import pytest

from tests.support.daemon import Blockd
from tests.support.questions import PERSONAL, STRANGER, ask, ede, rcode
from tests.support.upstream import Upstream

TIMES = "1 3600 1200 604800 10800"
IPV6_LOOPBACK = "1." + "0." * 31 + "ip6.arpa"


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    """Give one that knows DS and a name."""
    return Upstream(
        {"10.in-addr.arpa": ["10.in-addr.arpa. 60 IN DS 1 13 99 aa"], "ok.example": ["ok.example. 60 IN A 192.0.2.1"]}
    )


@pytest.fixture(scope="module")
def blockd(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Blockd]:
    """Give a daemon that 127.0.0.9 may not ask."""
    with (
        upstream,
        Blockd(
            tmp_path_factory.mktemp("local"), [upstream.address], server={"clients": ["127.0.0.1", "127.0.0.2"]}
        ) as one,
    ):
        yield one


@pytest.mark.parametrize(
    ("name", "zone", "code"),
    [
        ("10.in-addr.arpa", "10.in-addr.arpa", "NOERROR"),
        ("5.0.0.10.in-addr.arpa", "10.in-addr.arpa", "NXDOMAIN"),
        ("x.home.arpa", "home.arpa", "NXDOMAIN"),
        ("a.b.c.test", "test", "NXDOMAIN"),
        ("53.0.0.127.in-addr.arpa", "127.in-addr.arpa", "NXDOMAIN"),
        ("1.0.0.127.in-addr.arpa", "127.in-addr.arpa", "NOERROR"),
        ("x.1.0.0.127.in-addr.arpa", "127.in-addr.arpa", "NXDOMAIN"),
        (IPV6_LOOPBACK, IPV6_LOOPBACK, "NOERROR"),
    ],
)
def test_denials_have_the_soa_of_rfc_6303(blockd: Blockd, name: str, zone: str, code: str) -> None:
    """Its owner and its MNAME are the zone, also below it; over UDP and TCP."""
    for tcp in (False, True):
        got = ask(blockd, name, "TXT", client=PERSONAL, tcp=tcp)
        assert rcode(got) == code
        assert [rrset.to_text() for rrset in got.authority] == [f"{zone}. 10800 IN SOA {zone}. nobody.invalid. {TIMES}"]


def test_local_zones_answer_for_themselves(blockd: Blockd) -> None:
    """SOA and NS at the top, and the names of the loopback addresses."""
    wanted = {
        ("10.in-addr.arpa", "SOA"): f"SOA 10.in-addr.arpa. nobody.invalid. {TIMES}",
        ("10.in-addr.arpa", "NS"): "NS 10.in-addr.arpa.",
        ("home.arpa", "SOA"): f"SOA home.arpa. nobody.invalid. {TIMES}",
        (IPV6_LOOPBACK, "NS"): f"NS {IPV6_LOOPBACK}.",
        (IPV6_LOOPBACK, "PTR"): "PTR localhost.",
        ("1.0.0.127.in-addr.arpa", "PTR"): "PTR localhost.",
    }
    for (name, qtype), data in wanted.items():
        got = ask(blockd, name, qtype, client=PERSONAL)
        assert [rrset.to_text() for rrset in got.answer] == [f"{name}. 10800 IN {data}"]
        shown = blockd.run("explain", "--client", PERSONAL, name, qtype).stdout
        assert data.split()[1] in shown, shown


def test_refused_says_why(blockd: Blockd) -> None:
    """EDE 18 to who may not ask, 20 without RD and for transfers, 21 for what no resolver does; with EDNS alone."""

    def of(
        name: str, qtype: str = "A", client: str = PERSONAL, flags: int = int(dns.flags.RD)
    ) -> tuple[str, list[int]]:
        got = ask(blockd, name, qtype, client=client, flags=flags)
        return rcode(got), [code for code, _ in ede(got)]

    assert of("ok.example", client=STRANGER) == ("REFUSED", [18])
    stranger = ask(blockd, "ok.example", client=STRANGER)
    assert len(stranger.to_wire()) <= len(dns.message.make_query("ok.example", "A", use_edns=0).to_wire()) + 6
    assert ede(ask(blockd, "ok.example", client=STRANGER, use_edns=False)) == []
    assert of("ok.example", flags=0) == ("REFUSED", [20])
    assert of("10.in-addr.arpa", "DS", flags=0) == ("REFUSED", [20])
    assert of("ok.example", "AXFR") == of("ok.example", "IXFR") == ("REFUSED", [20])
    assert of("ok.example", "TKEY") == of("ok.example", "MAILB") == ("REFUSED", [21])
    assert of("ok.example") == ("NOERROR", [])
    assert of("ok.example", flags=0) == ("NOERROR", [])


def test_a_route_for_a_local_zone_takes_its_inner_names_along(blockd: Blockd) -> None:
    """A zone that has servers of its own is theirs, with the name of the loopback address in it."""
    with Upstream({"1.0.0.127.in-addr.arpa": ["1.0.0.127.in-addr.arpa. 60 IN PTR here.example."]}) as inner:
        blockd.values["upstream"]["zones"] = {"127.in-addr.arpa": [inner.address]}
        assert blockd.reload().returncode == 0
        got = ask(blockd, "1.0.0.127.in-addr.arpa", "PTR", client=PERSONAL)
        assert str(got.answer[0][0]) == "here.example."
