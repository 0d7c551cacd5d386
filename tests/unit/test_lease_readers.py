"""What DHCP servers, their clients and their disks put into lease files: each record counts or is skipped alone."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from blockd.control import kea
from blockd.control.kea import KeaReader
from blockd.devices.leases import FORMATS, Feed, KeaSocket, Lease
from blockd.devices.leases.kea_socket import read_row
from blockd.devices.leases.lease import ENDLESS, Unusable, mac_of_duid
from blockd.devices.neighbours import read_message

MAC, OTHER = "00:16:3e:00:47:11", "00:16:3e:00:47:12"
LEASE4 = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname"
LEASE6 = (
    "address,duid,valid_lifetime,expire,subnet_id,pref_lifetime,lease_type,iaid,prefix_len,fqdn_fwd,fqdn_rev,hostname"
)


def read(format: str, text: str, written: float = 0.0) -> dict[str, tuple[str, float]]:
    """Read lines; give MAC and end by address, of leases that did not end."""
    reader = FORMATS[format](written)
    found = [one for line in text.split("\n") for one in reader.read(line)]
    return {str(one.address): (one.mac, one.expires) for one in found if isinstance(one, Lease) and one.expires}


def reasons(format: str, text: str) -> list[str]:
    """Read lines; give why records are skipped."""
    reader = FORMATS[format]()
    return [one.reason for line in text.split("\n") for one in reader.read(line) if isinstance(one, Unusable)]


USABLE = [
    "00:01:00:01:2a:2b:2c:2d:00:16:3e:00:47:11",
    "00:03:00:01:00:16:3E:00:47:11",
    "00-03-00-01-00-16-3e-00-47-11",
    "0003000100163e004711",
]
USELESS = [
    "00:03:00:01:00:00:00:00:00:00",
    "00:03:00:01:ff:ff:ff:ff:ff:ff",
    "00:01:00:01:2a:2b:2c:2d:01:00:5e:00:00:fb",
    "00:03:00:01:33:33:00:00:00:01",
    "00:03:00:06:00:16:3e:00:47:11",
    "00:01:00:20:2a:2b:2c:2d:00:16:3e:00:47:11",
    "00:03:00:01:00:16:3e:00:47",
    "00:03:00:01:00:16:3e:00:47:11:00:00",
    "00:03:00:20:" + ":".join(["80"] * 20),
    "00:02:00:00:ab:11:00:16:3e:00:47:11",
    "00:04:00:16:3e:00:47:11:00:16:3e:00:47:11:00:16:3e:00",
    "00:03:00:01",
    "00:03",
    "",
    "*",
    "zz:00:03:00:01:00:16:3e:00:47:11",
    "00:03-00:01-00:16:3e:00:47:11",
    "00:03:00:01:00:16:3e:00:47:1",
    "\u0660\u0660" * 10,
]


def ia(duid: str) -> str:
    """Write an IA's name as dhcpd does: IAID and DUID in octal."""
    try:
        octets = bytes.fromhex("01020304" + duid.replace(":" if ":" in duid else "-", ""))
    except ValueError:
        octets = b"\x01\x02\x03\x04" + duid.encode()
    return "".join(f"\\{octet:03o}" for octet in octets)


