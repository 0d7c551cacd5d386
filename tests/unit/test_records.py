"""Local names: answered here, for every type, and never asked upstream."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.conftest import Serve
from tests.support.questions import CORPORATE, PERSONAL, addresses, ask, rcode
from tests.support.upstream import Upstream, answer

RECORDS = {
    "printer.corp.example": ["A 10.0.0.5", "60 A 10.0.0.6", "AAAA 2001:db8::5", 'TXT "third floor"'],
    "www.corp.example": ["CNAME printer.corp.example"],
    "intranet.corp.example": ["CNAME www.corp.example"],
    "_ldap._tcp.corp.example": ["SRV 0 5 389 dc1.corp.example"],
    "corp.example": ["MX 10 mail.corp.example", "MX 20 mail2.corp.example"],
    "5.0.0.10.in-addr.arpa": ["PTR printer.corp.example"],
    "host.tiktok.com": ["A 10.0.0.7"],
}


def test_local_names_are_answered_here(serve: Serve, upstream: Upstream) -> None:
    """Data, NODATA for other types, aliases with where they lead; names below and above are asked upstream."""
    upstream.records["x.printer.corp.example"] = ["x.printer.corp.example. 60 IN A 192.0.2.1"]
    blockd = serve([upstream.address], records=RECORDS)
    for tcp in (False, True):
        got = ask(blockd, "Printer.Corp.Example", client=PERSONAL, tcp=tcp)
        assert sorted(addresses(got)) == ["10.0.0.5", "10.0.0.6"]
        assert {rrset.ttl for rrset in got.answer} <= {60, 300}
        alias = ask(blockd, "intranet.corp.example", client=PERSONAL, tcp=tcp)
        assert sorted(addresses(alias)) == ["10.0.0.5", "10.0.0.6"]
        assert [rrset.to_text().split()[4] for rrset in alias.answer[:2]] == [
            "www.corp.example.",
            "printer.corp.example.",
        ]
    assert addresses(ask(blockd, "printer.corp.example", "AAAA", client=PERSONAL)) == ["2001:db8::5"]
    assert "third floor" in ask(blockd, "printer.corp.example", "TXT", client=PERSONAL).answer[0].to_text()
    srv = ask(blockd, "_ldap._tcp.corp.example", "SRV", client=PERSONAL).answer[0].to_text()
    assert srv.endswith("SRV 0 5 389 dc1.corp.example.")
    assert len(ask(blockd, "corp.example", "MX", client=PERSONAL).answer[0]) == 2
    assert "printer.corp.example." in ask(blockd, "5.0.0.10.in-addr.arpa", "PTR", client=PERSONAL).answer[0].to_text()
    nodata = ask(blockd, "printer.corp.example", "MX", client=PERSONAL)
    assert (rcode(nodata), nodata.answer, len(nodata.authority)) == ("NOERROR", [], 1)
    assert upstream.names() == []
    assert addresses(ask(blockd, "x.printer.corp.example", client=PERSONAL)) == ["192.0.2.1"]
    assert rcode(ask(blockd, "6.0.0.10.in-addr.arpa", "PTR", client=PERSONAL)) == "NXDOMAIN"
    shown = blockd.run("explain", "--client", PERSONAL, "printer.corp.example")
    assert "10.0.0.5" in shown.stdout


def test_policy_comes_first_and_changes_bite_at_once(serve: Serve, upstream: Upstream) -> None:
    """A blocked name stays blocked; a record changed by a reload is what the next query gets, cached answers or not."""
    upstream.records["new.corp.example"] = ["new.corp.example. 300 IN A 192.0.2.9"]
    blockd = serve([upstream.address], records=RECORDS)
    assert rcode(ask(blockd, "host.tiktok.com", client=CORPORATE)) == "NXDOMAIN"
    assert addresses(ask(blockd, "host.tiktok.com", client=PERSONAL)) == ["10.0.0.7"]
    assert addresses(ask(blockd, "new.corp.example", client=PERSONAL)) == ["192.0.2.9"]
    blockd.values["records"]["new.corp.example"] = ["A 10.0.0.8"]
    assert blockd.reload().returncode == 0
    assert addresses(ask(blockd, "new.corp.example", client=PERSONAL)) == ["10.0.0.8"]
    del blockd.values["records"]["new.corp.example"]
    assert blockd.reload().returncode == 0
    assert addresses(ask(blockd, "new.corp.example", client=PERSONAL)) == ["192.0.2.9"]


def test_a_record_does_not_take_its_zone_away(serve: Serve, upstream: Upstream) -> None:
    """A record at the name of a routed or a special zone is that name's alone: names below go where they went."""
    upstream.script = lambda query, asked: answer(query, f"{asked.name}. 60 IN A 192.0.2.66")
    with Upstream({"dc1.corp.example": ["dc1.corp.example. 60 IN A 10.0.0.1"]}) as corp:
        zones = {"corp.example": [corp.address]}
        records = {"corp.example": ["A 10.0.0.5"], "localhost": ["A 127.0.0.7"]}
        blockd = serve([upstream.address], upstream={"zones": zones}, records=records)
        assert addresses(ask(blockd, "corp.example", client=PERSONAL)) == ["10.0.0.5"]
        assert addresses(ask(blockd, "dc1.corp.example", client=PERSONAL)) == ["10.0.0.1"]
        assert addresses(ask(blockd, "localhost", client=PERSONAL)) == ["127.0.0.7"]
        assert addresses(ask(blockd, "a.localhost", client=PERSONAL)) == ["127.0.0.1"]
        assert upstream.names() == []
        shown = blockd.run("explain", "--client", PERSONAL, "corp.example").stdout
        assert "zone      a local record: corp.example of records (" in shown
        assert "found     not looked for: the name is answered here" in shown


