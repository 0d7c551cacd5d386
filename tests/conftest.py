"""Fixtures: what most tests need, and nothing that one alone does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Blockd
from tests.support.upstream import Upstream

Serve = Callable[..., Blockd]


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
