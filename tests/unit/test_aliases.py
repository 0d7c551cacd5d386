"""Aliases that lead to the servers of another zone: what is asked of whom, when they are slow, cut or silent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import dns.flags
import dns.message
import pytest

from tests.support.daemon import Blockd
from tests.support.questions import PERSONAL, ask, ede, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer

PIECES = [f"{at:03} {'x' * 200}" for at in range(20)]


class Servers:
    """Those of the zone corp.example, which know aliases alone, and the general ones, which know none."""

    def __init__(self) -> None:
        """Answer at once."""
        self.delay, self.is_silent = 0.0, False
        self.inner, self.general = Upstream(self._alias), Upstream(self._target)

    def _alias(self, query: dns.message.Message, asked: Asked) -> Reply:
        time.sleep(self.delay)
        target = "edge.cdn.example" if asked.name.startswith("many") else f"{asked.name.split('.')[0]}.cdn.example"
        return answer(query, f"{asked.name}. 1 IN CNAME {target}.")

    def _target(self, query: dns.message.Message, asked: Asked) -> Reply:
        if self.is_silent:
            return None
        if asked.qtype == "TXT" and not asked.tcp:
            cut = dns.message.make_response(query)
            cut.flags |= dns.flags.TC
            return cut.to_wire()
        if asked.qtype == "TXT":
            return answer(query, *(f'{asked.name}. 60 IN TXT "{piece}"' for piece in PIECES))
        made = dns.message.from_wire(answer(query, f"{asked.name}. 1 IN A 192.0.2.1"))
        made.flags |= dns.flags.AD
        return made.to_wire()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Start both."""
    both = Servers()
    with both.inner, both.general:
        yield both


@pytest.fixture(scope="module")
def blockd(tmp_path_factory: pytest.TempPathFactory, servers: Servers) -> Iterator[Blockd]:
    """Give a daemon in front of both."""
    routes = {"zones": {"corp.example": [servers.inner.address]}, "trust_ad": True}
    directory = tmp_path_factory.mktemp("aliases")
    with Blockd(directory, [servers.general.address], upstream=routes, cache={"stale": 60}) as one:
        yield one


def test_many_aliases_of_one_name_ask_for_it_once(blockd: Blockd, servers: Servers) -> None:
    """Each alias is asked for, and their target once: those that come later join, or find it in the cache."""
    before = len(servers.general.asked)
    with ThreadPoolExecutor(8) as pool:
        names = [f"many{at}.corp.example" for at in range(8)]
        got = list(pool.map(lambda name: ask(blockd, name, client=PERSONAL), names))
    assert [[str(rrset.name) for rrset in one.answer] for one in got] == [[f"{n}.", "edge.cdn.example."] for n in names]
    assert servers.general.names()[before:] == ["edge.cdn.example"]
    # The alias does not validate, whatever its target does.
    assert not any(one.flags & dns.flags.AD for one in got)


def test_a_target_whose_answer_is_cut_is_asked_over_tcp(blockd: Blockd) -> None:
    """The whole goes to the client's TCP query, and its UDP query is cut too."""
    whole = ask(blockd, "text.corp.example", "TXT", client=PERSONAL, tcp=True)
    assert [len(rrset) for rrset in whole.answer] == [1, len(PIECES)]
    assert ask(blockd, "text.corp.example", "TXT", client=PERSONAL).flags & dns.flags.TC


def test_clients_wait_no_longer_for_two_servers_than_for_one(blockd: Blockd, servers: Servers) -> None:
    """The time that the first took is gone for the second; a stale answer of the whole comes in its place."""
    assert rcode(ask(blockd, "stale.corp.example", client=PERSONAL)) == "NOERROR"
    time.sleep(1.1)
    servers.is_silent, servers.delay = True, 0.3
    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        slow = pool.submit(ask, blockd, "slow.corp.example", client=PERSONAL)
        stale = ask(blockd, "stale.corp.example", client=PERSONAL)
        failed = slow.result()
    assert time.monotonic() - began < 2.6
    assert (rcode(failed), [code for code, _ in ede(failed)]) == ("SERVFAIL", [22])
    assert (rcode(stale), [code for code, _ in ede(stale)]) == ("NOERROR", [3])
    assert stale.answer[1].ttl == 30
