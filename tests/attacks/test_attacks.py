"""Every row of the attack table that reaches a socket of ours, on the running daemon."""

from __future__ import annotations

import contextlib
import itertools
import json
import pwd
import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rdatatype
import pytest

from blockd.control.caller import Caller
from blockd.desk import Desk, Site
from blockd.exemptions.records import Rules
from blockd.policy.egress import exempt_at
from tests.attacks.rows import ROWS
from tests.conftest import Serve
from tests.support.daemon import Blockd
from tests.support.lan import Lan, inside, run
from tests.support.people import ALICE, CAROL
from tests.support.questions import CORPORATE, PERSONAL, STRANGER, addresses, ask, message, raw, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer

row = pytest.mark.row


def test_every_row_has_a_test_or_a_reason() -> None:
    """A row with neither fails here; so does a test of no row."""
    texts = [file.read_text() for file in Path(__file__).parent.glob("test_*.py")]
    tested = {name for text in texts for name in re.findall(r'^@row\("([a-z0-9-]+)"\)', text, re.MULTILINE)}
    waiting = {name for name, reason in ROWS.items() if reason}
    assert tested | waiting == set(ROWS)
    assert not tested & waiting


def any_address(query: dns.message.Message, asked: Asked) -> Reply:
    """Answer every A question."""
    return answer(query, f"{asked.name}. 300 IN A 192.0.2.1")


@row("id-port-entropy")
def test_ids_and_ports_cannot_be_guessed(serve: Serve, upstream: Upstream) -> None:
    """1,000 upstream queries leave from many ports with IDs all over."""
    upstream.script = any_address
    blockd = serve([upstream.address])
    for at in range(1000):
        ask(blockd, f"n{at}.example", client=PERSONAL)
    ids = [asked.id for asked in upstream.asked]
    ports = Counter(asked.port for asked in upstream.asked)
    assert len(set(ids)) > 950
    assert all(
        min(sum(value >> bit & 1 for value in ids), sum(~value >> bit & 1 for value in ids)) > 400 for bit in range(16)
    )
    assert len(ports) >= 256
    assert max(ports.values()) <= 100
    assert max(ports) - min(ports) > 1 << 14
    assert min(ports) >= 1024


@row("blind-spoofing")
def test_forged_answers_are_not_believed(serve: Serve, upstream: Upstream) -> None:
    """Wrong address, question and port are ignored; a wrong ID moves the question to TCP; the real answer is served."""
    blockd = serve([upstream.address])

    def forge(query: dns.message.Message, asked: Asked) -> Reply:
        if asked.tcp:
            return answer(query, f"{asked.name}. 300 IN A 192.0.2.1")
        bad = answer(query, f"{asked.name}. 300 IN A 192.0.2.66")
        upstream.send_from("127.0.0.66", bad, asked.port)
        upstream.send_from("127.0.0.1", bad, asked.port)
        other = answer(dns.message.make_query("other.example", "A", id=asked.id), "other.example. 300 IN A 192.0.2.66")
        upstream.send(other, asked.port)
        if asked.name.startswith("guessed"):
            upstream.send(struct.pack("!H", asked.id ^ 1) + bad[2:], asked.port)
            if asked.name == "guessed.example":
                return None
        time.sleep(0.05)
        return answer(query, f"{asked.name}. 300 IN A 192.0.2.1")

    upstream.script = forge
    assert addresses(ask(blockd, "plain.example", client=PERSONAL)) == ["192.0.2.1"]
    assert not any(asked.tcp for asked in upstream.asked)
    assert blockd.metric("blockd_upstream_faults_total", reason="unexpected") == 3
    assert addresses(ask(blockd, "guessed.example", client=PERSONAL)) == ["192.0.2.1"]
    assert upstream.asked[-1].tcp
    assert blockd.metric("blockd_upstream_faults_total", reason="wrong_id") == 1
    assert addresses(ask(blockd, "guessed-beside-the-real.example", client=PERSONAL)) == ["192.0.2.1"]


@row("birthday")
def test_equal_questions_are_asked_once(serve: Serve, upstream: Upstream) -> None:
    """500 clients that ask one name cause one upstream query, ECS or not."""
    upstream.script = any_address
    upstream.delay = 0.3
    blockd = serve([upstream.address], upstream={"servers": [upstream.address], "pending_a_client": 1000})
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        client.bind((PERSONAL, 0))
        client.settimeout(3)
        for at in range(500):
            options: list[dns.edns.Option] = [dns.edns.ECSOption(f"10.0.{at % 256}.0", 24)] if at % 2 else []
            query = dns.message.make_query("one.example", "A", use_edns=0, options=options, id=at + 1)
            client.sendto(query.to_wire(), ("127.0.0.1", blockd.port))
        got = {struct.unpack("!H", client.recv(1500)[:2])[0] for _ in range(500)}
    assert len(got) == 500
    assert upstream.names() == ["one.example"]
    assert blockd.metric("blockd_pending_coalesced_total") == 499


