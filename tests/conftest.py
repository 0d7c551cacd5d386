"""Fixtures: what most tests need, and nothing that one alone does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm
from tests.support.daemon import Blockd
from tests.support.upstream import Upstream

Serve = Callable[..., Blockd]


def _children() -> set[str]:
    """Name the living processes below this one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(stat.parent.name)] = int(fields[1])
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return {str(pid) for pid in mine - {os.getpid()}}


def _spaces() -> set[str]:
    """Name the network namespaces, without those of tests that run beside these in a process of their own."""
    beside = re.compile(rf"blockd-(?!{os.getpid()}-)\d+-\d+")
    return {path.name for path in Path("/run/netns").glob("*") if not beside.fullmatch(path.name)}


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive() -> None:
    """Give commands under test a Ctrl-C: a shell that starts the tests in its background ignores it for all below."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """See that the tests leave no process and no network namespace behind."""
    spaces = _spaces()
    yield
    warm.close()
    assert not _children()
    assert _spaces() == spaces


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """Give a scripted upstream that knows no name yet."""
    with Upstream({}) as server:
        yield server


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start daemons that end with the test: `serve([upstream.address], **sections)`."""
    with ExitStack() as stack:
        count = 0

        def start(upstreams: list[str], **options: Any) -> Blockd:
            nonlocal count
            count += 1
            directory = tmp_path / f"blockd{count}"
            directory.mkdir()
            return stack.enter_context(Blockd(directory, upstreams, **options))

        yield start