@pytest.mark.parametrize("duid", [*USABLE, *USELESS])
def test_a_duid_gives_a_mac_or_none_for_its_lease_alone(duid: str) -> None:
    """Whatever a client puts into its DUID, its lease has no MAC, and the lease beside it counts."""
    wanted = MAC if duid in USABLE else ""
    assert mac_of_duid(duid) == wanted
    rows = (f"2001:db8::1,{duid},9,2000,1,9,0,7,128,0,0,x,,0", f"2001:db8::2,,9,3000,1,9,0,7,128,0,0,y,{OTHER},0")
    kea6 = "\n".join((f"{LEASE6},hwaddr,state", *rows))
    dnsmasq = f"0 7 2001:db8::1 x {duid}\n0 {OTHER} 10.0.0.2 y *"
    dhcpd = (
        f'ia-na "{ia(duid)}" {{\n  cltt 4 1970/01/01 00:00:10;\n  iaaddr 2001:db8::1 {{\n    binding state active;\n'
        f"    ends never;\n  }}\n}}\nlease 10.0.0.2 {{\n  ends never;\n  hardware ethernet {OTHER};\n}}"
    )
    assert read("kea", kea6) == {"2001:db8::1": (wanted, 2000.0), "2001:db8::2": (OTHER, 3000.0)}
    if duid:
        assert read("dnsmasq", dnsmasq)["2001:db8::1"] == (wanted, ENDLESS)
    assert read("dnsmasq", dnsmasq)["10.0.0.2"] == (OTHER, ENDLESS)
    assert read("dhcpd", dhcpd) == {"2001:db8::1": (wanted, ENDLESS), "10.0.0.2": (OTHER, ENDLESS)}
    row = {"ip-address": "2001:db8::1", "duid": duid, "valid-lft": 10, "cltt": 5, "state": 0, "type": "IA_NA"}
    assert read_row(row) == Lease(ip_address("2001:db8::1"), wanted, "", 15.0)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (LEASE4, f"10.0.0.5,{MAC},,9,2000,1,0,0,x"),
        (f"{LEASE4},state", f"10.0.0.5,{MAC},,9,2000,1,0,0,x,0"),
        (f"{LEASE4},state,user_context", f"10.0.0.5,{MAC},,9,2000,1,0,0,x,4,{{&#x22a&#x22: 1&#x2c 2}}"),
        (f"{LEASE4},state,user_context,pool_id", f"10.0.0.5,{MAC},,9,2000,1,0,0,x,0,,0"),
        (f"{LEASE4},state,user_context,pool_id,later", f"10.0.0.5,{MAC},,9,2000,1,0,0,x,0,,0,7"),
        (f"{LEASE4},state", f"10.0.0.5,{MAC},,9,2000,1,0,0,x"),
        (LEASE4, f"10.0.0.5,{MAC},,9,2000,1,0,0,x,0,,0,9,9"),
        (LEASE4, f'10.0.0.5,{MAC},,9,2000,1,0,0,"x'),
        (LEASE4, f"{LEASE4}\n10.0.0.5,{MAC},,9,2000,1,0,0,x\n{LEASE4}"),
        ("address,hwad", f"10.0.0.5,{MAC},,9,2000,1,0,0,x,0"),
        (LEASE4, f"10.0.0.5,{MAC},,9,2000,1,0,0,x\r"),
    ],
)
def test_each_schema_of_kea_is_read(header: str, row: str) -> None:
    """Memfile of all versions; later columns, rows longer or shorter than the header, headers in between."""
    assert read("kea", f"{header}\n{row}") == {"10.0.0.5": (MAC, 2000.0)}


@pytest.mark.parametrize(
    "version", ["", ",hwaddr", ",hwaddr,state", ",hwaddr,state,user_context,hwtype,hwaddr_source,pool_id"]
)
def test_each_schema_of_kea_for_ipv6_is_read(version: str) -> None:
    """With the server's own word for the MAC, or by the DUID; a delegated prefix is not an address."""
    values = {"hwaddr": OTHER, "state": "4", "hwtype": "1", "hwaddr_source": "0", "pool_id": "0"}
    more = "".join(f",{values.get(name, '')}" for name in version.split(",")[1:])
    row = f"00:03:00:01:{MAC},9,2000,1,9,{{}},7,128,0,0,x{more}"
    text = f"{LEASE6}{version}\n2001:db8::5,{row.format(0)}\n2001:db8:1::,{row.format(2)}"
    assert read("kea", text) == {"2001:db8::5": (OTHER if "hwaddr" in version else MAC, 2000.0)}


@pytest.mark.parametrize(("state", "has"), [(0, True), (1, False), (2, False), (3, False), (4, True)])
def test_a_registered_address_is_a_lease(state: int, has: bool) -> None:
    """RFC 9686, from the file and by the socket; what is declined, expired or released is none."""
    wanted = {"2001:db8::5": (MAC, 2000.0)} if has else {}
    assert read("kea", f"{LEASE6},hwaddr,state\n2001:db8::5,,9,2000,1,9,0,7,128,0,0,x,{MAC},{state}") == wanted
    row = {"ip-address": "2001:db8::5", "hw-address": MAC, "valid-lft": 1000, "cltt": 1000, "state": state}
    lease = read_row(row)
    assert isinstance(lease, Lease)
    assert bool(lease.expires) == has