BAD: list[tuple[dict[str, Any], str]] = [
    ({"a.example": []}, r"records\.a\.example: expected a record, such as A 10\.0\.0\.5"),
    ({"a.example": ["10.0.0.5"]}, r"records\.a\.example\.0: '10\.0\.0\.5': expected \[TTL\] TYPE DATA"),
    ({"a.example": ["A 10.0.0.300"]}, r"records\.a\.example\.0: 'A 10\.0\.0\.300' is no A record"),
    ({"a.example": ["ANY x"]}, r"expected \[TTL\] TYPE DATA, such as A 10\.0\.0\.5; types are A, AAAA"),
    ({"a.example": ["9999999 A 10.0.0.5"]}, r"a TTL of at most 604800 seconds"),
    ({"a.example": ["CNAME b.example"]}, r"records\.a\.example: the alias leads to b\.example, which is no local name"),
    ({"a.example": ["CNAME b.example"], "b.example": ["CNAME a.example"]}, r"aliases in a row, or a loop"),
    ({"a.example": ["CNAME b.example", "A 10.0.0.5"]}, r"an alias has no other records"),
    ({"a.example": ["² A 10.0.0.5"]}, r"expected \[TTL\] TYPE DATA"),
    ({"a.example": ["MX mail.example"]}, r"is no MX record: expected such as MX 10 mail\.corp\.example"),
    ({"A.example": ["A 10.0.0.5"], "a.example": ["A 10.0.0.6"]}, r"records\.A\.example: a\.example stands here twice"),
    ({"a b": ["A 10.0.0.5"]}, r"records\.a b.*'a b' is no domain name"),
    ({"a.example": ["TXT " + "x" * 250] * 9}, r"records\.a\.example: the records of one type take \d+ octets"),
]


@pytest.mark.parametrize(("records", "wanted"), BAD)
def test_a_bad_record_says_what_and_where(
    records: dict[str, Any], wanted: str, serve: Serve, upstream: Upstream
) -> None:
    """Line and key, and nothing changes."""
    blockd = serve([upstream.address])
    blockd.values["records"] = records
    blockd.write()
    done = blockd.run("check")
    assert done.returncode == 1
    assert re.search(rf"blockd\.yaml:\d+: .*{wanted}", done.stderr), done.stderr
