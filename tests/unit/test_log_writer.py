"""The log is written by a thread of its own: whatever reads it, nobody waits for it, and what is lost is counted."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blockd.observe.log_writer import LINE_OCTETS, QUEUE_OCTETS, LogWriter, Stderr


def make(descriptor: int | None) -> tuple[LogWriter, logging.Logger]:
    """Make a writer, and a logger that has it alone."""
    writer = LogWriter(descriptor)
    logger = logging.Logger("test")
    logger.addHandler(writer)
    return writer, logger


def read_until(reading: int, wanted: bytes) -> bytes:
    """Read until something was read, for a few seconds."""
    got, deadline = b"", time.monotonic() + 5
    while wanted not in got and time.monotonic() < deadline:
        if select.select([reading], [], [], 0.1)[0]:
            got += os.read(reading, 1 << 20)
    return got


@pytest.fixture
def pipe() -> tuple[int, int]:
    """Give a pipe of one page, with a full page in it."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"x" * 4096)
    return reading, writing


def test_a_reader_that_stalls_costs_lines_that_are_counted_and_reported(pipe: tuple[int, int]) -> None:
    """A flood of decisions takes no room from messages, nor messages from errors; memory is bounded."""
    reading, writing = pipe
    writer, logger = make(writing)
    began = time.monotonic()
    for at in range(20_000):
        logger.info("decision %d %s", at, "d" * 100, extra={"fields": {}})
    logger.warning("one message")
    logger.error("one error")
    for at in range(20_000):
        logger.info("message %d %s", at, "m" * 100)
    logger.error("another error")
    assert time.monotonic() - began < 5
    assert writer.dropped["decision"] > 10_000
    assert writer.dropped["message"] > 10_000
    assert writer.dropped["error"] == 0
    kept = 40_000 - writer.dropped.total()
    assert kept * (100 + LINE_OCTETS) < QUEUE_OCTETS["decision"] + QUEUE_OCTETS["message"]
    writer.wait_until_written(0.1)
    got = read_until(reading, b"another error")
    assert b"\none message\n" in got
    assert b"\none error\n" in got
    logger.info("afterwards")
    got += read_until(reading, b"afterwards")
    said = f"log: {writer.dropped.total()} lines were dropped because they could not be written: decision "
    assert said.encode() in got
    assert got.count(b" lines were dropped") == 1


@pytest.mark.parametrize("kind", ["closed", "gone", "full", "none", "non-blocking"])
def test_a_descriptor_that_cannot_be_written_to_costs_lines_alone(kind: str, pipe: tuple[int, int]) -> None:
    """A closed descriptor, a reader that went away, a full disk, no descriptor at all, one that does not block."""
    reading, writing = pipe
    descriptor: int | None = writing
    if kind == "closed":
        os.close(writing)
    elif kind == "gone":
        os.close(reading)
    elif kind == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    elif kind == "none":
        descriptor = None
    else:
        os.set_blocking(writing, False)
    writer, logger = make(descriptor)
    for at in range(100):
        logger.error("line %d", at)
    if kind == "non-blocking":
        assert read_until(reading, b"line 99\n").endswith(b"line 99\n")
        assert not writer.dropped
        return
    writer.wait_until_written(5)
    assert writer.dropped == {"error": 100}


def test_it_is_said_when_writing_works_again(tmp_path: Path) -> None:
    """What a full disk lost is reported by the first line after it."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer, logger = make(descriptor)
    logger.error("lost")
    writer.wait_until_written(5)
    with (tmp_path / "log").open("w") as file:
        os.dup2(file.fileno(), descriptor)
    logger.error("kept")
    writer.wait_until_written(5)
    assert (tmp_path / "log").read_text().splitlines() == [
        "log: 1 lines were dropped because they could not be written: error 1",
        "kept",
    ]


def test_stderr_takes_lines_and_halves_of_lines(tmp_path: Path) -> None:
    """Prints, tracebacks, a line without an end, and a surrogate that is no character."""
    with (tmp_path / "log").open("w") as file:
        writer, _ = make(file.fileno())
        stderr = Stderr(writer, "<3>")
        print("one\ntwo", file=stderr)
        print("three", end="", file=stderr)
        print("\udc80", file=stderr)
        stderr.write("y" * 100_000)
        writer.wait_until_written(5)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:3] == ["<3>one", "<3>two", "<3>three\\udc80"]
    assert len(lines[3]) == 100_003


def test_the_last_lines_of_a_process_are_written_and_an_exit_does_not_wait_for_a_reader() -> None:
    """At its exit a process waits a second at most, and a child that was forked writes by itself."""
    script = (
        "import logging, os, sys, warnings\n"
        "from blockd.observe import log_format\n"
        "log_format.set_up()\n"
        "if os.fork() == 0:\n"
        "    print('forked', file=sys.stderr)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "warnings.warn('a warning')\n"
        "logging.getLogger('x').info('cannot be formatted: %d', 'x')\n"
        "logging.getLogger('x').info('%s', 'x' * 100_000)\n"
        "logging.getLogger('x').info('last')\n"
        "raise ValueError('unhandled')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    for text in ("forked\n", "a warning", "Logging error", "INFO last\n", "ValueError: unhandled\n"):
        assert text in ended.stderr, text
    reading, writing = os.pipe()
    began = time.monotonic()
    stalled = subprocess.run([sys.executable, "-c", script], stderr=writing, timeout=20, check=False)
    assert stalled.returncode == 1
    assert time.monotonic() - began < 5
    os.close(reading)
    os.close(writing)
