"""The decisions log: the first (device, app, rule) of a minute, then a count; nothing by address elsewhere."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from typing import Any

from blockd.observe.decisions_log import DecisionsLog
from blockd.observe.log_format import LineFormatter, is_journal
from tests.conftest import Serve
from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, GUEST, PERSONAL, STRANGER, ask, message, raw
from tests.support.upstream import Upstream


def lines(blockd: Blockd, count: int) -> list[dict[str, Any]]:
    """Wait for so many decisions in a JSON log."""
    deadline = time.monotonic() + 5
    while True:
        rows = [json.loads(line) for line in blockd.log.read_text().splitlines() if line.startswith("{")]
        found = [row for row in rows if row["kind"] == "decision"]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_the_first_is_told_at_once_and_the_rest_are_counted(serve: Serve, upstream: Upstream) -> None:
    """By device, app and rule; the closing line comes when the policy is replaced, or the minute ends."""
    upstream.records["news.example"] = ["news.example. 300 IN CNAME p16.tiktokcdn.com."]
    upstream.records["p16.tiktokcdn.com"] = ["p16.tiktokcdn.com. 300 IN A 192.0.2.1"]
    blockd = serve([upstream.address], log={"format": "json"})
    for _ in range(5):
        ask(blockd, "www.tiktok.com", client=CORPORATE)
    ask(blockd, "vm.tiktok.com", client=CORPORATE, tcp=True)
    for _ in range(3):
        ask(blockd, "news.example", client=CORPORATE)
    ask(blockd, "plain.example", client=CORPORATE)
    found = lines(blockd, 2)
    told = [(row["client"], row["group"], row["action"], row["app"], row["name"], row["rule"]) for row in found]
    assert told == [
        (CORPORATE, "corporate", "block", "tiktok", "www.tiktok.com", "suffix tiktok.com"),
        (CORPORATE, "corporate", "block", "tiktok", "news.example", "suffix tiktokcdn.com by p16.tiktokcdn.com"),
    ]
    assert blockd.reload().returncode == 0
    closing = [row for row in lines(blockd, 4) if "more" in row]
    assert sorted((row["rule"].split()[1], row["more"]) for row in closing) == [("tiktok.com", 5), ("tiktokcdn.com", 2)]
    assert blockd.metric("blockd_decisions_log_lines_total") == 4


def test_other_groups_appear_by_no_address(serve: Serve, upstream: Upstream) -> None:
    """Monitored guests, unidentified devices, and a group that says `log: counts`; `log: decisions` says otherwise."""
    policies = {"unidentified": {"block": ["tiktok"]}, "personal": {"block": ["tiktok"]}}
    blockd = serve([upstream.address], log={"format": "json"}, policies=policies)
    blockd.values["groups"]["personal"]["log"] = "counts"
    assert blockd.reload().returncode == 0
    for client in (GUEST, STRANGER, PERSONAL):
        ask(blockd, "tiktok.com", client=client)
    ask(blockd, "tiktok.com", client=CORPORATE)
    assert [row["client"] for row in lines(blockd, 1)] == [CORPORATE]
    blockd.values["groups"]["guest"]["log"] = "decisions"
    assert blockd.reload().returncode == 0
    ask(blockd, "tiktok.com", client=GUEST)
    assert [(row["client"], row["action"]) for row in lines(blockd, 2)] == [(CORPORATE, "block"), (GUEST, "monitor")]
    for client in (STRANGER, PERSONAL):
        assert client not in blockd.log.read_text().replace(f"dig -b {client}", "")


def test_a_name_forges_no_line(serve: Serve, upstream: Upstream) -> None:
    """Line breaks, quotes and escapes of a question name stay inside its field, readable and JSON alike."""
    for style in ("json", "text"):
        blockd = serve([upstream.address], log={"format": style})
        query = bytearray(message("xxxxxxxxxx.tiktok.com").to_wire())
        query[13:23] = b'\n<3>"},\x1b[x'
        assert raw(blockd, bytes(query)) is not None
        deadline = time.monotonic() + 5
        while "0603" not in blockd.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        last = blockd.log.read_text().splitlines()[-1]
        assert "\x1b" not in last
        if style == "json":
            assert json.loads(last)["name"].startswith("\\010\\0603")
        else:
            assert last.startswith("INFO block tiktok for 127.0.0.1 (corporate): \\010\\0603")


def test_a_minute_ends_by_the_clock_and_rows_of_forgotten_views_are_dropped() -> None:
    """The names of a row's numbers are those of its generation."""
    log = DecisionsLog()
    for generation in range(1, 20):
        log.published(generation, {"groups": ["corporate"], "apps": [f"app{generation}"]})
    row: Any = {
        "client": "192.0.2.1",
        "view": 0,
        "app": 0,
        "action": "block",
        "name": "a",
        "qtype": 1,
        "rule": "suffix a",
    }
    for generation in (19, 1):
        row["generation"], row["more"] = generation, None
        log.write(row)
    assert log.written == 1


def test_journald_gets_priorities() -> None:
    """Only where stderr leads to the journal; level and time are its own then."""
    record = logging.LogRecord("blockd", logging.WARNING, "", 0, "two\nlines", None, None)
    assert LineFormatter(False, True).format(record) == "<4>two\\nlines"
    assert LineFormatter(False, False).format(record) == "WARNING two\\nlines"
    assert json.loads(LineFormatter(True, True).format(record).removeprefix("<4>"))["message"] == "two\nlines"
    odd = logging.LogRecord("blockd", logging.WARNING, "", 0, "\x1b[2J\x85\u2028\u202e\ud800\tb\xfcro", None, None)
    assert LineFormatter(False, False).format(odd) == "WARNING \\x1b[2J\\x85\\u2028\\u202e\\ud800\tb\xfcro"
    with open(os.devnull, "w") as stream:
        stat = os.fstat(stream.fileno())
        assert is_journal(stream, {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"})
        assert not is_journal(stream, {"JOURNAL_STREAM": "1:2"})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})
