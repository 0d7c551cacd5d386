"""Upstreams that die, fail, cut, or have zones of their own."""

from __future__ import annotations

import threading
import time

import dns.message

from tests.conftest import Serve
from tests.support.daemon import free_port
from tests.support.questions import PERSONAL, addresses, ask, ede, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer


def any_address(query: dns.message.Message, asked: Asked) -> Reply:
    """Answer every A question."""
    return answer(query, f"{asked.name}. 300 IN A 192.0.2.1")


def test_a_silent_server_is_passed_over_and_comes_back(serve: Serve) -> None:
    """The first question waits 400 ms for it, then it is asked last; when it answers probes it is first again."""
    with Upstream(lambda query, asked: None) as silent, Upstream(any_address) as alive:
        blockd = serve([silent.address, alive.address])
        started = time.monotonic()
        assert addresses(ask(blockd, "a.example", client=PERSONAL)) == ["192.0.2.1"]
        assert 0.35 < time.monotonic() - started < 1
        for at in range(3):
            ask(blockd, f"b{at}.example", client=PERSONAL)
        deadline = time.monotonic() + 8
        while not blockd.ready()["dead_upstreams"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert blockd.ready()["dead_upstreams"] == [silent.address]
        assert blockd.metric("blockd_upstream_server_up", server=silent.address) == 0
        started = time.monotonic()
        ask(blockd, "c.example", client=PERSONAL)
        assert time.monotonic() - started < 0.3
        assert blockd.reload().returncode == 0
        started = time.monotonic()
        ask(blockd, "d.example", client=PERSONAL)
        assert time.monotonic() - started < 0.3, "a reload does not forget who is dead"
        silent.script = any_address
        deadline = time.monotonic() + 15
        while blockd.ready()["dead_upstreams"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        count = len(silent.asked)
        ask(blockd, "e.example", client=PERSONAL)
        assert silent.names()[count:] == ["e.example"]
        assert f"upstream {silent.address} is well again" in blockd.log.read_text()


def test_a_failing_server_is_passed_over(serve: Serve) -> None:
    """SERVFAIL, REFUSED and rubbish of one are not the answer when another has it."""
    for script in (
        lambda query, asked: answer(query, rcode=2),
        lambda query, asked: answer(query, rcode=5),
        lambda query, asked: answer(query, "x.example. 1 IN A 192.0.2.9")[:-3],
    ):
        with Upstream(script) as failing, Upstream(any_address) as alive:
            blockd = serve([failing.address, alive.address])
            assert addresses(ask(blockd, "a.example", client=PERSONAL)) == ["192.0.2.1"]
            assert len(failing.asked) == 1


def test_when_all_are_dead_the_answer_says_so_in_time(serve: Serve) -> None:
    """SERVFAIL with EDE 22 within two seconds; with EDE 23 when nothing can be sent."""
    with Upstream(lambda query, asked: None) as one, Upstream(lambda query, asked: None) as two:
        blockd = serve([one.address, two.address])
        started = time.monotonic()
        got = ask(blockd, "a.example", client=PERSONAL)
        assert time.monotonic() - started < 2
        assert rcode(got) == "SERVFAIL"
        assert [code for code, _ in ede(got)] == [22]
        started = time.monotonic()
        assert rcode(ask(blockd, "a.example", client=PERSONAL, tcp=True)) == "SERVFAIL"
        assert time.monotonic() - started < 0.5, "the failure is remembered"
    unreachable = serve(["[2001:db8::53]:53"])
    got = ask(unreachable, "a.example", client=PERSONAL)
    assert rcode(got) == "SERVFAIL"
    assert next(code for code, _ in ede(got)) in (22, 23)


def test_a_refused_port_is_no_disaster(serve: Serve) -> None:
    """A server where nothing listens costs its turn, and the next has the answer."""
    with Upstream(any_address) as alive:
        blockd = serve([f"127.0.0.1:{free_port()}", alive.address])
        assert addresses(ask(blockd, "a.example", client=PERSONAL)) == ["192.0.2.1"]


def test_tcp_that_fails_is_a_failure_in_time(serve: Serve) -> None:
    """TC from a server whose TCP answers nothing, or another question: SERVFAIL, within two seconds."""

    def cut(query: dns.message.Message, asked: Asked) -> Reply:
        if not asked.tcp:
            wire = bytearray(answer(query))
            wire[2] |= 2
            return bytes(wire)
        if asked.name == "silent.example":
            return None
        return answer(dns.message.make_query("other.example", "A", id=asked.id), "other.example. 60 IN A 192.0.2.66")

    with Upstream(cut) as upstream:
        blockd = serve([upstream.address])
        for name in ("silent.example", "other-question.example"):
            started = time.monotonic()
            assert rcode(ask(blockd, name, client=PERSONAL)) == "SERVFAIL"
            assert time.monotonic() - started < 2
        assert blockd.metric("blockd_streams") == 0


def test_a_zone_has_servers_of_its_own(serve: Serve) -> None:
    """upstream.zones sends a zone and below elsewhere, reverse and special zones too; a reload moves it."""
    with (
        Upstream(any_address) as usual,
        Upstream(
            lambda q, a: answer(
                q, f"{a.name}. 300 IN {a.qtype} " + ("192.0.2.2" if a.qtype == "A" else "host.corp.example.")
            )
        ) as other,
    ):
        zones = {"corp.example": [other.address], "10.in-addr.arpa": [other.address]}
        blockd = serve([usual.address], upstream={"servers": [usual.address], "zones": zones})
        assert addresses(ask(blockd, "a.corp.example", client=PERSONAL)) == ["192.0.2.2"]
        assert addresses(ask(blockd, "corp.example", client=PERSONAL)) == ["192.0.2.2"]
        assert addresses(ask(blockd, "notcorp.example", client=PERSONAL)) == ["192.0.2.1"]
        assert rcode(ask(blockd, "1.0.0.10.in-addr.arpa", "PTR", client=PERSONAL)) == "NOERROR"
        assert "1.0.0.10.in-addr.arpa" in other.names()
        blockd.values["upstream"]["zones"] = {}
        assert blockd.reload().returncode == 0
        assert addresses(ask(blockd, "a.corp.example", client=PERSONAL)) == ["192.0.2.1"], "not the other's answer"
        assert rcode(ask(blockd, "1.0.0.10.in-addr.arpa", "PTR", client=PERSONAL)) == "NXDOMAIN"


def test_a_cut_answer_is_fetched_where_it_was_cut(serve: Serve) -> None:
    """A first server that fails everything does not stand in the way of TCP to the second; nor do two dead ones."""

    def large(query: dns.message.Message, asked: Asked) -> Reply:
        wire = bytearray(answer(query, f"{asked.name}. 300 IN A 192.0.2.1"))
        if not asked.tcp:
            wire[2] |= 2
        return bytes(wire)

    with Upstream(lambda query, asked: answer(query, rcode=2)) as failing, Upstream(large) as good:
        blockd = serve([failing.address, good.address])
        assert addresses(ask(blockd, "big.example", client=PERSONAL, tcp=True)) == ["192.0.2.1"]
    silent = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    with Upstream(large) as good:
        blockd = serve([*silent, good.address])
        started = time.monotonic()
        assert addresses(ask(blockd, "big.example", client=PERSONAL, tcp=True)) == ["192.0.2.1"]
        assert time.monotonic() - started < 2


def test_tcp_that_fails_at_one_server_is_tried_at_the_next(serve: Serve) -> None:
    """The server that cut its answer is asked first; its failure is not the end."""

    def cut(query: dns.message.Message, asked: Asked) -> Reply:
        if asked.tcp:
            return answer(query, rcode=2)
        wire = bytearray(answer(query))
        wire[2] |= 2
        return bytes(wire)

    with Upstream(cut) as first, Upstream(any_address) as second:
        blockd = serve([first.address, second.address])
        assert addresses(ask(blockd, "big.example", client=PERSONAL)) == ["192.0.2.1"]
        assert [asked.tcp for asked in first.asked] == [False, True]
        assert [asked.tcp for asked in second.asked] == [True]


def test_a_slow_upstream_still_answers(serve: Serve) -> None:
    """A resolver that needs longer than our patience is believed when it comes."""

    with Upstream(any_address) as upstream:
        upstream.delay = 0.6
        blockd = serve([upstream.address])
        started = time.monotonic()
        assert addresses(ask(blockd, "slow.example", client=PERSONAL)) == ["192.0.2.1"]
        assert 0.5 < time.monotonic() - started < 1.9
        assert blockd.metric("blockd_upstream_timeouts_total") >= 1


def test_a_reload_of_upstreams_finishes_what_is_under_way(serve: Serve) -> None:
    """Questions that wait for the old servers are answered by them; new ones go to the new, and the old are gone."""
    with Upstream(any_address) as old, Upstream(any_address) as new:
        old.delay = 0.7
        blockd = serve([old.address])
        got: list[list[str]] = []
        thread = threading.Thread(
            target=lambda: got.append(addresses(ask(blockd, "under-way.example", client=PERSONAL)))
        )
        thread.start()
        time.sleep(0.05)
        blockd.values["upstream"]["servers"] = [new.address]
        assert blockd.reload().returncode == 0
        thread.join()
        assert got == [["192.0.2.1"]]
        old.delay = 0
        count = len(old.asked)
        assert addresses(ask(blockd, "new.example", client=PERSONAL)) == ["192.0.2.1"]
        assert len(old.asked) == count
        assert old.address not in blockd.http("/metrics")


def test_a_slow_answer_that_is_not_kept_does_not_fail_the_next_question(serve: Serve) -> None:
    """TTL 0 and 450 ms: each question has tries of its own."""
    with Upstream(lambda query, asked: answer(query, f"{asked.name}. 0 IN A 192.0.2.1")) as upstream:
        upstream.delay = 0.45
        blockd = serve([upstream.address])
        for _ in range(3):
            assert addresses(ask(blockd, "zero.example", client=PERSONAL)) == ["192.0.2.1"]


def test_a_slow_server_that_cuts_its_answers_is_asked_once_over_tcp(serve: Serve) -> None:
    """Its late TC ends the datagrams: one stream, and its answer is served."""

    def slow(query: dns.message.Message, asked: Asked) -> Reply:
        time.sleep(0.9 if asked.tcp else 0.2)
        wire = bytearray(answer(query, f"{asked.name}. 300 IN A 192.0.2.1"))
        if not asked.tcp:
            wire[2] |= 2
        return bytes(wire)

    with Upstream(slow) as upstream:
        blockd = serve([upstream.address])
        assert addresses(ask(blockd, "big.example", client=PERSONAL, tcp=True)) == ["192.0.2.1"]
        assert sum(asked.tcp for asked in upstream.asked) == 1
        assert blockd.metric("blockd_upstream_streams_total") == 1


def test_two_reloads_of_upstreams_lose_nothing(serve: Serve) -> None:
    """A question waits through both."""
    with Upstream(any_address) as old, Upstream(any_address) as new:
        old.delay = 1.5
        blockd = serve([old.address])
        got: list[list[str]] = []
        thread = threading.Thread(target=lambda: got.append(addresses(ask(blockd, "w.example", client=PERSONAL))))
        thread.start()
        time.sleep(0.05)
        for ttl in (40, 41):
            blockd.values["upstream"]["servers"] = [new.address]
            blockd.values["answers"]["ttl"] = ttl
            blockd.write()
            blockd.hangup()
            time.sleep(0.6)
        thread.join()
        assert got == [["192.0.2.1"]]
        assert "answers again" not in blockd.log.read_text()


def test_an_upstream_over_ipv6(serve: Serve) -> None:
    """Exchanges leave from IPv6 sockets too; a wrong family costs its turn."""
    with Upstream(any_address, host="::1") as upstream:
        blockd = serve([upstream.address])
        assert addresses(ask(blockd, "six.example", client=PERSONAL)) == ["192.0.2.1"]
        assert blockd.metric("blockd_upstream_server_answers_total", server=upstream.address) == 1