def test_overload_sheds_misses_and_still_blocks(serve: Serve, upstream: Upstream) -> None:
    """With its buffer more than half full of names to be asked, it asks few of them and answers every blocked one."""
    blockd = serve([upstream.address], server={"threads": 1})
    assert blockd.process is not None
    misses, blocked = 9_000, 300

    def send(client: socket.socket, name: str, number: int) -> None:
        client.sendto(dns.message.make_query(name, "A", id=number).to_wire(), ("127.0.0.1", blockd.port))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as calm:
        calm.bind((CORPORATE, 0))
        calm.settimeout(5)
        blockd.process.send_signal(signal.SIGSTOP)
        try:
            # From many addresses, so that neither a client's rate nor its bound is what sheds.
            for first in range(0, misses, 100):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
                    flood.bind((f"127.30.0.{first // 100 + 1}", 0))
                    for at in range(first, first + 100):
                        send(flood, f"n{at}.example", at)
                        if at % (misses // blocked) == 0:
                            send(calm, f"n{at}.tiktok.com", at)
        finally:
            blockd.process.send_signal(signal.SIGCONT)
        answered = {dns.message.from_wire(calm.recv(1500)).id for _ in range(blocked)}
    assert len(answered) == blocked
    assert 0 < blockd.metric("blockd_pending_shed_total", bound="overload") < misses
    assert blockd.metric("blockd_queries_not_read_total") == 0
    # The upstream, a slow one, has to get through what it was sent.
    after = (rcode(ask(blockd, f"after{at}.example", client=CORPORATE)) for at in range(20))
    assert "NXDOMAIN" in after


@row("bailiwick")
def test_records_of_others_are_dropped(serve: Serve, upstream: Upstream) -> None:
    """Extra records for another name are neither returned nor kept."""

    def generous(query: dns.message.Message, asked: Asked) -> Reply:
        if asked.name == "victim.example":
            return answer(query, "victim.example. 300 IN A 192.0.2.1")
        made = dns.message.from_wire(
            answer(query, "a.example. 300 IN A 192.0.2.2", "victim.example. 300 IN A 192.0.2.66")
        )
        made.authority.append(dns.rrset.from_text("victim.example.", 300, "IN", "NS", "evil.example."))
        made.additional.append(dns.rrset.from_text("victim.example.", 300, "IN", "A", "192.0.2.66"))
        return made.to_wire()

    upstream.script = generous
    blockd = serve([upstream.address])
    got = ask(blockd, "a.example", client=PERSONAL)
    assert addresses(got) == ["192.0.2.2"]
    assert not got.authority
    assert not got.additional
    assert addresses(ask(blockd, "victim.example", client=PERSONAL)) == ["192.0.2.1"]


def bomb(hops: int, names: int, asked: Asked) -> bytes:
    """Build an answer of chained pointers, each name as dear as it can be."""
    question = asked.wire[12 : asked.wire.index(b"\0", 12) + 5]
    packet = bytearray(struct.pack("!6H", asked.id, 0x8180, 1, names, 0, 0) + question)
    first = len(packet)
    for at in range(hops):
        target = 12 if at == 0 else first + 2 * (at - 1)
        packet += struct.pack("!H", 0xC000 | target)
    for _ in range(names):
        packet += struct.pack("!HHHIH", 0xC000 | min(first + 2 * (hops - 1), 0x3FFF), 1, 1, 60, 4) + b"\xc0\0\2\1"
    return bytes(packet)


@row("compression-bombs")
def test_pointer_chains_cost_no_time(serve: Serve, upstream: Upstream) -> None:
    """Loops, chains and bombs are refused, and others are answered meanwhile."""

    def nasty(query: dns.message.Message, asked: Asked) -> Reply:
        if asked.name.startswith("good"):
            return any_address(query, asked)
        if asked.name.startswith("loop"):
            wire = bytearray(answer(query, f"{asked.name}. 60 IN A 192.0.2.1"))
            at = wire.index(b"\xc0\x0c")
            wire[at : at + 2] = struct.pack("!H", 0xC000 | at)
            return bytes(wire)
        return bomb(450, 70, asked)

    upstream.script = nasty
    blockd = serve([upstream.address])
    for at in range(20):
        assert rcode(ask(blockd, f"bomb{at}.example", client=PERSONAL)) == "SERVFAIL"
        assert rcode(ask(blockd, f"loop{at}.example", client=PERSONAL)) == "SERVFAIL"
    assert addresses(ask(blockd, "good.example", client=PERSONAL)) == ["192.0.2.1"]
    pointer_in_question = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1"
    reply = raw(blockd, pointer_in_question)
    assert reply is not None
    assert reply[3] & 15 == 1


@row("oversized-labels")
@pytest.mark.parametrize("label", [64, 100, 150, 191])
def test_long_labels_are_malformed(serve: Serve, upstream: Upstream, label: int) -> None:
    """Labels over 63 octets and names over 255 reach no policy."""
    blockd = serve([upstream.address])
    long_label = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + bytes([label]) + b"a" * label + b"\0\0\1\0\1"
    long_name = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1"
    for packet in (long_label, long_name):
        reply = raw(blockd, packet)
        assert reply is not None
        assert reply[3] & 15 == 1
    assert not upstream.asked


@row("look-alike-names")
def test_names_are_matched_by_label(serve: Serve, upstream: Upstream) -> None:
    """A dot or NUL inside a label, a longer word or a longer name is another name."""
    upstream.script = any_address
    blockd = serve([upstream.address])
    for name in (
        r"tiktok\.com",
        r"www\.tiktok.com.example",
        "nottiktok.com",
        "tiktok.com.example.org",
        r"tiktok\000.com",
    ):
        assert rcode(ask(blockd, name, client=CORPORATE)) == "NOERROR", name
    for name in ("tiktok.com", "a.b.tiktok.com", r"x\.y.tiktok.com"):
        assert rcode(ask(blockd, name, client=CORPORATE)) == "NXDOMAIN", name


@row("case-and-idn")
def test_case_is_folded_and_idn_is_ascii(serve: Serve, upstream: Upstream) -> None:
    """Any case is blocked and echoed; a U-label in a rule blocks its A-label."""
    blockd = serve(
        [upstream.address],
        apps={"idn": {"suffixes": ["bücher.example"]}},
        policies={"corporate": {"block": ["tiktok", "idn"]}},
    )
    got = ask(blockd, "wWw.TiKtOk.CoM", client=CORPORATE)
    assert rcode(got) == "NXDOMAIN"
    assert got.question[0].name.to_text() == "wWw.TiKtOk.CoM."
    assert rcode(ask(blockd, "xn--bcher-kva.example", client=CORPORATE)) == "NXDOMAIN"


@row("edns-abuse")
def test_edns_is_bounded(serve: Serve, upstream: Upstream) -> None:
    """Thousands of options cost nothing and go nowhere; two OPTs and a new version get their own errors."""
    upstream.script = any_address
    blockd = serve([upstream.address])
    head = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 1) + b"\x05plain\x07example\0\0\1\0\1"
    options = b"\xfd\xe9\0\0" * 900
    many = head + struct.pack("!BHHIH", 0, 41, 1232, 0, len(options)) + options
    reply = raw(blockd, many, client=PERSONAL)
    assert reply is not None
    assert reply[3] & 15 == 0
    assert len(upstream.asked[0].wire) < 60
    huge = head + struct.pack("!BHHIH", 0, 41, 1232, 0, 60000) + b"\xfd\xe9\0\0" * 15000
    reply = raw(blockd, huge, client=PERSONAL)
    assert reply is not None
    assert reply[3] & 15 == 1
    opt = struct.pack("!BHHIH", 0, 41, 1232, 0, 0)
    two = head[:10] + b"\0\2" + head[12:] + opt + opt
    reply = raw(blockd, two, client=PERSONAL)
    assert reply is not None
    assert reply[3] & 15 == 1
    version = head + struct.pack("!BHHIH", 0, 41, 1232, 1 << 16, 0)
    reply = raw(blockd, version, client=PERSONAL)
    assert reply is not None
    assert dns.message.from_wire(reply).rcode() == 16


