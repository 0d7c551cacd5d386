"""Inventories as anybody may write them: no input raises, a good record is always in force, and work is linear."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blockd.devices import read_inventory
from blockd.devices.inventory import read_mac
from blockd.problems import InputError

GOOD = [f"00:16:3e:ff:00:0{at}" for at in range(3)]
COLUMNS = ["mac", "address", "MAC Address 2", "Name", "Serial", "group", "sep=;", "#TYPE x", "value", "next", "general"]
CELLS = ["02:00:00:00:00:00", "10.0.0.1", "fe80::1%2", "10.0.0.0/8", "N/A", "", "\0", "é", "\u202e", '"', '""', "<x>"]
WORDS = st.sampled_from([*COLUMNS, *CELLS, *GOOD])
SEPARATORS = st.sampled_from([",", ";", "\t", "|", "\n", "\r\n", "\r", " ", '"', ',"', '",'])
TEXTS = st.lists(st.tuples(WORDS | st.text(max_size=4), SEPARATORS), max_size=30).map(
    lambda parts: "".join(word + between for word, between in parts)
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252"])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)


@given(TEXTS, ENCODINGS, st.binary(max_size=8), st.sampled_from(["x.csv", "x.json", "x.jsonl"]), st.booleans())
def test_any_text_is_read_or_refused(text: str, encoding: str, rest: bytes, name: str, has_only: bool) -> None:
    """By an InputError and nothing else; every device that is read has a MAC or an address."""
    _read_or_refuse(name, text.encode(encoding, "replace") + rest, has_only)


@given(JSON, st.booleans())
def test_any_json_is_read_or_refused(value: Any, has_only: bool) -> None:
    """The same for values of every type, at any depth."""
    _read_or_refuse("x.json", json.dumps(value).encode(), has_only)


def _read_or_refuse(name: str, data: bytes, has_only: bool) -> None:
    try:
        inventory = read_inventory(Path(name), data, ["Name"] if has_only else [])
    except InputError:
        return
    assert all(device.mac or device.address is not None for device in inventory.devices)
    assert all(device.mac == read_mac(device.mac) for device in inventory.devices if device.mac)
    assert inventory.unusable <= inventory.records
    assert bool(inventory.skipped.samples) is bool(inventory.skipped.total)


#: Of a row that is broken in any way; it may not make up good rows, nor be longer than a row may be.
BROKEN = st.text(alphabet='abmac01:.,;"\t\0é\x07 ', max_size=30)


@example(["", "", '"', '"'], ",", "\n", False)
@given(
    st.lists(BROKEN, max_size=6),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
def test_a_good_row_among_broken_ones_is_in_force(broken: list[str], separator: str, end: str, is_quoted: bool) -> None:
    """Whatever is before and behind it, a quotation mark that is never closed too: or it is counted as swallowed."""
    sign = '"' if is_quoted else ""
    good = [separator.join(f"{sign}{cell}{sign}" for cell in ("PC", mac, "S")) for mac in GOOD]
    lines = [separator.join(("Name", "MAC", "Serial")), good[0], *broken[:3], good[1], *broken[3:], good[2]]
    inventory = read_inventory(Path("x.csv"), (end.join(lines) + end).encode())
    found = {device.mac for device in inventory.devices}
    swallowed = sum(count for reason, count in inventory.skipped.counts.items() if "inside a quoted cell" in reason)
    assert len(set(GOOD) - found) <= swallowed, (lines, inventory)


@given(st.lists(JSON, max_size=6))
def test_a_good_object_among_others_is_in_force(others: list[Any]) -> None:
    """Whatever the others are."""
    items = [
        {"mac": GOOD[0]},
        *others[:3],
        {"general": {"name": "x"}, "hardware": {"macAddress": GOOD[1]}},
        *others[3:],
    ]
    inventory = read_inventory(Path("x.json"), json.dumps(items).encode())
    assert set(GOOD[:2]) <= {device.mac for device in inventory.devices}


#: Files of a size, by what is repeated in them.
GROWING: dict[str, Callable[[int], str]] = {
    "good rows": lambda n: "mac,name\n" + "00:16:3e:00:00:01,x\n" * n,
    "open quotes": lambda n: "mac,name\n00:16:3e:00:00:01,x\n" + 'x,"y\n' * n,
    "one open quote": lambda n: 'mac,name\n00:16:3e:00:00:01,x\nx,"y\n' + "00:16:3e:00:00:01,x\n" * n,
    "quotes in a row": lambda n: "mac,name\n00:16:3e:00:00:01,x\nx," + '"' * n + "\n",
    "columns": lambda n: "mac" + ",x" * n + "\n00:16:3e:00:00:01" + "," * n + "\n",
    "words in cells": lambda n: "mac\n00:16:3e:00:00:01\n" + "00:16:3e:00:00:01 " * n + "\n",
    "words of a column": lambda n: "mac," + "dock" * n + "z\n00:16:3e:00:00:01,\n",
    "titles": lambda n: "x\n" * 5 + "\n" * n + "mac\n00:16:3e:00:00:01\n",
    "octets that are not UTF-8": lambda n: "mac,name\n00:16:3e:00:00:01," + "é" * n + "\n",
    "objects": lambda n: json.dumps([{"mac": "00:16:3e:00:00:01", "general": {"name": "x"}}] * n),
    "values of an object": lambda n: json.dumps([{"mac": "00:16:3e:00:00:01", "nics": [{"mac": "x"}] * n}]),
    "objects in objects": lambda n: '{"data": ' * min(n, 900) + "[]" + "}" * min(n, 900) + " " * n,
    "lines of JSON": lambda n: '{"mac": "00:16:3e:00:00:01"}\n{x\n' * n,
}


def _calls(work: Callable[[], object]) -> int:
    """Count the calls, of Python and of C, that work takes."""
    count = 0

    def profile(_: FrameType, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", GROWING)
def test_reading_is_linear(name: str) -> None:
    """Four times the size takes about four times the calls."""

    def read(size: int) -> Callable[[], object]:
        data = GROWING[name](size).encode("cp1252")

        def work() -> None:
            with contextlib.suppress(InputError):
                read_inventory(Path("x.csv"), data)

        return work

    read(300)()
    few, many = _calls(read(300)), _calls(read(1200))
    assert many <= 4.5 * few + 2000, (few, many)