@pytest.mark.parametrize(
    ("format", "text", "reason"),
    [
        ("kea", f"{LEASE4},state\n10.0.0.5,{MAC},,9,20", "the record is cut"),
        ("kea", f"{LEASE4},state\n10.0.0.5,{MAC},,9,soon,1,0,0,x,0", "the time at which the lease ends"),
        ("kea", f"{LEASE4},state\n10.0.0.5,{MAC},,9,2000,1,0,0,x,9", "the state of the lease is unknown"),
        ("kea", f"{LEASE4},state\n10.0.0.5%lo,{MAC},,9,2000,1,0,0,x,0", "an IPv4 or IPv6 address"),
        ("kea", "address,hwaddr", "a header without the columns"),
        ("dnsmasq", f"soon {MAC} 10.0.0.5 x *", "the time at which the lease ends"),
        ("dnsmasq", f"2000 {MAC} 10.0.0.5", "expected end, MAC, address and name"),
        ("dnsmasq", f"2000 {MAC} 10.0.0.555 x *", "an IPv4 or IPv6 address"),
        ("dhcpd", "lease 10.0.0.5 {\n  ends 4 1970/99/01 00:33:20;\n}", "the time at which the lease ends"),
        ("dhcpd", "<html>\n<body>", "expected a statement of dhcpd"),
        ("dhcpd", "lease 10.0.0.5 {\n  ends never;\n  binding state odd;\n}", "the state of the lease is unknown"),
        ("dhcpd", "lease 10.0.0.5 {\n  ends never;\nlease 10.0.0.6 {\n  ends never;\n}", "does not end"),
    ],
)
def test_what_cannot_be_used_has_a_reason(format: str, text: str, reason: str) -> None:
    """A fixed text for each kind, which repeats nothing of the record."""
    (found,) = reasons(format, text)
    assert reason in found


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (f"43200 {MAC} 10.0.0.5 x *", (MAC, 1_700_043_200.0)),
        (f"999999999 {MAC} 10.0.0.5 * *", (MAC, 2_699_999_999.0)),
        (f"0 {MAC} 10.0.0.5 x *", (MAC, ENDLESS)),
        (f"1000000000 {MAC} 10.0.0.5 x *", (MAC, 1e9)),
        (f"1800000000 {MAC} 10.0.0.5 x 01:{MAC} tag1 tag2", (MAC, 1.8e9)),
        (f"1800000000 06-{MAC} 10.0.0.5 x *", (MAC, 1.8e9)),
        ("1800000000 20-" + ":".join(["80"] * 20) + " 10.0.0.5 x *", ("", 1.8e9)),
        ("1800000000 00:00:00:00:00:00 10.0.0.5 x *", ("", 1.8e9)),
        (f"1800000000 T12345 2001:db8::5 * 00:03:00:01:{MAC}", (MAC, 1.8e9)),
        ("1800000000 12345 2001:db8::5 x", ("", 1.8e9)),
        (f"  1800000000   {MAC}\t10.0.0.5 x *  \r", (MAC, 1.8e9)),
    ],
)
def test_each_form_of_dnsmasq_is_read(words: str, wanted: tuple[str, float]) -> None:
    """Ends as times, or as durations from when the file was written; MACs of other hardware; names that are none."""
    others = "duid 00:01:00:01:2a:2b:2c:2d:00:16:3e:ff:ff:ff\n\nagent-info 10.0.0.5 01:02\nvendorclass 10.0.0.5 aa"
    assert list(read("dnsmasq", f"{others}\n{words}", 1_700_000_000).values()) == [wanted]
    assert reasons("dnsmasq", others) == []


def test_durations_count_from_when_the_file_was_written(tmp_path: Path) -> None:
    """By the time of the file, also when it alone changes."""
    (tmp_path / "leases").write_text(f"3600 {MAC} 10.0.0.5 x *\n")
    one = Feed(tmp_path / "leases", "dnsmasq")
    for written in (1_700_000_000, 1_700_007_200):
        os.utime(tmp_path / "leases", (written, written))
        one.look(1_700_000_000.0)
        assert one.leases[ip_address("10.0.0.5")].expires == written + 3600


