"""What children, peers and the state directory say is read item by item: an odd one costs no other anything."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import dns.message
import dns.name
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.generations import Generations
from blockd.guard import Guard
from blockd.lists.remote import State, read_state, state_of, write_state
from blockd.settings.source import Kept
from blockd.transferring import Primary, Version, Zone
from blockd.transfers import Transfers

ORIGIN = dns.name.from_text("rpz.test")
PEER = "192.0.2.9"


NO_STATES = ["", "7", "[]", "[" * 100_000, "null", '{"tried": "x"}', '{"tried": NaN}', '{"tried": true}', '{"odd": 1}']
NO_STATES += ['{"failures": null}', '{"result": "odd"}', '{"result": []}', '{"url": 7}', '{"kept": 1.5}']


@pytest.mark.parametrize("text", NO_STATES)
def test_the_state_of_a_fetch_is_one_or_none(tmp_path: Path, text: str) -> None:
    """Of a file that somebody else wrote nothing is known; of a child's last line the fetch failed."""
    (tmp_path / "list.json").write_text(text)
    assert read_state(tmp_path / "list") == State()
    if text not in ("", "[" * 100_000):
        with pytest.raises(ValueError, match="not the state of a fetch"):
            state_of(json.loads(text))


def test_the_state_of_a_fetch_is_what_was_written(tmp_path: Path) -> None:
    """Whole numbers and others, and what is not known."""
    state = State(
        url="https://x.example", result="new", tried=5.5, confirmed=4, failures=2, kept=7, known_of=".arrived"
    )
    write_state(tmp_path / "list", state)
    assert read_state(tmp_path / "list") == state


def test_reasons_of_a_refusal_are_read_one_by_one(tmp_path: Path) -> None:
    """One that cannot be read is one all the same; a manifest that is none is no generation."""
    one = Generations(tmp_path)
    good = {"file": "x", "line": 3, "key": "k", "text": "t"}
    (tmp_path / "staged").mkdir()
    for text, count in ((json.dumps([good, {}, 7, {**good, "line": "3"}]), 4), ("{}", 0), ("[" * 100_000, 0), ("x", 0)):
        (tmp_path / "staged" / "refused.json").write_text(text)
        assert len(one.staged()) == count
    (tmp_path / "generations" / "\u00b2").mkdir()
    assert one.new().name == "00000001", "what looks like a number and is none"
    generation = tmp_path / "generations" / "00000001"
    generation.mkdir()
    one.accept(generation)
    for text in ("[]", "7", "{}", '{"config": 7, "inputs": []}', '{"config": "x", "inputs": [7]}', "[" * 100_000):
        (generation / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"."):
            Kept(generation)
        assert one.current(Path("x")) is None
    os.close(one._lock)


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Primary:
    """Give a primary of one zone, of which an older version has a line that is not a record."""
    said: list[dict[str, Any]] = []
    one = Primary(said.append, tmp_path_factory.mktemp("zones"))
    zone = Zone(ORIGIN, "corporate", [((PEER, 53), None)], [])
    zone.versions = [
        Version(3, ("a 60 CNAME .", "b 60 CNAME .")),
        Version(2, ("a 60 CNAME .", "c 60 CNAME .")),
        Version(1, ("junk",)),
    ]
    one._zones = {ORIGIN: zone}
    return one


def query(rdtype: str, **fields: int) -> bytes:
    """Write a question, with fields of its header that are odd."""
    message = dns.message.make_query(ORIGIN, rdtype)
    if rdtype == "IXFR":
        message.authority.append(Zone(ORIGIN, "", [], []).soa(fields.pop("serial", 1)))
    wire = bytearray(message.to_wire())
    for name, value in fields.items():
        struct.pack_into("!H", wire, {"flags": 2, "questions": 4, "answers": 6, "others": 10}[name], value)
    return bytes(wire)


ODD = [query("SOA", flags=flags) for flags in range(0, 0x10000, 0x0800)]
ODD += [query("AXFR", **{name: value}) for name in ("questions", "answers", "others") for value in (0, 2, 0xFFFF)]
ODD += [query("OPT"), query("TSIG"), query("ANY"), query("IXFR", serial=0)]


@given(
    st.binary(max_size=80)
    | st.sampled_from(ODD)
    | st.tuples(st.sampled_from(ODD), st.binary(max_size=20)).map(b"".join)
)
def test_any_message_of_a_peer_is_answered_or_not(primary: Primary, wire: bytes) -> None:
    """Nothing that a listed peer sends ends the thread that serves all of them."""
    for is_stream in (False, True):
        assert all(isinstance(reply, bytes) for reply in primary._answers(wire, PEER, is_stream))


@pytest.mark.parametrize(("serial", "records"), [(3, 1), (2, 6), (1, 5), (0, 5)])
def test_a_step_that_cannot_be_written_is_the_whole_zone(primary: Primary, serial: int, records: int) -> None:
    """A secondary that has a version which cannot be read any more gets all of it."""
    [wire] = primary._answers(query("IXFR", serial=serial), PEER, is_stream=True)
    reply = dns.message.from_wire(wire, xfr=True, one_rr_per_rrset=True)
    assert len(reply.answer) == records
    assert reply.answer[0].rdtype == dns.rdatatype.SOA


def test_versions_are_read_one_by_one(tmp_path: Path) -> None:
    """A file of another name, or one that is not text, costs the others nothing."""
    (tmp_path / "rpz.test").mkdir()
    (tmp_path / "rpz.test" / "0000000007.zone").write_text("a 60 CNAME .\n")
    (tmp_path / "rpz.test" / "junk.zone").write_text("a 60 CNAME .\n")
    (tmp_path / "rpz.test" / "0000000008.zone").write_bytes(b"\xff\xfe")
    assert [version.serial for version in Primary(lambda said: None, tmp_path)._kept("rpz.test")] == [7]


def test_a_line_of_the_process_of_zones_that_cannot_be_used_ends_nothing(tmp_path: Path) -> None:
    """A warning of a library, half a line: counted, and the next line counts."""
    guard = Guard()
    one = Transfers([], tmp_path, lambda zone: None, guard)
    for line in (
        "warning: x",
        "7",
        "[]",
        '{"zone": []}',
        '{"unconfirmed": 1}',
        '{"zone": "z", "group": "g", "serial": 1, "records": 2}',
    ):
        guard.run("zone_transfers", one._said, line)
    assert guard.failures["zone_transfers"] >= 3
    assert one.zones["z"]["serial"] == 1
