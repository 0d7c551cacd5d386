"""/metrics says what the client sent and received, and nothing else."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections import Counter

import dns.flags
import dns.message

from blockd.observe import metrics
from tests.conftest import Serve
from tests.support.questions import CORPORATE, GUEST, PERSONAL, ask, raw, rcode
from tests.support.upstream import Upstream


def test_counts_equal_what_was_sent_and_received(serve: Serve, upstream: Upstream) -> None:
    """By transport and rcode, by type, by group, app and action, cache and upstream."""
    upstream.records["plain.example"] = ["plain.example. 300 IN A 192.0.2.1"]
    upstream.records["www.tiktok.com"] = ["www.tiktok.com. 300 IN A 192.0.2.2"]
    blockd = serve([upstream.address])
    received: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for _ in range(3):
        for client in (CORPORATE, PERSONAL, GUEST):
            for name in ("plain.example", "www.tiktok.com", "none.example"):
                for tcp in (False, True):
                    got = ask(blockd, name, client=client, tcp=tcp)
                    proto = "tcp" if tcp else "udp"
                    received[f"{proto} {rcode(got).lower()}"] += 1
                    sent[proto] += 1
    assert raw(blockd, b"\0" * 12) is not None
    assert raw(blockd, b"\0" * 5, timeout=0.2) is None
    assert rcode(ask(blockd, "x.example", client=PERSONAL, flags=int(dns.flags.CD))) == "REFUSED"
    for proto in ("udp", "tcp"):
        for code in ("noerror", "nxdomain"):
            have = blockd.metric("blockd_replies_total", proto=proto, rcode=code)
            assert have == received[f"{proto} {code}"], (proto, code)
    assert blockd.metric("blockd_replies_total", proto="udp", rcode="formerr") == 1
    assert blockd.metric("blockd_replies_total", proto="udp", rcode="refused") == 1
    assert blockd.metric("blockd_queries_total", proto="tcp") == sent["tcp"]
    assert blockd.metric("blockd_queries_total", proto="udp") == sent["udp"] + 3
    assert blockd.metric("blockd_dropped_total", reason="no_query") == 1
    assert blockd.metric("blockd_questions_total", qtype="A") == sum(sent.values()) + 1
    decisions = {
        ("corporate", "tiktok", "block"): 6,
        ("corporate", "", "pass"): 12,
        ("personal", "", "pass"): 19,
        ("guest", "tiktok", "monitor"): 6,
        ("guest", "", "pass"): 12,
    }
    for (group, app, action), count in decisions.items():
        assert blockd.metric("blockd_decisions_total", group=group, app=app, action=action) == count, (group, app)
    assert blockd.metric("blockd_decisions_total") == sum(decisions.values())
    assert blockd.metric("blockd_cache_misses_total") == len(upstream.asked) == 3
    assert blockd.metric("blockd_cache_hits_total") == sum(sent.values()) - 3 - 2
    assert blockd.metric("blockd_upstream_answers_total") == 3
    assert blockd.metric("blockd_cache_entries") == 3
    assert blockd.metric("blockd_pending_questions") == 0


def test_what_the_kernel_drops_is_counted(serve: Serve, upstream: Upstream) -> None:
    """A daemon that cannot read for a moment loses what its buffer does not hold, and says how much."""
    blockd = serve([upstream.address])
    before = blockd.metric("blockd_queries_total", proto="udp")
    query = dns.message.make_query("www.tiktok.com", "A").to_wire()
    count = 30_000
    assert blockd.process is not None
    blockd.process.send_signal(signal.SIGSTOP)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((CORPORATE, 0))
            for _ in range(count):
                client.sendto(query, ("127.0.0.1", blockd.port))
    finally:
        blockd.process.send_signal(signal.SIGCONT)
    for _ in range(50):
        read = blockd.metric("blockd_queries_total", proto="udp") - before
        not_read = blockd.metric("blockd_queries_not_read_total")
        if read + not_read == count:
            break
        time.sleep(0.1)
    assert (read + not_read, not_read > 0, read > 0) == (count, True, True)


def test_decisions_are_summed_over_generations(serve: Serve, upstream: Upstream) -> None:
    """A reload that renumbers apps loses no count and mixes none up."""
    blockd = serve([upstream.address], apps={"aaa": {"suffixes": ["aaa.example"]}})
    for turn in range(3):
        ask(blockd, "tiktok.com", client=CORPORATE)
        blocks = ["tiktok", "aaa"] if turn % 2 == 0 else ["tiktok"]
        blockd.values["policies"]["corporate"]["block"] = blocks
        assert blockd.reload().returncode == 0
        ask(blockd, "aaa.example", client=CORPORATE)
    count = {app: blockd.metric("blockd_decisions_total", app=app, action="block") for app in ("tiktok", "aaa")}
    assert count == {"tiktok": 3, "aaa": 2}
    assert blockd.metric("blockd_decisions_total", app="tiktok", action="block") == 3


def test_promtool_has_nothing_to_say(serve: Serve, upstream: Upstream) -> None:
    """Names, types and help texts are as Prometheus wants them; every family has its prefix."""
    blockd = serve([upstream.address])
    ask(blockd, "tiktok.com", client=CORPORATE)
    text = blockd.http("/metrics")
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert all(name.startswith("blockd_") for name in names)
    assert {name + "_total" for name in metrics.COUNTERS} <= names


def test_health_is_that_of_the_threads(serve: Serve, upstream: Upstream) -> None:
    """/healthz is alive while every serve thread turns; the check sees one that stands still."""
    blockd = serve([upstream.address])
    assert blockd.http("/healthz") == "alive\n"
    from blockd.observe.health import AliveCheck

    beats = [1, 1]
    check = AliveCheck(lambda: list(beats))
    check.look()
    beats[0] += 1
    check.look()
    assert not check.is_alive
    beats[0] += 1
    beats[1] += 1
    check.look()
    assert check.is_alive
