"""Any text gives a value or the one error of its parser, and nothing else."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockd.devices import read_inventory
from blockd.fastpath import fold_rule_name, line_of, read_list
from blockd.policy.answers import ede_text
from blockd.policy.inputs import _system_servers
from blockd.policy.local_records import TYPES, local_names
from blockd.problems import InputError
from blockd.settings.document import Document
from blockd.settings.schema import Answers, Settings
from blockd.settings.values import read_endpoint, read_name, read_network, read_presented_name, show_endpoint, to_ascii

NAMES = st.text(alphabet="aB1-_.*\\ é\x00", max_size=80) | st.text(max_size=20)
YAML = st.text(alphabet="abserv: {}[]-,\n\"'&*#|>0.\t", max_size=200) | st.binary(max_size=100).map(repr)


@given(NAMES)
def test_a_name_is_read_or_refused(text: str) -> None:
    """What is read is folded, and reads the same again."""
    try:
        name = read_name(text)
    except ValueError:
        return
    assert name == read_name(name) == fold_rule_name(name) == name.lower()
    assert len(name) <= 253
    assert all(0 < len(label) <= 63 for label in name.split("."))


@given(NAMES | st.text(alphabet="a0159.\\\\é", max_size=40))
def test_a_presented_name_is_read_or_refused(text: str) -> None:
    """What is read is written so that it reads the same again; rules' names read as they did."""
    try:
        name = read_presented_name(text)
    except ValueError:
        return
    assert read_presented_name(name) == name
    with contextlib.suppress(ValueError):
        assert read_name(text) == name


#: Lines that invite a reader to go over them again and again.
HOSTILE_LINES = {
    "domains": ["1." * 90 + "1", "*." * 100, "a#" * 100],
    "hosts": ["0.0.0.0" + " 192.0.2.1" * 30, "0.0.0.0" + " localhost" * 30, "::1%" + "a" * 200],
    "adblock": [
        "||a.example^$denyallow=" + "|".join(["b.a.example"] * 20),
        "||" + "a." * 90 + "^$" + "badfilter," * 10,
        "@@" * 100,
        "#" * 200,
        "$" * 200,
    ],
    "dnsmasq": [
        '"' * 201,
        "address=" + "/a.example" * 20 + "/",
        "server=/" + "." * 200 + "/#",
        "address=/" + "*" * 200,
    ],
    "rpz": ["x CNAME (", "x CNAME )" * 20, '"' * 201, "\\" * 201, "$ORIGIN " + "a." * 100],
}


def list_seconds(file: Path, list_format: str, lines: list[str], count: int) -> float:
    """Give the CPU time that a list of so many rounds of lines takes."""
    file.write_text("\n".join(lines * count))
    item: Any = {"file": str(file), "format": list_format, "is_hole": False, "public_suffix": False}
    begun = time.thread_time()
    report = read_list(item, [], to_ascii, lambda _, text: (1, text.encode()))
    assert sum(report["skipped"].values()) + report["kept"] > 0
    return time.thread_time() - begun


@pytest.mark.parametrize("list_format", HOSTILE_LINES)
def test_reading_a_list_is_linear(list_format: str, tmp_path: Path) -> None:
    """Eight times as many hostile lines take eight times as long, give or take what a busy machine adds."""
    file, lines = tmp_path / "list", HOSTILE_LINES[list_format]
    short = min(list_seconds(file, list_format, lines, 500) for _ in range(3))
    assert list_seconds(file, list_format, lines, 4_000) < 24 * short + 0.05


CELLS = st.text(alphabet='a1.:,"\n\r;é\x00 ', max_size=12) | st.ip_addresses().map(str)


@given(st.lists(st.lists(CELLS, max_size=5), max_size=6) | st.binary(max_size=60))
def test_an_inventory_is_read_or_refused(rows: list[list[str]] | bytes) -> None:
    """Every device that is read has an address and a line of the file."""
    data = rows if isinstance(rows, bytes) else ("address,hostname,serial,owner\n" + _lines(rows)).encode()
    try:
        devices = read_inventory(Path("devices.csv"), data).devices
    except InputError:
        return
    assert all(1 < device.line <= data.count(b"\n") + data.count(b"\r") + 1 for device in devices)


def _lines(rows: list[list[str]]) -> str:
    return "".join(",".join(row) + "\n" for row in rows)


@given(st.text(max_size=60) | st.tuples(st.sampled_from(TYPES), st.text(max_size=40)).map(" ".join))
def test_a_record_is_read_or_refused(text: str) -> None:
    """What is read is one record whose answer is built."""
    records = {"a.example": [text]}
    document = Document(Path("x"), b"records: {a.example: []}")
    like: Any = SimpleNamespace(records=records, answers=Answers())
    templates, problems = local_names(like, document)
    assert bool(templates) is not bool(problems)


@given(st.text(max_size=50) | st.ip_addresses().map(str) | st.integers())
def test_a_network_is_read_or_refused(text: object) -> None:
    """Only what is a prefix without stray bits is one."""
    try:
        network = read_network(text)
    except ValueError:
        return
    assert read_network(str(network)) == network


@given(st.text(max_size=50) | st.tuples(st.ip_addresses(), st.integers(0, 70000)).map(show_endpoint))
def test_an_endpoint_is_read_or_refused(text: str) -> None:
    """What is read is written the same way."""
    try:
        endpoint = read_endpoint(text)
    except ValueError:
        return
    assert read_endpoint(show_endpoint(endpoint)) == endpoint


@settings(max_examples=300)
@given(YAML | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_a_config_is_read_or_refused(text: str) -> None:
    """Whatever stands in the file, the error is one that names the file."""
    try:
        Document(Path("x.yaml"), text.encode()).validate(Settings)
    except InputError as error:
        files = {problem.file for problem in error.problems}
    else:
        return
    assert files == {"x.yaml"}


@given(st.binary(max_size=300), st.sampled_from(["domains", "hosts"]))
def test_a_list_is_searched_whatever_is_in_it(data: bytes, kind: str) -> None:
    """A line number or none."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data + b"\na.example\n0.0.0.0 a.example\n")
        file.flush()
        found = line_of(file.name, kind, "a.example", to_ascii)
    assert found is None or 1 <= found <= data.count(b"\n") + 3


@given(st.binary(max_size=300))
def test_resolv_conf_is_read_whatever_is_in_it(data: bytes) -> None:
    """Servers or none."""
    assert all(server.port == 53 for server in _system_servers(data))


def test_the_text_of_an_error_is_cut_between_characters() -> None:
    """A long title with accents leaves no half character."""
    values = {
        "server": {"listen": ["127.0.0.1:53"]},
        "admin": {"listen": "127.0.0.1:1"},
        "upstream": {"servers": ["127.0.0.1"]},
        "policies": {"unidentified": {}},
    }
    document = Document(Path("x"), b"{}")
    document.values = values
    text = ede_text(document.validate(Settings), "é" * 200)
    assert len(text) <= 180
    text.decode()
