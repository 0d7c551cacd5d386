"""What an upstream blocks by itself is told apart from what our policy blocks."""

from __future__ import annotations

import time

import dns.edns
import dns.message
import dns.rcode

from tests.conftest import Serve
from tests.support.questions import CORPORATE, PERSONAL, addresses, ask, ede, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer

CODES = {"blocked.example": 15, "censored.example": 16, "filtered.example": 17, "other.example": 22}


def script(query: dns.message.Message, asked: Asked) -> Reply:
    """Block as filtering resolvers do: by an Extended DNS Error, or by null addresses."""
    if asked.name == "null.example":
        return answer(query, f"null.example. 60 IN {asked.qtype} {'0.0.0.0' if asked.qtype == 'A' else '::'}")
    if asked.name == "half.example":
        return answer(query, "half.example. 60 IN A 0.0.0.0", "half.example. 60 IN A 192.0.2.1")
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(dns.rcode.NXDOMAIN)
    response.use_edns(options=[dns.edns.EDEOption(dns.edns.EDECode(CODES[asked.name]), "<b>not\nours</b>")])
    return response.to_wire()


def test_an_upstreams_own_blocks_are_counted_apart(serve: Serve) -> None:
    """By reason; the client gets the code, in our words alone; our own blocks are not among them."""
    with Upstream(script) as upstream:
        blockd = serve([upstream.address])
        for name, code in CODES.items():
            got = ask(blockd, name, client=PERSONAL)
            assert rcode(got) == "NXDOMAIN"
            text = "an upstream server blocks this name; the policy of this network does not"
            assert ede(got) == ([(code, text)] if code != 22 else [])
        for qtype in ("A", "AAAA"):
            assert ede(ask(blockd, "null.example", qtype, client=PERSONAL))[0][0] == 17
        assert ede(ask(blockd, "half.example", client=PERSONAL)) == []
        ask(blockd, "tiktok.com", client=CORPORATE)
        for reason, count in {"blocked": 1, "censored": 1, "filtered": 1, "null_address": 2}.items():
            assert blockd.metric("blockd_upstream_blocks_total", reason=reason) == count, reason
        assert blockd.metric("blockd_decisions_total", action="block") == 1


#: Of names that were open until their record ended: rcode and Extended DNS Errors of the upstream from then on, and the
#: code that clients get; none where it is a failure, and the old answer is served.
TURNS: dict[str, tuple[int, list[int], int | None]] = {
    "refused-15": (5, [15], 15),
    "refused-16": (5, [16], 16),
    "servfail-17": (2, [17], 17),
    "servfail-22-then-15": (2, [22, 15], 15),
    "refused-and-validation": (5, [6, 17], 17),
    "bogus": (2, [6], 6),
    "expired": (2, [7], 7),
    "not-yet": (2, [8], 8),
    "no-dnskey": (2, [9], 9),
    "no-rrsig": (2, [10], 10),
    "no-zone-key": (2, [11], 11),
    "no-nsec": (2, [12], 12),
    "iterations": (2, [27], 27),
    "algorithm": (2, [1], 1),
    "network-then-bogus": (2, [23, 6], 6),
    "plain-servfail": (2, [], None),
    "plain-refused": (5, [], None),
    "prohibited": (5, [18], None),
    "indeterminate": (2, [5], None),
    "no-authority": (2, [22], None),
    "notimp-15": (4, [15], None),
    "refused-6": (5, [6], None),
}


def test_a_failure_with_a_reason_is_an_answer_and_one_without_is_not(serve: Serve) -> None:
    """A block or a failed validation replaces what was known, is asked for once, and speaks well of the server."""
    has_turned = False

    def turning(query: dns.message.Message, asked: Asked) -> Reply:
        name = asked.name.removesuffix(".example").removeprefix("new-")
        if not has_turned and not asked.name.startswith("new-"):
            return answer(query, f"{asked.name}. 1 IN A 192.0.2.7")
        code, errors, _ = TURNS[name]
        response = dns.message.make_response(query, recursion_available=True)
        response.set_rcode(dns.rcode.Rcode(code))
        options: list[dns.edns.Option] = [dns.edns.EDEOption(dns.edns.EDECode(error), "theirs") for error in errors]
        response.use_edns(options=options)
        return response.to_wire()

    with Upstream(turning) as upstream:
        blockd = serve([upstream.address])
        for name in TURNS:
            assert ask(blockd, f"{name}.example", client=PERSONAL).answer, name
        has_turned = True
        time.sleep(1.1)
        for name, (code, _, wanted) in TURNS.items():
            for asked in (f"{name}.example", f"new-{name}.example"):
                upstream.asked.clear()
                got = ask(blockd, asked, client=PERSONAL)
                again = ask(blockd, asked, client=PERSONAL, tcp=True)
                codes = [code for code, text in ede(got) if "theirs" not in text]
                if wanted is not None:
                    assert (rcode(got), codes) == (dns.rcode.to_text(dns.rcode.Rcode(code)), [wanted]), asked
                    assert (rcode(again), ede(again)) == (rcode(got), ede(got)), asked
                    assert upstream.names() == [asked]
                elif asked.startswith("new-"):
                    assert (rcode(got), codes) == ("SERVFAIL", [0]), asked
                else:
                    assert (len(got.answer), codes) == (1, [3]), asked
        blocks = sum(wanted in (15, 16, 17) for _, _, wanted in TURNS.values())
        assert blockd.metric("blockd_upstream_blocks_total") == 2 * blocks
        answered = sum(wanted is not None for _, _, wanted in TURNS.values())
        answers = blockd.metric("blockd_upstream_server_answers_total", server=upstream.address)
        assert answers == len(TURNS) + 2 * answered


def test_only_an_accepted_reply_can_block(serve: Serve) -> None:
    """A block that comes with another question, or from another address, is none."""

    def forged(query: dns.message.Message, asked: Asked) -> Reply | list[bytes]:
        other = dns.message.make_query("other.example", "A", id=query.id, use_edns=0)
        response = dns.message.make_response(other, recursion_available=True)
        response.set_rcode(dns.rcode.REFUSED)
        response.use_edns(options=[dns.edns.EDEOption(dns.edns.EDECode.BLOCKED, "")])
        upstream.send_from("127.0.0.9", response.to_wire(), asked.port)
        return [response.to_wire(), answer(query, f"{asked.name}. 60 IN A 192.0.2.7")]

    with Upstream(forged) as upstream:
        blockd = serve([upstream.address])
        assert addresses(ask(blockd, "www.example", client=PERSONAL)) == ["192.0.2.7"]
        assert blockd.metric("blockd_upstream_blocks_total") == 0