DHCPD = f"""\
# The format of this file is documented in the dhcpd.leases(5) manual page.
authoring-byte-order little-endian;
server-duid "\\000\\001\\000\\001}}\\";lease 10.0.0.1 {{";
failover peer "lease" state {{
  my state normal at 4 1970/01/01 00:00:10;
  partner state normal at 4 1970/01/01 00:00:10;
}}
host lease {{
  dynamic;
  hardware ethernet {OTHER};
  fixed-address 10.0.0.9;
}}
lease 10.0.0.5 {{
  starts 4 1970/01/01 00:00:10;
  ends 4 1970/01/01 00:33:20;
  binding state active;
  next binding state free;
  rewind binding state free;
  hardware ethernet {MAC};
  uid "\\001\\000\\026>\\000G\\021}}";
  set vendor-string = "}}; # not a comment";
  on expiry or release {{
    if known {{
      log (info, "}}");
    }}
    execute ("ends never;");
  }}
  client-hostname "lap}}\\"top; {{";
}}
lease 10.0.0.6 {{
  ends epoch 2500; # Thu Jan  1 00:41:40 1970 }}
  binding state active;
  hardware token-ring {OTHER};
}}
lease 10.0.0.7 {{ ends never; uid "\\001"; }}
lease 10.0.0.11 {{
  uid "\\001 cut; }}
  ends never;
  hardware ethernet {OTHER};
}}
lease 10.0.0.8 {{
  ends never;
  binding state active;
  hardware ethernet {OTHER};
}}
lease 10.0.0.8 {{
  binding state STATE;
  hardware ethernet {OTHER};
}}
ia-na 01:02:03:04:00:03:00:01:{MAC} {{
  cltt 4 1970/01/01 00:00:10;
  iaaddr 2001:db8::5 {{
    binding state active;
    preferred-life 375;
    max-life 600;
    ends 4 1970/01/01 00:33:20;
    set x = "iaaddr 2001:db8::9 {{";
  }}
  iaaddr 2001:db8::6 {{
    binding state released;
    ends never;
  }}
}}
ia-pd "\\001\\002\\003\\004" {{
  iaprefix 2001:db8:1::/56 {{
    binding state active;
    ends never;
  }}
}}
lease 10.0.0.10 {{
  ends 4 1970/01/01
"""


@pytest.mark.parametrize("state", ["free", "backup", "abandoned", "expired", "released", "reset"])
def test_each_statement_of_dhcpd_is_read(state: str) -> None:
    """Nested blocks, comments, braces and semicolons in strings, states, both forms of an IA; the last block is cut."""
    assert read("dhcpd", DHCPD.replace("STATE", state)) == {
        "10.0.0.5": (MAC, 2000.0),
        "10.0.0.6": ("", 2500.0),
        "10.0.0.7": ("", ENDLESS),
        "10.0.0.11": (OTHER, ENDLESS),
        "2001:db8::5": (MAC, 2000.0),
        "10.0.0.8": (OTHER, ENDLESS),
    }
    assert reasons("dhcpd", DHCPD.replace("STATE", state)) == []


def test_records_are_skipped_with_their_place(tmp_path: Path) -> None:
    """File, line and reason, over looks at a file that grows and over files that Kea leaves; a new file begins anew."""
    file = tmp_path / "leases.csv"
    (tmp_path / "leases.csv.2").write_text(f"{LEASE4}\nx,,,,,,,,\n10.0.0.4,{MAC},,9,9000,1,0,0,x\n")
    file.write_text(f"{LEASE4}\n\n10.0.0.5,{MAC},,9,9000,1,0,0,x\nbad\n")
    one = Feed(file, "kea")
    one.look(1000.0)
    with file.open("a") as growing:
        growing.write(f"10.0.0.6,{MAC},,9,9000,1,0,0,x\nbad too\n")
    one.look(1001.0)
    one.look(1002.0)
    assert sorted(map(str, one.leases)) == ["10.0.0.4", "10.0.0.5", "10.0.0.6"]
    assert [(Path(p.file).name, p.line) for p in one.skipped.samples] == [
        ("leases.csv.2", 2),
        ("leases.csv", 4),
        ("leases.csv", 6),
    ]
    assert one.skipped.counts == {"expected an IPv4 or IPv6 address": 1, "the record is cut: columns are missing": 2}
    file.write_text(f"{LEASE4}\n10.0.0.7,{MAC},,9,9000,1,0,0,x\n")
    (tmp_path / "leases.csv.2").unlink()
    one.look(1003.0)
    assert one.skipped.total == 0
    (tmp_path / "dhcpd").write_text("lease 10.0.0.5 {\n  ends never;\n  binding state odd;\n}\n")
    two = Feed(tmp_path / "dhcpd", "dhcpd")
    two.look(1000.0)
    assert two.problem is not None, "no line of it is a lease"
    with (tmp_path / "dhcpd").open("a") as growing:
        growing.write(
            "\nlease 10.0.0.5 {\n  ends never;\n  binding state odd;\n}\nlease 10.0.0.6 {\n  ends never;\n}\n"
        )
    two.look(1001.0)
    assert two.problem is None
    assert [str(p) for p in two.skipped.samples] == [f"{tmp_path}/dhcpd:6: the state of the lease is unknown"]


