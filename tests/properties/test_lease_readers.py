"""No input stops a lease reader, a good lease among bad records always counts, and work grows with size alone."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockd.devices.leases import FORMATS, Feed, Lease
from blockd.devices.leases.kea_socket import read_row
from blockd.devices.leases.lease import ENDLESS, Unusable, mac_of_duid
from blockd.devices.placement import Placement

MAC = "00:16:3e:00:47:11"
HOME = ip_address("10.0.0.5")
HEADER = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state"
#: A lease of HOME without end, as each server writes it.
GOOD = {
    "kea": f"10.0.0.5,{MAC},,4294967295,0,1,0,0,laptop-7,0",
    "dnsmasq": f"0 {MAC} 10.0.0.5 laptop-7 *",
    "dhcpd": f"lease 10.0.0.5 {{\n  ends never;\n  binding state active;\n  hardware ethernet {MAC};\n}}",
}
#: Records of each server, whole; what follows cuts and changes them. None is about HOME.
RECORDS = {
    "kea": [HEADER, f"10.0.0.6,{MAC},,9,2000,1,0,0,x,2", '10.0.0.7,,,9,2000,1,0,0,"x,0', "address,hwaddr"],
    "dnsmasq": ["duid 00:01:00:01", f"2000 06-{MAC} 10.0.0.6 * *", f"2000 7 2001:db8::6 x 00:03:00:01:{MAC}"],
    "dhcpd": [
        f'lease 10.0.0.6 {{\n  ends 4 1970/01/01 00:33:20;\n  hardware ethernet {MAC};\n  uid "\\001}}";\n}}',
        'ia-na "\\001\\002\\003\\004" {\n  iaaddr 2001:db8::6 {\n    ends never;\n  }\n}',
        'host lease {\n  on commit {\n    log (info, "x");\n  }\n}',
    ],
}
#: What lines are made of, without what begins another line.
SIGNS = st.text('0123456789abcdef:., {}"\\;leasndirt-&#x', max_size=60) | st.text(max_size=30)


@st.composite
def bad_lines(draw: st.DrawFn, format: str) -> list[str]:
    """Give lines of records that are cut at both ends, and of anything."""
    lines: list[str] = []
    for record in draw(st.lists(st.sampled_from(RECORDS[format]) | SIGNS, max_size=6)):
        first, last = sorted((draw(st.integers(0, len(record))), draw(st.integers(0, len(record)))))
        lines += (record if draw(st.booleans()) else record[first:last]).split("\n")
    # A line of its own about the same device would count, as it should.
    return [line for line in lines if "10.0.0.5" not in line]


@settings(max_examples=60)
@pytest.mark.parametrize("format", sorted(FORMATS))
@given(st.data())
def test_a_good_lease_among_bad_lines_counts(format: str, data: st.DataObject) -> None:
    """Whatever is before and behind it; and no reader raises."""
    before, behind = data.draw(bad_lines(format)), data.draw(bad_lines(format))
    reader = FORMATS[format]()
    found = [one for line in [*before, *GOOD[format].split("\n"), *behind] for one in reader.read(line)]
    assert all(isinstance(one, Lease | Unusable) for one in found)
    at_home = [one for one in found if isinstance(one, Lease) and one.address == HOME]
    assert at_home == [Lease(HOME, MAC, at_home[0].hostname, ENDLESS)]


@given(st.text() | st.binary().map(bytes.hex) | st.text("0123456789abcdef:-", max_size=60))
def test_a_duid_is_read_whatever_it_is(duid: str) -> None:
    """A MAC of six octets that one device can have, or nothing."""
    mac = mac_of_duid(duid)
    assert mac == "" or (len(mac) == 17 and not int(mac[:2], 16) & 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("ip-address", "hw-address", "duid", "valid-lft", "cltt", "state", "type", "hostname")
GOOD_ROW = {"ip-address": "10.0.0.6", "hw-address": MAC, "valid-lft": 100, "cltt": 5, "state": 0, "hostname": "x"}


@given(JSON | st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda some: {**GOOD_ROW, **some}))
def test_a_row_of_kea_is_read_whatever_it_is(row: Any) -> None:
    """A lease, nothing, or a reason."""
    found = read_row(row)
    assert found is None or isinstance(found, Lease | Unusable)


@given(JSON | st.lists(JSON, max_size=3), st.lists(st.lists(JSON, max_size=4) | JSON, max_size=4))
def test_what_was_kept_is_restored_record_by_record(kept: Any, rows: list[Any]) -> None:
    """A good lease among anything that the file may hold is known again."""
    one = Feed(Path("/nonexistent/leases"), "kea")
    placement = Placement([one], 100.0)
    placement.look(1000.0)
    good = {"file": "/nonexistent/leases", "format": "kea", "confirmed": 990.0}
    good["leases"] = [*rows, ["10.0.0.5", MAC, 1e18], *rows]
    placement.restore([*(kept if isinstance(kept, list) else [kept]), good], 1000.0)
    placement.restore(kept, 1000.0)
    assert one.leases[HOME].mac == MAC


def steps(work: Any) -> int:
    """Count calls of functions, those of C too."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_reading_is_linear(format: str, tmp_path: Path) -> None:
    """Twice as many records, good and bad, are at most twice the work, and a grown file is read by its new end."""

    def text(first: int, count: int) -> str:
        good = [GOOD[format].replace("10.0.0.5", str(IPv4Address(0x0A010000 + n))) for n in range(first, first + count)]
        return "".join(f"{line}\n" for one in good for line in (one, "bad 7 {" if format == "dhcpd" else "bad"))

    def counted(count: int, name: str) -> int:
        (tmp_path / name).write_text(text(0, count))
        one = Feed(tmp_path / name, format)
        taken = steps(lambda: one.look(1000.0))
        assert len(one.leases) == count
        return taken

    once, twice = counted(300, "once"), counted(600, "twice")
    assert twice <= 2.1 * once
    if not FORMATS[format].is_whole:
        one = Feed(tmp_path / "once", format)
        one.look(1000.0)
        with (tmp_path / "once").open("a") as growing:
            growing.write(text(300, 10))
        assert steps(lambda: one.look(1001.0)) <= 0.1 * once