@row("identity-forgery")
def test_a_client_cannot_say_who_it_is(serve: Serve, upstream: Upstream) -> None:
    """ECS, MAC options and a PROXY header change nothing and go nowhere."""
    upstream.script = any_address
    blockd = serve([upstream.address])
    options = [
        dns.edns.ECSOption(PERSONAL, 32),
        dns.edns.GenericOption(dns.edns.OptionType.make(65001), b"\x02\0\0\0\0\1"),
        dns.edns.GenericOption(dns.edns.OptionType.make(65073), b"\x02\0\0\0\0\1"),
    ]
    assert rcode(ask(blockd, "tiktok.com", client=CORPORATE, options=options)) == "NXDOMAIN"
    assert rcode(ask(blockd, "plain.example", client=PERSONAL, options=options)) == "NOERROR"
    assert dns.message.from_wire(upstream.asked[0].wire).options == ()
    proxy = b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x12\0\x0c" + bytes([127, 0, 0, 2, 127, 0, 0, 1, 0, 9, 0, 53])
    reply = raw(blockd, proxy + message("tiktok.com").to_wire(), timeout=0.5)
    assert reply is None or reply[3] & 15 in (1, 4)


@row("decide-use-split")
def test_the_judged_name_is_the_asked_name(serve: Serve, upstream: Upstream) -> None:
    """Whatever the case, one folded name is judged, cached and asked."""
    upstream.script = any_address
    blockd = serve([upstream.address])
    for name in ("Plain.Example", "PLAIN.EXAMPLE", "plain.example"):
        assert rcode(ask(blockd, name, client=PERSONAL)) == "NOERROR"
    assert len(upstream.asked) == 1
    assert b"\x05plain\x07example\0" in upstream.asked[0].wire


@row("cached-verdict-leak")
def test_no_device_sees_the_verdict_of_another(serve: Serve, upstream: Upstream) -> None:
    """Whoever warms the cache, each gets its own answer."""
    upstream.records.update(
        {
            "a.example": ["a.example. 300 IN CNAME x.tiktokv.com."],
            "b.example": ["b.example. 300 IN CNAME x.tiktokv.com."],
            "x.tiktokv.com": ["x.tiktokv.com. 300 IN A 192.0.2.1"],
        }
    )
    blockd = serve([upstream.address])
    for name, order in (("a.example", (CORPORATE, PERSONAL)), ("b.example", (PERSONAL, CORPORATE))):
        for client in (*order, *order):
            wanted = "NXDOMAIN" if client == CORPORATE else "NOERROR"
            assert rcode(ask(blockd, name, client=client)) == wanted


@row("stale-negative-dns64")
def test_translated_addresses_are_looked_through(serve: Serve, upstream: Upstream) -> None:
    """An app's address inside IPv6 is its address; there is no stale answer to slip through (serve-stale is off)."""
    forms = ["::ffff:71.18.0.1", "64:ff9b::4712:1", "64:ff9b:1::4712:1", "2002:4712:1::1", "2605:340::1"]
    upstream.records.update({f"n{at}.example": [f"n{at}.example. 300 IN AAAA {form}"] for at, form in enumerate(forms)})
    upstream.records["ok.example"] = ["ok.example. 300 IN AAAA 2001:db8::1"]
    blockd = serve([upstream.address])
    for at in range(len(forms)):
        assert rcode(ask(blockd, f"n{at}.example", "AAAA", client=CORPORATE)) == "NXDOMAIN", forms[at]
        assert rcode(ask(blockd, f"n{at}.example", "AAAA", client=PERSONAL)) == "NOERROR"
    assert rcode(ask(blockd, "ok.example", "AAAA", client=CORPORATE)) == "NOERROR"