def test_a_last_line_without_an_end_counts_when_nobody_goes_on_writing(tmp_path: Path) -> None:
    """As in a file that was copied or edited; and it is read once more when somebody ends it."""
    file = tmp_path / "leases"
    block = "lease 10.0.0.{} {{\n  ends never;\n}}"
    for format, text, more in (
        ("kea", f"{LEASE4}\n10.0.0.5,{MAC},,9,9000,1,0,0,x", f"yz\n10.0.0.6,{OTHER},,9,9000,1,0,0,x\n"),
        ("dnsmasq", f"0 {MAC} 10.0.0.5 x *", f"\n0 {OTHER} 10.0.0.6 x *\n"),
        ("dhcpd", block.format(5), f"\n{block.format(6)}\n"),
    ):
        file.write_text(text)
        one = Feed(file, format)
        assert one.look(1000.0) == set()
        assert one.look(1001.0) == {ip_address("10.0.0.5")}
        assert one.look(1002.0) == set()
        with file.open("a") as growing:
            growing.write(more)
        one.look(1003.0)
        assert {str(a): lease.expires > 1003.0 for a, lease in one.leases.items()} == {
            "10.0.0.5": True,
            "10.0.0.6": True,
        }
        assert one.skipped.total == 0


def test_a_line_without_end_costs_no_other(tmp_path: Path) -> None:
    """Blocks of zeros after a power cut: one record, skipped; a file of nothing else is no lease file."""
    file = tmp_path / "leases"
    zeros = b"\0" * 3_000_000
    file.write_bytes(f"0 {MAC} 10.0.0.5 x *\n".encode() + zeros + f"\n0 {OTHER} 10.0.0.6 x *\n".encode())
    one = Feed(file, "dnsmasq")
    one.look(1000.0)
    assert sorted(map(str, one.leases)) == ["10.0.0.5", "10.0.0.6"]
    assert [str(p) for p in one.skipped.samples] == [f"{file}:2: the line has more than a mebibyte"]
    # The next record may begin on the same line.
    lines = {
        "kea": f"10.0.0.6,{OTHER},,4294967295,0,1,0,0,x,0\n",
        "dnsmasq": f"0 {OTHER} 10.0.0.6 x *\n",
        "dhcpd": f"lease 10.0.0.6 {{\n  ends never;\n  hardware ethernet {OTHER};\n}}\n",
    }
    for format, text in lines.items():
        file.write_bytes(b"\0" * 4096 + text.encode())
        one = Feed(file, format)
        one.look(1000.0)
        assert [lease.mac for lease in one.leases.values()] == [OTHER], format
    for format in FORMATS:
        for garbage in (zeros, b"<html>\n<body>502 Bad Gateway</body>\n", b"\x00\x01\n" * 20, b"PK\x03\x04"):
            file.write_bytes(garbage)
            one = Feed(file, format)
            one.look(1000.0)
            one.look(1001.0)
            assert "has no line that is a lease" in (one.problem or ""), (format, garbage[:20])


HOSTILE = [
    '"}\nlease 10.0.0.5 {',
    '";} lease 10.0.0.5 { ends never; hardware ethernet 00:00:5e:00:53:ff; }',
    "x\\",
    '\\"',
    "a,b,0\n10.0.0.5,00:00:5e:00:53:ff,,9,9000,1,0,0,x,0",
    "# ",
    "}}}}",
    "{",
    "\r\n\x0b\x0c\x1c\x85\u2028",
    "&#x2c&#x2c0",
]


