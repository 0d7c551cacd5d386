"""The failure of one piece of work costs no other, is counted, and is logged once with a count."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from blockd.daemon import Daemon
from blockd.guard import LOG_INTERVAL_SECONDS, Guard
from blockd.resolver.streams import Streams


def test_each_item_is_tried_and_failures_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The first failure has its traceback; the rest of a minute is a number in the next line."""
    now, done = 0.0, []
    guard = Guard(lambda: now)
    guard.know("never", "odd")

    def work(item: int) -> None:
        done.append(item)
        if item % 2:
            raise ValueError(f"item {item}")

    with caplog.at_level(logging.ERROR, "blockd"):
        guard.each("odd", work, range(10))
        assert done == list(range(10))
        assert guard.failures == {"never": 0, "odd": 5}
        assert [record.getMessage() for record in caplog.records] == ["internal error in odd: ValueError: item 1"]
        assert caplog.records[0].exc_info is not None
        now = LOG_INTERVAL_SECONDS
        assert guard.run("odd", work, 2)
        assert not guard.run("odd", work, 11)
        assert not guard.run("other", work, 13)
    assert [record.getMessage() for record in caplog.records[1:]] == [
        "internal error in odd: ValueError: item 11; 5 such errors since the last line, 6 in all",
        "internal error in other: ValueError: item 13",
    ]


def test_a_batch_from_the_hot_path_survives_each_of_its_items() -> None:
    """A reply, a log line, an address and a stream that raise: what stands behind each is done."""
    done: list[Any] = []

    def fail(*arguments: Any) -> None:
        done.append(arguments)
        if "bad" in arguments:
            raise RuntimeError("bad")

    batch = [
        item
        for kind in ("reply", "log", "learned", "stream")
        for word in ("bad", "good")
        for item in [
            (kind, word, 1, 2, 3) if kind == "stream" else (kind, word, None) if kind == "reply" else (kind, word)
        ]
    ]
    daemon: Any = SimpleNamespace(_guard=Guard(), _log_decision=fail, _learned=fail)
    fastpath: Any = SimpleNamespace(take_work=lambda: batch, complete=lambda *asked: done.append(("ended", *asked)))
    Daemon._work(daemon, fastpath, SimpleNamespace(reply=fail), SimpleNamespace(ask=fail))  # type: ignore[arg-type]
    assert [one[0] for one in done] == ["bad", "good"] * 3 + ["bad", "ended", "good"]
    assert ("ended", "bad", 0, None) in done, "whoever waits for a stream that failed is told"
    assert sum(daemon._guard.failures.values()) == 4


def test_a_timer_goes_on_after_an_exception() -> None:
    """What is done every second is done in the next one, too."""
    calls: list[Any] = []
    waiting: list[Any] = []
    reactor = SimpleNamespace(callLater=lambda _, call: waiting.append(call))
    daemon: Any = SimpleNamespace(_guard=Guard())

    def work() -> None:
        calls.append(1)
        raise OSError("away")

    Daemon._every(daemon, reactor, 1.0, "work", work)
    for _ in range(3):
        waiting.pop()()
    assert len(calls) == 3
    assert len(waiting) == 1


def test_an_exchange_that_raises_is_counted_out() -> None:
    """The next server is asked, and at the end nothing is under way."""
    from twisted.internet.task import Clock

    answers: list[Any] = []

    def complete(exchange: int, server: int, answer: bytes | None) -> bool:
        answers.append(answer)
        if answer is not None:
            raise RuntimeError("cannot be read")
        return False

    reactor: Any = Clock()
    factories: list[Any] = []

    def connect(host: str, port: int, factory: Any, timeout: float) -> Any:
        factories.append(factory)
        return SimpleNamespace(disconnect=lambda: None)

    reactor.connectTCP = connect
    streams = Streams(reactor, complete)
    streams.ask(1, [(("dns", f"192.0.2.{last}", "", 53, ""), b"q") for last in (1, 2)], 1.0)
    for factory in (0, 1):
        exchange = factories[factory].buildProtocol(None)
        with pytest.raises(RuntimeError):
            exchange.stringReceived(b"answer")
    assert answers == [b"answer", b"answer", None]
    assert streams.under_way == 0