@row("qtype-bypass")
def test_every_type_of_a_blocked_name_is_blocked(serve: Serve, upstream: Upstream) -> None:
    """DO and CD or not, whatever is asked for."""
    blockd = serve([upstream.address])
    for qtype in ("A", "AAAA", "HTTPS", "SVCB", "ANY", "CNAME", "TXT", "MX", "NS", "DS", "DNSKEY", "SOA", "TYPE65534"):
        for flags in (dns.flags.RD, dns.flags.RD | dns.flags.CD, 0):
            got = ask(blockd, "www.tiktok.com", qtype, client=CORPORATE, flags=int(flags), want_dnssec=True)
            assert rcode(got) == "NXDOMAIN", qtype
    assert not upstream.asked
    # DS of the name at which the block begins is the parent's, and opens no way: nothing but DS and its proof is kept.
    way = ["tiktok.com. 60 IN A 192.0.2.1", "tiktok.com. 60 IN HTTPS 1 edge.example. ipv4hint=192.0.2.1"]
    extra = ["edge.example. 60 IN A 192.0.2.1", "tiktok.com. 60 IN DS 1 13 99 aa", "tiktok.com. 60 IN TXT 192.0.2.1"]
    soa = (
        "com. 60 IN SOA a. b. 1 2 3 4 5",
        "edge.example. 60 IN NS ns.edge.example.",
        "tiktok.com. 60 IN NS ns.tiktok.com.",
    )
    upstream.script = lambda query, asked: answer(query, *way, *extra, authority=soa)
    for flags in (dns.flags.RD, dns.flags.RD | dns.flags.CD):
        got = ask(blockd, "tiktok.com", "DS", client=CORPORATE, flags=int(flags), want_dnssec=True)
        assert [rrset.to_text() for rrset in got.answer] == ["tiktok.com. 60 IN DS 1 13 99 aa"]
        assert not got.authority
        assert not [rrset for rrset in got.additional if rrset.rdtype != dns.rdatatype.OPT]
    for rows in (
        ["tiktok.com. 60 IN CNAME edge.example.", *extra],
        ["com. 60 IN DNAME example.", *extra],
        ["tiktok.com. 60 IN DNAME x.example."],
    ):
        upstream.script = lambda query, asked, rows=rows: answer(query, *rows)  # type: ignore[misc]
        got = ask(blockd, "tiktok.com", "DS", client=CORPORATE, flags=int(dns.flags.RD), want_dnssec=False)
        assert not [
            rrset for rrset in got.answer if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.CNAME, dns.rdatatype.DNAME)
        ], rows
    for qtype in ("A", "DNSKEY", "NS", "CDS", "NSEC", "HTTPS", "ANY", "TYPE43"):
        assert (rcode(ask(blockd, "tiktok.com", qtype, client=CORPORATE)) == "NXDOMAIN") == (qtype != "TYPE43"), qtype


@row("cname-cloaking")
@pytest.mark.parametrize("hops", [1, 7, 16])
def test_a_name_behind_aliases_is_blocked(serve: Serve, upstream: Upstream, hops: int) -> None:
    """At any depth up to the limit, wherever in the chain it stands, DNAME too."""
    names = [f"n{at}.example" for at in range(hops)] + ["edge.tiktokcdn.com"]
    rows = [f"{names[at]}. 300 IN CNAME {names[at + 1]}." for at in range(hops)]
    upstream.script = lambda query, asked: answer(query, *rows, "edge.tiktokcdn.com. 300 IN A 192.0.2.1")
    blockd = serve([upstream.address])
    assert rcode(ask(blockd, "n0.example", client=CORPORATE)) == "NXDOMAIN"
    assert addresses(ask(blockd, "n0.example", client=PERSONAL)) == ["192.0.2.1"]


@row("cname-cloaking")
def test_a_chain_that_hides_its_end_is_a_failure(serve: Serve, upstream: Upstream) -> None:
    """Longer than 16, or a loop: SERVFAIL for everybody; DNAME and HTTPS targets are followed."""

    def script(query: dns.message.Message, asked: Asked) -> Reply:
        if asked.name == "long.example":
            names = ["long.example", *[f"n{at}.example" for at in range(16)], "edge.tiktokcdn.com"]
            return answer(query, *[f"{a}. 300 IN CNAME {b}." for a, b in itertools.pairwise(names)])
        if asked.name == "loop.example":
            return answer(query, "loop.example. 300 IN CNAME b.example.", "b.example. 300 IN CNAME loop.example.")
        if asked.name == "x.dname.example":
            return answer(query, "dname.example. 300 IN DNAME tiktokv.com.", "x.tiktokv.com. 300 IN A 192.0.2.1")
        return answer(query, f"{asked.name}. 300 IN HTTPS 1 edge.tiktokcdn.com. alpn=h2")

    upstream.script = script
    blockd = serve([upstream.address])
    for client in (CORPORATE, PERSONAL):
        assert rcode(ask(blockd, "long.example", client=client)) == "SERVFAIL"
        assert rcode(ask(blockd, "loop.example", client=client)) == "SERVFAIL"
    assert rcode(ask(blockd, "x.dname.example", client=CORPORATE)) == "NXDOMAIN"
    assert addresses(ask(blockd, "x.dname.example", client=PERSONAL)) == ["192.0.2.1"]
    assert rcode(ask(blockd, "svc.example", "HTTPS", client=CORPORATE)) == "NXDOMAIN"
    assert rcode(ask(blockd, "svc.example", "HTTPS", client=PERSONAL)) == "NOERROR"
    assert blockd.metric("blockd_upstream_faults_total", reason="chain") >= 2


@row("tcp-slowloris")
def test_slow_clients_are_cut_and_disturb_nobody(serve: Serve, upstream: Upstream) -> None:
    """One octet at a time, never reading, or idle: closed after server.tcp.idle; others are answered."""
    upstream.script = any_address
    tcp = {"idle": 1.0, "connections": 20, "connections_a_client": 15}
    blockd = serve([upstream.address], server={"tcp": tcp})
    dripping = socket.create_connection(("127.0.0.1", blockd.port), source_address=(PERSONAL, 0))
    deadline = time.monotonic() + 5
    try:
        for octet in message("x.example").to_wire() * 10:
            dripping.send(bytes([octet]))
            time.sleep(0.2)
            assert time.monotonic() < deadline, "never closed"
    except OSError:
        pass
    dripping.close()
    idle = [socket.create_connection(("127.0.0.1", blockd.port), source_address=(PERSONAL, 0)) for _ in range(20)]
    assert rcode(ask(blockd, "a.example", client=STRANGER, tcp=True)) == "NOERROR"
    assert rcode(ask(blockd, "a.example", client=PERSONAL)) == "NOERROR"
    assert blockd.metric("blockd_tcp_closed_total", reason="client") == 5
    time.sleep(1.5)
    for connection in idle:
        connection.settimeout(1)
        with contextlib.suppress(OSError):
            assert connection.recv(1) == b""
        connection.close()
    assert blockd.metric("blockd_tcp_closed_total", reason="idle") >= 15
    assert blockd.metric("blockd_tcp_connections") == 0