def as_dhcpd_does(character: str) -> str:
    """Escape what a client sent."""
    if character in '"\\':
        return "\\" + character
    if character.isascii() and character.isprintable():
        return character
    return "".join(f"\\{octet:03o}" for octet in character.encode())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_a_client_chose_forges_no_lease(name: str) -> None:
    """As each server escapes it: dhcpd in octal within quotes, Kea by `&#x2c`; dnsmasq takes no such name at all."""
    quoted = "".join(map(as_dhcpd_does, name))
    attacker = f'lease 10.0.0.66 {{\n  ends never;\n  hardware ethernet {OTHER};\n  uid "{quoted}";\n'
    attacker += f'  set vendor = "{quoted}";\n  client-hostname "{quoted}";\n}}\n'
    ours = f"lease 10.0.0.5 {{\n  ends never;\n  hardware ethernet {MAC};\n}}\n"
    wanted = {"10.0.0.5": (MAC, ENDLESS), "10.0.0.66": (OTHER, ENDLESS)}
    assert read("dhcpd", ours + attacker) == read("dhcpd", attacker + ours) == wanted
    # Kea keeps what is no letter, digit, dot or hyphen out of names (hostname-char-set), newlines above all.
    line = name.replace("\n", "").replace("\r", "").replace(",", "&#x2c")
    attacker = f"10.0.0.66,{OTHER},,4294967295,0,1,0,0,{line},0"
    ours = f"10.0.0.5,{MAC},,4294967295,0,1,0,0,x,0"
    for rows in ((ours, attacker), (attacker, ours)):
        assert read("kea", "\n".join((f"{LEASE4},state", *rows))) == wanted


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, list[Any]]]:
    """Give a socket that answers each command with the next answer: JSON, octets, or what a function does."""
    answers: list[Any] = []
    path = tmp_path / "kea.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(9)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65_536)
                    answer = answers.pop(0)
                    if callable(answer):
                        answer(connection)
                    else:
                        connection.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path, answers
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def source(path: Path) -> KeaSocket:
    """Give a source that may be asked without pause."""
    one = KeaSocket(path)
    one.read = KeaReader(path, 0.0).read
    return one


def row(last: int, **values: Any) -> dict[str, Any]:
    """Give a lease as Kea answers it."""
    return {"ip-address": f"10.0.0.{last}", "hw-address": MAC, "valid-lft": 1000, "cltt": 1000, "state": 0, **values}


def page(*rows: Any) -> dict[str, Any]:
    """Give a page."""
    return {"result": 0, "arguments": {"leases": list(rows), "count": len(rows)}}


BAD_ROWS: list[Any] = [
    7,
    None,
    [],
    {},
    row(9, **{"valid-lft": 1e400}),
    row(9, **{"valid-lft": True, "cltt": -5}),
    row(9, **{"cltt": 10**300}),
    row(9, **{"state": "0"}),
    row(9, **{"state": 9}),
    row(9, **{"state": [0]}),
    row(9, **{"ip-address": 7}),
    row(9, **{"ip-address": "junk"}),
    row(9, **{"valid-lft": None}),
]


