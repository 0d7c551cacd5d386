"""AD, CD, RD and DO, row by row as docs/protocol.md has them: on blockd, and on Unbound where both agree."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rdatatype
import pytest

from tests.support.daemon import Blockd
from tests.support.questions import PERSONAL, ask
from tests.support.servers import Unbound
from tests.support.upstream import Asked, Reply, Upstream, answer

DOC = Path(__file__).parents[2] / "docs" / "protocol.md"
SIGNATURE = "A 13 2 300 20300101000000 20200101000000 1 example. " + "A" * 86 + "=="


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    who: str
    query: str
    cached: bool
    reply: str
    signed: bool


def rows() -> list[Row]:
    """Read the table from the document."""
    text = DOC.read_text().split("<!-- flags table")[1].split("<!-- end of the flags table")[0]
    cells = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    return [Row(c[0], c[1], c[2] == "yes", c[3], c[4] == "yes") for c in cells[2:]]


ROWS = rows()
SERVERS = [(row, server) for row in ROWS for server in ("blockd", "unbound") if row.who == "both" or server == "blockd"]


def signed(query: dns.message.Message, asked: Asked) -> Reply:
    """Answer as a validating server would: AD, and signatures with DO."""
    records = [f"{asked.name}. 300 IN A 192.0.2.1"]
    if query.ednsflags & dns.flags.DO:
        records.append(f"{asked.name}. 300 IN RRSIG {SIGNATURE}")
    wire = bytearray(answer(query, *records))
    wire[3] |= 0x20
    return bytes(wire)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Run blockd twice, with trust_ad and without, and Unbound, all in front of one upstream."""
    directory = tmp_path_factory.mktemp("flags")
    with ExitStack() as stack:
        upstream = stack.enter_context(Upstream(signed))
        running: dict[str, Any] = {}
        for name, trust in (("blockd", False), ("trust_ad", True)):
            (directory / name).mkdir()
            section = {"servers": [upstream.address], "trust_ad": trust}
            running[name] = stack.enter_context(Blockd(directory / name, [upstream.address], upstream=section))
        forward = ["forward-zone:", '  name: "."', f"  forward-addr: 127.0.0.1@{upstream.port}"]
        server = ['module-config: "iterator"', "qname-minimisation: no"]
        running["unbound"] = stack.enter_context(Unbound(directory / "unbound", server, forward))
        yield running


NUMBERS = itertools.count()


@pytest.mark.parametrize(
    ("row", "server"),
    SERVERS,
    ids=lambda value: (
        value
        if isinstance(value, str)
        else f"{value.who}-{value.query.replace(' ', '+')}-{'hit' if value.cached else 'miss'}"
    ),
)
def test_flags(row: Row, server: str, servers: dict[str, Any]) -> None:
    """The reply has these flags and no others."""
    running = servers["trust_ad" if row.who == "trust_ad" else server]
    name = f"n{next(NUMBERS)}.example"
    wanted = set(row.query.split()) - {"none"}
    dnssec = "DO" in wanted
    if row.cached:
        warm = dns.flags.RD | (dns.flags.CD if "CD" in wanted else dns.flags.Flag(0))
        ask(running, name, client=PERSONAL, flags=int(warm), want_dnssec=dnssec)
    bits = dns.flags.Flag(0)
    for flag in wanted - {"DO"}:
        bits |= dns.flags.Flag[flag]
    got = ask(running, name, client=PERSONAL, flags=int(bits), want_dnssec=dnssec)
    have = set(dns.flags.to_text(got.flags).split()) | ({"DO"} if got.ednsflags & dns.flags.DO else set())
    if got.rcode():
        have.add(dns.rcode.to_text(got.rcode()))
    assert have == set(row.reply.split())
    kinds = {rrset.rdtype for rrset in got.answer}
    assert (dns.rdatatype.RRSIG in kinds) == row.signed


def test_the_table_is_whole() -> None:
    """Rows are read, from both marks, and the words are known."""
    assert len(ROWS) >= 19
    assert all(re.fullmatch(r"[A-Z ]+", row.reply) for row in ROWS)