@row("tcp-slowloris")
def test_who_never_reads_is_cut(serve: Serve, upstream: Upstream) -> None:
    """A client that asks and never reads fills its own buffer, not our memory."""
    records = [f'big.example. 300 IN TXT "{"x" * 250} {at}"' for at in range(200)]
    upstream.script = lambda query, asked: (
        answer(query, *records) if asked.tcp else answer(query, *records[:1])[:2] + b"\x83\x80" + answer(query)[4:]
    )
    blockd = serve([upstream.address], server={"tcp": {"idle": 1.0}})
    assert len(ask(blockd, "big.example", "TXT", client=PERSONAL, tcp=True).answer[0]) == 200
    before = blockd.memory()
    with socket.create_connection(("127.0.0.1", blockd.port), source_address=(PERSONAL, 0)) as client:
        query = message("big.example", "TXT").to_wire()
        client.settimeout(3)
        try:
            for _ in range(2000):
                client.sendall(struct.pack("!H", len(query)) + query)
        except OSError:
            pass
        time.sleep(2)
    assert blockd.metric("blockd_tcp_closed_total", reason="slow_reader") == 1
    assert blockd.memory() - before < 40 << 20


@row("tcp-slowloris")
def test_many_who_never_read_share_a_bound(serve: Serve, upstream: Upstream) -> None:
    """Misses are read on while their answers are fetched: each connection could have 128 replies of 60 KB."""
    record = b"\xc0\x0c" + struct.pack("!HHIHB", 16, 1, 300, 251, 250) + bytes(250)

    def big(query: dns.message.Message, asked: Asked) -> Reply:
        wire = query.to_wire()
        question = wire[12 : wire.index(b"\x07example\0", 12) + 13]
        head = wire[:2] + (b"\x81\x80" if asked.tcp else b"\x83\x80")
        return head + struct.pack("!4H", 1, 230 if asked.tcp else 0, 0, 0) + question + record * 230 * asked.tcp

    upstream.script = big
    blockd = serve([upstream.address])
    with contextlib.ExitStack() as stack:
        for at in range(20):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            client.bind((f"127.0.1.{at + 1}", 0))
            client.connect(("127.0.0.1", blockd.port))
            queries = [message(f"n{one}.c{at}.example", "TXT").to_wire() for one in range(128)]
            client.sendall(b"".join(struct.pack("!H", len(query)) + query for query in queries))
        deadline = time.monotonic() + 8
        while not blockd.metric("blockd_tcp_closed_total", reason="slow_reader"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert blockd.metric("blockd_tcp_connections") > 5
        assert len(ask(blockd, "other.example", "TXT", client=PERSONAL, tcp=True).answer[0]) == 1


@row("many-queries-per-stream")
def test_one_connection_has_a_bound(serve: Serve, upstream: Upstream) -> None:
    """After so many queries it is closed, answered in full."""
    upstream.script = any_address
    blockd = serve(
        [upstream.address], server={"tcp": {"queries_a_connection": 100}, "client_burst": 10000, "client_rate": 10000}
    )
    query = message("tiktok.com").to_wire()
    framed = struct.pack("!H", len(query)) + query
    received = b""
    with socket.create_connection(("127.0.0.1", blockd.port)) as client:
        client.settimeout(3)
        try:
            client.sendall(framed * 5000)
            while chunk := client.recv(65536):
                received += chunk
        except OSError:
            pass
    assert blockd.metric("blockd_tcp_closed_total", reason="many_queries") == 1
    assert 100 <= blockd.metric("blockd_queries_total", proto="tcp") <= 101


@row("query-flood")
def test_a_flood_is_limited_by_client(serve: Serve, upstream: Upstream) -> None:
    """Over its rate a client is not answered, beside it others are; many spoofed clients use no more memory."""
    blockd = serve([upstream.address], server={"client_rate": 100, "client_burst": 200})
    query = message("tiktok.com").to_wire()
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.bind((CORPORATE, 0))
        client.setblocking(False)
        got = 0
        for _ in range(2000):
            client.sendto(query, ("127.0.0.1", blockd.port))
        time.sleep(0.3)
        try:
            while client.recv(1500):
                got += 1
        except BlockingIOError:
            pass
    assert 200 <= got <= 400
    assert blockd.metric("blockd_dropped_total", reason="client_rate") == 2000 - got
    assert rcode(ask(blockd, "localhost", client=PERSONAL)) == "NOERROR"
    before = blockd.memory()
    for at in range(2000):
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind((f"127.{at % 250 + 1}.{at // 250 + 1}.9", 0))
            client.sendto(query, ("127.0.0.1", blockd.port))
    assert blockd.memory() - before < 8 << 20


@row("random-subdomain")
def test_random_names_are_shed_and_blocked_ones_answered(serve: Serve, upstream: Upstream) -> None:
    """Misses are bounded and refused fast; random names below a blocked one never leave."""
    upstream.script = lambda query, asked: None
    server = {"client_rate": 100_000, "client_burst": 100_000}
    settings = {"servers": [upstream.address], "pending": 500, "pending_a_client": 400}
    blockd = serve([upstream.address], server=server, upstream=settings)
    rng = random.Random(1)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        client.bind((CORPORATE, 0))
        client.settimeout(1)
        for _ in range(2000):
            client.sendto(message(f"{rng.randrange(1 << 40):x}.example").to_wire(), ("127.0.0.1", blockd.port))
        started = time.monotonic()
        assert client.recv(1500)[3] & 15 == 2
        assert time.monotonic() - started < 0.5
    assert blockd.metric("blockd_pending_questions") <= 500
    sent = len(upstream.asked)
    for _ in range(300):
        assert rcode(ask(blockd, f"{rng.randrange(1 << 40):x}.tiktok.com", client=CORPORATE)) == "NXDOMAIN"
    assert not any(name.endswith("tiktok.com") for name in upstream.names()[sent:])
    assert blockd.metric("blockd_pending_shed_total") > 1000


@row("amplification")
def test_a_small_question_gets_no_large_answer(serve: Serve, upstream: Upstream) -> None:
    """At most 1232 octets whatever is offered, 512 without EDNS, one short record for ANY, nothing for strangers."""
    records = [f'big.example. 300 IN TXT "{"x" * 250}{at}"' for at in range(16)]
    upstream.script = lambda query, asked: answer(query, *records)
    blockd = serve([upstream.address], server={"clients": ["127.0.0.0/30"]})
    for options in ({"payload": 4096}, {"use_edns": False}):
        wire = raw(blockd, message("big.example", "TXT", **options).to_wire(), client=PERSONAL)
        assert wire is not None
        assert len(wire) <= (1232 if "payload" in options else 512)
        assert wire[2] & 2, "TC"
    asked = len(upstream.asked)
    got = ask(blockd, "big.example", "ANY", client=PERSONAL)
    assert [str(record) for record in got.answer[0]] == ['"RFC8482" ""']
    assert len(upstream.asked) == asked
    refused = []
    with socket.socket(type=socket.SOCK_DGRAM) as stranger:
        stranger.bind((STRANGER, 0))
        stranger.settimeout(0.3)
        for _ in range(30):
            stranger.sendto(message("a.example").to_wire(), ("127.0.0.1", blockd.port))
        with contextlib.suppress(TimeoutError):
            while True:
                refused.append(stranger.recv(1500))
    assert 10 <= len(refused) <= 12
    assert all(reply[3] & 15 == 5 for reply in refused)
    assert blockd.metric("blockd_dropped_total", reason="refusal_rate") == 30 - len(refused)


@row("dnsbomb")
def test_no_answers_are_saved_up(serve: Serve, upstream: Upstream) -> None:
    """Slow answers are given up before two seconds are over, and a repeated query does not collect replies."""
    upstream.script = lambda query, asked: None
    blockd = serve([upstream.address])
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.bind((PERSONAL, 0))
        client.settimeout(2.5)
        query = message("slow.example").to_wire()
        for _ in range(50):
            client.sendto(query, ("127.0.0.1", blockd.port))
        started = time.monotonic()
        assert client.recv(1500)[3] & 15 == 2
        assert time.monotonic() - started < 2
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1500)