def test_a_bad_row_of_kea_costs_no_other(server: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped, with its number; also at the end of a page, from where the next one goes on."""
    path, answers = server
    monkeypatch.setattr(kea, "PAGE", 3)
    answers += [page(row(5), BAD_ROWS[0], BAD_ROWS[1]), page(row(6), row(7, **{"hw-address": 5}), *BAD_ROWS[2:3])]
    answers += [page(*BAD_ROWS[3:5])]
    one = source(path)
    one.take(one.fetch(), 1000.0)
    assert one.problem is None
    assert {str(a): lease.mac for a, lease in one.leases.items()} == {"10.0.0.5": MAC, "10.0.0.6": MAC, "10.0.0.7": ""}
    assert [p.line for p in one.skipped.samples] == [2, 3, 6, 7, 8]
    for bad in BAD_ROWS:
        assert isinstance(read_row(bad), Unusable), bad


def test_octets_in_a_row_of_kea_cost_no_other(server: tuple[Path, list[Any]]) -> None:
    """A client chooses its hostname: what of it is not JSON must not keep the leases of all away."""
    path, answers = server
    for odd in (b"\xff\xe9", b"a\nb\x01", b"\xed\xa0\x80", b'x","y":' + b"9" * 6000 + b',"z":"'):
        answers.append(json.dumps(page(row(5, hostname="ODD"), row(6))).encode().replace(b"ODD", odd))
        one = source(path)
        one.take(one.fetch(), 1000.0)
        assert (one.problem, len(one.leases)) == (None, 2), odd[:9]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "cut"),
        (b'{"result": 0, "argum', "cut"),
        (b"[" * 100_000, "cut"),
        ({"result": 1, "text": "no such subnet"}, "Kea says: no such subnet"),
        ({"result": 0}, "not Kea"),
        ({"result": 0, "arguments": {"leases": {}}}, "not Kea"),
        ({"result": "0"}, "not Kea"),
        ([], "not Kea"),
        (page(*BAD_ROWS[:4]), "no lease that can be read"),
    ],
)
def test_a_wrong_answer_of_kea_ends_no_lease(server: tuple[Path, list[Any]], answer: Any, why: str) -> None:
    """It is a problem, and what was known stands; the next good answer counts."""
    path, answers = server
    answers += [page(row(5)), answer, page(row(5), row(6))]
    one = source(path)
    one.take(one.fetch(), 1000.0)
    one.take(one.fetch(), 1001.0)
    assert why in (one.problem or "")
    assert str(path) in (one.problem or "")
    assert set(map(str, one.leases)) == {"10.0.0.5"}
    assert one.leases[ip_address("10.0.0.5")].expires == 2000.0
    one.take(one.fetch(), 1002.0)
    assert one.problem is None
    assert set(map(str, one.leases)) == {"10.0.0.5", "10.0.0.6"}


def drip(connection: socket.socket) -> None:
    """Send an octet now and then, and never an end."""
    try:
        while True:
            connection.sendall(b" ")
            threading.Event().wait(0.02)
    except OSError:
        return


@pytest.mark.parametrize("hang", [drip, lambda connection: connection.recv(1)])
def test_kea_has_one_clock_for_an_answer(
    server: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch, hang: Callable[[socket.socket], Any]
) -> None:
    """A server that hangs, or that sends an octet now and then, is a problem in time."""
    path, answers = server
    monkeypatch.setattr(kea, "PATIENCE", 0.2)
    answers += [hang]
    part = source(path).fetch()
    assert part.problem is not None
    assert "whole within" in part.problem or "timed out" in part.problem


def test_pages_that_do_not_go_on_end(server: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that gives the same page again and again is a problem, and not a loop."""
    path, answers = server
    monkeypatch.setattr(kea, "PAGE", 1)
    answers += [page(row(5)), page(row(5))]
    assert "do not go on" in (source(path).fetch().problem or "")


class Message(dict[str, Any]):
    """A message of the kernel, as the library gives it."""

    def get_attr(self, name: str) -> Any:
        """Give an attribute."""
        return self["attrs"].get(name)


def test_a_strange_neighbour_hides_no_other() -> None:
    """Entries of bridges are about ports; what has no state, or another kind of address, is skipped."""
    good = Message(family=2, event="RTM_NEWNEIGH", state=2, attrs={"NDA_DST": "10.0.0.5", "NDA_LLADDR": MAC})
    assert read_message(good) == Lease(ip_address("10.0.0.5"), MAC, "", ENDLESS)
    assert read_message(Message({**good, "event": "RTM_DELNEIGH"})) == Lease(ip_address("10.0.0.5"), MAC, "", 0.0)
    for other in (
        {"family": 7},
        {"attrs": {"NDA_LLADDR": MAC}},
        {"attrs": {"NDA_DST": "10.0.0.5", "NDA_LLADDR": ":".join(["80"] * 20)}},
        {"attrs": {"NDA_DST": "224.0.0.5", "NDA_LLADDR": MAC}},
    ):
        assert read_message(Message({**good, **other})) is None
    for odd in (Message(), Message({**good, "state": None}), Message({**good, "attrs": {"NDA_DST": "junk"}}), None, 7):
        assert isinstance(read_message(odd), Unusable)
