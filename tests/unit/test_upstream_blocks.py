"""What an upstream blocks by itself is told apart from what our policy blocks."""

from __future__ import annotations

import dns.edns
import dns.message

from tests.conftest import Serve
from tests.support.questions import CORPORATE, PERSONAL, ask, ede, rcode
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