@row("keytrap-nsec3")
def test_signatures_cost_nothing_and_ad_is_not_ours_to_give(serve: Serve, upstream: Upstream) -> None:
    """Signed answers are copied, never validated; AD does not pass unless upstream.trust_ad says so."""

    def signed(query: dns.message.Message, asked: Asked) -> Reply:
        signature = "A 13 2 300 20300101000000 20200101000000 1 example. " + "AA" * 32
        rows = [f"{asked.name}. 300 IN A 192.0.2.1"] + [
            f"{asked.name}. 300 IN RRSIG {signature}{at:02}==" for at in range(10, 30)
        ]
        wire = bytearray(answer(query, *rows))
        wire[3] |= 0x20
        return bytes(wire)

    upstream.script = signed
    blockd = serve([upstream.address])
    got = ask(blockd, "s.example", client=PERSONAL, want_dnssec=True, tcp=True)
    assert not got.flags & dns.flags.AD
    assert addresses(got) == ["192.0.2.1"]
    blockd.values["upstream"]["trust_ad"] = True
    assert blockd.reload().returncode == 0
    assert ask(blockd, "s.example", client=PERSONAL, want_dnssec=True, tcp=True).flags & dns.flags.AD


@row("self-made-loop")
def test_a_forwarding_loop_ends(tmp_path: Path) -> None:
    """An upstream whose address becomes the machine's own: SERVFAIL at once, counted as a loop."""
    with Lan(tmp_path) as lan:
        blockd = Blockd(tmp_path, [])
        blockd.values["server"]["listen"] = [f"0.0.0.0:{blockd.port}"]
        blockd.values["upstream"]["servers"] = [f"10.77.0.99:{blockd.port}"]
        blockd.write()
        blockd.start(prefix=lan.prefix(lan.gateway))
        try:
            run("ip", "-n", lan.gateway, "address", "add", "10.77.0.99/32", "dev", "lan")
            with inside(lan.gateway):
                started = time.monotonic()
                assert rcode(ask(blockd, "a.example", client=PERSONAL)) == "SERVFAIL"
                assert time.monotonic() - started < 1
                assert blockd.metric("blockd_refused_total", reason="loop") >= 1
        finally:
            blockd.stop()


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@row("http")
def test_the_admin_address_is_bounded(serve: Serve, upstream: Upstream) -> None:
    """Bodies, endless headers and odd methods are refused; the daemon answers on."""
    blockd = serve([upstream.address])

    def http(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", blockd.admin)) as client:
            client.settimeout(3)
            received = b""
            try:
                client.sendall(request)
                while chunk := client.recv(65536):
                    received += chunk
            except OSError:
                pass
            return received

    big = b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 100_000
    assert b" 413 " in http(big).split(b"\r\n")[0]
    chunked = b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"fffff\r\n"
    assert b" 413 " in http(chunked).split(b"\r\n")[0]
    held = [socket.create_connection(("127.0.0.1", blockd.admin)) for _ in range(80)]
    time.sleep(0.3)
    assert sum(_is_closed(connection) for connection in held) >= 16
    for connection in held:
        connection.close()
    time.sleep(0.3)
    many = b"GET /metrics HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % at for at in range(5000)) + b"\r\n"
    assert b" 200 " not in http(many).split(b"\r\n")[0]
    long_line = b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    assert b" 200 " not in http(long_line).split(b"\r\n")[0]
    odd = http(b"DELETE /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert odd.split(b" ")[1] in (b"405", b"501")
    got = http(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil\r\nConnection: close\r\n\r\n")
    assert b" 200 " in got.split(b"\r\n")[0]
    assert b"access-control" not in got.lower()
    assert blockd.values["admin"]["listen"].startswith("127.")


@row("injection")
def test_metrics_stay_clean_and_bounded(serve: Serve, upstream: Upstream) -> None:
    """Odd and many names: promtool has nothing to say, and there are no more rows than before."""
    blockd = serve([upstream.address])
    for name in (r"\"\010x.example", r"a{b=\"c\"}.example", "<script>.example", r"\\.example"):
        ask(blockd, name, client=PERSONAL)
    before = len(blockd.http("/metrics").splitlines())
    for at in range(300):
        ask(blockd, f"r{at}.tiktok.com", client=CORPORATE)
        ask(blockd, f"r{at}.example", f"TYPE{300 + at}", client=PERSONAL)
    after = blockd.http("/metrics")
    assert abs(len(after.splitlines()) - before) <= 2
    checked = subprocess.run(["promtool", "check", "metrics"], input=after, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@row("list-poisoning")
def test_a_poisoned_list_does_not_get_in(serve: Serve, upstream: Upstream) -> None:
    """HTML, public suffixes and junk are refused, and blocked by nobody's word; a list that is gone changes nothing."""
    upstream.script = any_address
    lists = [{"file": "x.txt", "format": "domains"}]
    blockd = serve([upstream.address], policies={"corporate": {"block": ["tiktok"]}})
    (blockd.directory / "apps" / "x.txt").write_text("bad.example\n")
    # Whoever writes a list cannot lift another app's ban with it.
    opening = "||mine.example^\n@@||tiktok.com^$important\n@@|www.tiktok.com^$important\n"
    (blockd.directory / "apps" / "y.txt").write_text(opening)
    blockd.write_app("listed", lists=[*lists, {"file": "y.txt"}])
    blockd.values["policies"]["corporate"]["block"].append("listed")
    assert blockd.reload().returncode == 0
    for name in ("bad.example", "tiktok.com", "www.tiktok.com"):
        assert rcode(ask(blockd, name, client=CORPORATE)) == "NXDOMAIN", name
    (blockd.directory / "apps" / "y.txt").write_text(f"{opening}server=/#/#\n")
    (blockd.directory / "apps" / "x.txt").write_text("192.0.2.1\n0xc0000202\n2001:db8::1\n")
    refused = blockd.reload()
    assert refused.returncode == 1
    assert "x.txt:1: " in refused.stderr
    assert "an address, not a name" in refused.stderr
    (blockd.directory / "apps" / "y.txt").write_text(opening)
    page = "<!DOCTYPE html>\n<html><body>\n<h1>502</h1>\ncom\nco.uk\n\x00\xff\nbad.example\n"
    (blockd.directory / "apps" / "x.txt").write_bytes(page.encode("latin-1"))
    refused = blockd.reload()
    assert refused.returncode == 1
    assert "x.txt:4: com: a public suffix; 2 such in this list" in refused.stderr
    assert "x.txt:1: 4 of 5 lines (80%) give no name, more than reload.largest_unparsed (20%)" in refused.stderr
    assert rcode(ask(blockd, "bad.example", client=CORPORATE)) == "NXDOMAIN"
    assert blockd.run("reload", "--accept").returncode == 0
    assert rcode(ask(blockd, "bad.example", client=CORPORATE)) == "NXDOMAIN"
    assert rcode(ask(blockd, "other.com", client=CORPORATE)) == "NOERROR"
    assert blockd.metric("blockd_list_lines_skipped", app="listed") == 6
    (blockd.directory / "apps" / "x.txt").write_text("<html><body><h1>502</h1></body></html>\n")
    assert blockd.reload().returncode == 1
    assert rcode(ask(blockd, "bad.example", client=CORPORATE)) == "NXDOMAIN"
    (blockd.directory / "apps" / "x.txt").unlink()
    gone = blockd.reload()
    assert gone.returncode == 1
    assert "listed.yaml:3: lists.0.file:" in gone.stderr
    assert rcode(ask(blockd, "bad.example", client=CORPORATE)) == "NXDOMAIN"


@row("reload-races")
def test_reloads_under_load_lose_and_leak_nothing(serve: Serve, upstream: Upstream) -> None:
    """While one app's block comes and goes, every query gets one of the two right answers, and none gets none."""
    upstream.script = any_address
    blockd = serve([upstream.address], apps={"flip": {"suffixes": ["flip.example"]}}, server={"client_rate": 100_000})
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def client(address: str, name: str) -> None:
        while not stop.is_set():
            seen[f"{name} {rcode(ask(blockd, name, client=address, timeout=2))}"] += 1
            # The compile has a lower priority than whoever asks here: it must not starve.
            time.sleep(0.005)

    workers = [("127.0.0.1", "a.flip.example"), ("127.0.0.2", "a.flip.example"), ("127.0.0.1", "www.tiktok.com")]
    threads = [threading.Thread(target=client, args=arguments) for arguments in workers]
    for thread in threads:
        thread.start()
    for turn in range(10):
        blocks = ["tiktok", "bytedance-platform"] + (["flip"] if turn % 2 == 0 else [])
        blockd.values["policies"]["corporate"]["block"] = blocks
        assert blockd.reload().returncode == 0
        got = rcode(ask(blockd, "a.flip.example", client=CORPORATE))
        assert got == ("NXDOMAIN" if turn % 2 == 0 else "NOERROR")
    stop.set()
    for thread in threads:
        thread.join()
    kinds = {"a.flip.example NXDOMAIN", "a.flip.example NOERROR", "www.tiktok.com NXDOMAIN"}
    assert set(seen) == kinds, seen
    assert sum(seen.values()) > 500


class _Firewall:
    """Whoever holds the right to change rules: does what is wanted, and confirms what is learned or does not."""

    def __init__(self, path: Path, confirms: bool) -> None:
        self._socket, self._confirms = socket.socket(socket.AF_UNIX), confirms
        self._socket.connect(str(path))
        self.told: list[tuple[float, dict[str, Any]]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            for line in self._socket.makefile("rb"):
                said = json.loads(line)
                self.told.append((time.monotonic(), said))
                if self._confirms or "wanted" in said:
                    self._socket.sendall(json.dumps({"done": said["serial"]}).encode() + b"\n")

    def until_ready(self, blockd: Blockd, firewalls: int) -> None:
        """Wait until so many have done what is wanted, as the daemon knows it."""
        deadline = time.monotonic() + 10
        while True:
            answer = json.loads(blockd.run("egress", "status", "--json").stdout)
            if sum(one["is_ready"] for one in answer["firewalls"]) == firewalls:
                return
            assert time.monotonic() < deadline, answer

    def learned(self) -> dict[str, float]:
        """Give each address that was told as learned, and when that was."""
        return {one[1]: at for at, said in self.told if "wanted" not in said for one in said.get("learn", [])}

    def close(self) -> None:
        """Go."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@row("egress-race")
def test_an_answer_leaves_when_the_firewall_knows_or_after_a_bounded_wait(serve: Serve, upstream: Upstream) -> None:
    """First the firewall is told, then the client; one that does not confirm delays, and stops nobody."""
    edge = {"www.tiktok.com": "151.101.2.73", "slow.tiktok.com": "151.101.2.74", "sly.tiktok.com": "10.0.0.1"}
    for name, address in edge.items():
        upstream.records[name] = [f"{name}. 60 IN A {address}"]
    upstream.records["fine.example"] = ["fine.example. 60 IN A 151.101.2.75"]
    blockd = serve([upstream.address], egress={"enabled": True, "socket": "egress.sock", "wait_ms": 400})
    quick = _Firewall(blockd.directory / "egress.sock", confirms=True)
    quick.until_ready(blockd, 1)
    assert rcode(ask(blockd, "www.tiktok.com", client=PERSONAL)) == "NOERROR"
    answered = time.monotonic()
    assert quick.learned()["151.101.2.73"] <= answered
    for name in ("sly.tiktok.com", "fine.example"):
        assert rcode(ask(blockd, name, client=PERSONAL)) == "NOERROR"
    slow = _Firewall(blockd.directory / "egress.sock", confirms=False)
    slow.until_ready(blockd, 2)
    began = time.monotonic()
    assert rcode(ask(blockd, "slow.tiktok.com", client=PERSONAL)) == "NOERROR"
    held = time.monotonic() - began
    assert held > 0.3, held
    assert blockd.metric("blockd_egress_not_told_total", reason="late") == 1
    began = time.monotonic()
    for name in ("www.tiktok.com", "fine.example"):
        assert rcode(ask(blockd, name, client=PERSONAL)) == "NOERROR"
    assert time.monotonic() - began < held, "what is known waits for nobody"
    assert quick.learned().keys() & {"10.0.0.1", "151.101.2.75"} == set()
    quick.close()
    slow.close()
    assert rcode(ask(blockd, "www.tiktok.com", client=CORPORATE)) == "NXDOMAIN"


@row("clock-jumps")
def test_a_clock_that_jumps_grants_nothing(tmp_path: Path) -> None:
    """Set back before what was written: nobody is exempt, loudly; set right: as before; ahead: it has run out."""
    now = [1_800_000_000.0]
    desk = Desk(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path, lambda: now[0])
    teams, requesters = {"t": frozenset({ALICE})}, frozenset({CAROL})
    rules = Rules(86_400.0, frozenset({"m"}), teams, requesters, frozenset({"tiktok"}), frozenset({"S"}))
    address = ip_address("10.0.0.1")
    people = frozenset({ALICE, CAROL})
    site = Site(rules, {"S": [(address, "corporate")]}, {}, {}, {}, lambda app: frozenset({app}), 3_600.0, people)
    carol, alice = (Caller(pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid) for name in (CAROL, ALICE))
    ends = datetime.fromtimestamp(now[0] + 3_600, UTC).isoformat()
    request = {"do": "request", "device": "S", "apps": ["tiktok"], "purpose": "p", "team": "t", "clearance": "c"}
    asked = desk.command(site, carol, {**request, "mitigations": ["m"], "expires_at": ends})
    name = asked["exemption"]["name"]
    assert desk.command(site, alice, {"do": "approve", "exemption": name})["ok"]

    def exempt() -> bool:
        desk.read()
        folded = desk.fold(site, ["corporate"], ["tiktok"], now[0], None)
        found, _, _ = exempt_at(folded.devices, folded.slots, 1, folded.apps, now[0])
        return address in found.get("tiktok", ())

    assert exempt()
    began = now[0]
    for moment, wanted in ((-86_400.0, False), (60.0, True), (3_599.0, True), (3_600.0, False)):
        now[0] = began + moment
        assert exempt() == wanted, moment
        assert ("the clock stands before" in str(desk.standing()["problem"])) == (moment < 0)
    desk.close()
