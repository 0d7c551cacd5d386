"""Upstream servers without EDNS are asked without it; packet loss costs no server its EDNS."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from contextlib import ExitStack

import dns.message
import dns.rcode
import pytest

from tests.conftest import Serve
from tests.support.questions import PERSONAL, addresses, ask, rcode
from tests.support.upstream import Asked, Reply, Script, Upstream, answer

FORMERR, NOTIMP, BADVERS = 1, 4, 16


def plain(query: dns.message.Message, asked: Asked) -> bytes:
    """Answer without OPT, as servers without EDNS do."""
    return answer(query, f"{asked.name}. 60 IN A 192.0.2.1")


def refusal(code: int, *, has_opt: bool = False) -> Callable[[dns.message.Message], bytes]:
    """Refuse with the question, with or without OPT."""

    def reply(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.use_edns(0 if has_opt else -1)
        response.set_rcode(dns.rcode.Rcode(code))
        return response.to_wire()

    return reply


def header(code: int, *counts: int) -> Callable[[dns.message.Message], bytes]:
    """Refuse by a header alone that gives these counts."""
    return lambda query: struct.pack("!HHHHHH", query.id, 0x8000 | code, *counts)


def cut_off(query: dns.message.Message) -> bytes:
    """Refuse by the query with the response bit and the code set, cut off behind the question."""
    wire = bytearray(query.to_wire())
    wire[2:4] = struct.pack("!H", 0x8100 | FORMERR)
    return bytes(wire[: 12 + len(query.question[0].name.to_wire() or b"") + 4])


REFUSALS: dict[str, Callable[[dns.message.Message], bytes]] = {
    "formerr": refusal(FORMERR),
    "formerr-with-opt": refusal(FORMERR, has_opt=True),
    "formerr-header": header(FORMERR, 0, 0, 0, 0),
    "formerr-header-of-query": header(FORMERR, 1, 0, 0, 1),
    "formerr-without-question": header(FORMERR, 0, 0, 0, 1),
    "formerr-cut-off": cut_off,
    "notimp": refusal(NOTIMP),
    "notimp-header": header(NOTIMP, 0, 0, 0, 0),
    "badvers": refusal(BADVERS, has_opt=True),
}


def has_opt(asked: Asked) -> bool:
    """Say whether a query came with OPT."""
    return dns.message.from_wire(asked.wire).edns >= 0


def without_edns(refuse: Callable[[dns.message.Message], bytes]) -> Script:
    """Refuse queries with OPT, answer others."""
    return lambda query, asked: refuse(query) if query.edns >= 0 else plain(query, asked)


def test_every_kind_of_refusal_is_asked_again_without_opt_and_remembered(serve: Serve) -> None:
    """Two queries for the first name, one for each that follows; our own reply keeps its OPT."""
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(Upstream(without_edns(refuse))) for kind, refuse in REFUSALS.items()}
        known = stack.enter_context(Upstream(plain))
        zones = {f"{kind}.example": [server.address] for kind, server in servers.items()}
        blockd = serve([known.address], upstream={"servers": [known.address], "zones": zones})
        for kind, server in servers.items():
            for at in range(3):
                got = ask(blockd, f"n{at}.{kind}.example", client=PERSONAL, want_dnssec=at == 2)
                assert addresses(got) == ["192.0.2.1"], kind
                assert got.edns == 0, kind
            assert [has_opt(asked) for asked in server.asked] == [True, False, False, False], kind
            assert blockd.metric("blockd_upstream_server_edns", server=server.address) == 0, kind
            assert blockd.metric("blockd_upstream_server_faults_total", server=server.address) == 0, kind
        ask(blockd, "www.example", client=PERSONAL)
        assert blockd.metric("blockd_upstream_server_edns", server=known.address) == 1


@pytest.mark.parametrize("kind", ["formerr", "notimp-header", "badvers"])
def test_a_server_that_refuses_either_way_is_a_failure(serve: Serve, kind: str) -> None:
    """Nothing is remembered of it, and the next server is asked."""
    with Upstream(lambda query, asked: REFUSALS[kind](query)) as broken, Upstream(plain) as other:
        blockd = serve([broken.address, other.address], upstream={"zones": {"alone.example": [broken.address]}})
        assert rcode(ask(blockd, "www.alone.example", client=PERSONAL)) == "SERVFAIL"
        assert addresses(ask(blockd, "www.example", client=PERSONAL)) == ["192.0.2.1"]
        assert [has_opt(asked) for asked in broken.asked[-2:]] == [True, False]
        assert blockd.metric("blockd_upstream_server_edns", server=broken.address) == 1
        assert blockd.metric("blockd_upstream_server_faults_total", server=broken.address, reason="failed") == 5


def test_a_slow_server_that_refuses_either_way_is_not_asked_more_and_more(serve: Serve) -> None:
    """Four queries with OPT and as many without, though each refusal comes when the next query is under way."""
    with Upstream(lambda query, asked: REFUSALS["formerr"](query)) as slow:
        slow.delay = 0.05
        blockd = serve([slow.address])
        slow.delay = 0.45
        assert rcode(ask(blockd, "www.example", client=PERSONAL)) == "SERVFAIL"
        until = time.monotonic() + 8
        while len(slow.asked) < 8 and time.monotonic() < until:
            time.sleep(0.05)
        slow.delay = 0.0
        assert len(slow.asked) <= 8


def test_failures_that_mean_something_else_are_not_asked_again(serve: Serve) -> None:
    """SERVFAIL and REFUSED say nothing of EDNS."""
    for script in (lambda query, asked: answer(query, rcode=2), lambda query, asked: answer(query, rcode=5)):
        with Upstream(script) as failing, Upstream(plain) as other:
            blockd = serve([failing.address, other.address])
            assert addresses(ask(blockd, "www.example", client=PERSONAL)) == ["192.0.2.1"]
            assert [has_opt(asked) for asked in failing.asked] == [True]


def test_a_server_that_drops_queries_with_opt_is_found_out(serve: Serve) -> None:
    """Both of the first two names are answered, after two queries each that were not; then OPT is left out."""
    with Upstream(lambda query, asked: None if query.edns >= 0 else plain(query, asked)) as silent:
        blockd = serve([silent.address])
        for at in range(2):
            assert addresses(ask(blockd, f"n{at}.example", client=PERSONAL)) == ["192.0.2.1"]
        count = len(silent.asked)
        for at in range(2, 5):
            assert addresses(ask(blockd, f"n{at}.example", client=PERSONAL, timeout=0.35)) == ["192.0.2.1"]
        assert [has_opt(asked) for asked in silent.asked[count:]] == [False] * 3
        assert blockd.metric("blockd_upstream_server_edns", server=silent.address) == 0


def test_lost_packets_cost_no_server_its_edns(serve: Serve) -> None:
    """One packet, two in a row, and a whole question's worth: OPT comes back with the first answer to it."""
    lost: list[int] = []

    def lossy(query: dns.message.Message, asked: Asked) -> Reply:
        if lost and lost.pop():
            return None
        return answer(query, f"{asked.name}. 60 IN A 192.0.2.1")

    with Upstream(lossy) as upstream:
        blockd = serve([upstream.address])
        for name, losses in {"one": 1, "two": 2, "three": 3}.items():
            lost[:] = [1] * losses
            assert addresses(ask(blockd, f"{name}.example", client=PERSONAL)) == ["192.0.2.1"], name
            assert addresses(ask(blockd, f"after-{name}.example", client=PERSONAL)) == ["192.0.2.1"], name
            assert has_opt(upstream.asked[-1]), name
        assert blockd.metric("blockd_upstream_server_edns", server=upstream.address) == 1


def test_over_tcp_too(serve: Serve) -> None:
    """A server that knows OPT over UDP alone is asked without it over TCP; one without EDNS never hears of it there."""

    def cut(query: dns.message.Message, asked: Asked) -> Reply:
        if query.edns >= 0 and (asked.tcp or asked.name.startswith("old")):
            return REFUSALS["formerr"](query)
        wire = bytearray(plain(query, asked))
        if not asked.tcp:
            wire[2] |= 2
        return bytes(wire)

    for name, wanted in {
        "new.example": [(False, True), (True, True), (True, False)],
        "old.example": [(False, True), (False, False), (True, False)],
    }.items():
        with Upstream(cut) as upstream:
            blockd = serve([upstream.address])
            assert addresses(ask(blockd, name, client=PERSONAL, tcp=True)) == ["192.0.2.1"]
            assert [(asked.tcp, has_opt(asked)) for asked in upstream.asked] == wanted, name
            assert blockd.metric("blockd_upstream_server_edns", server=upstream.address) == 0
