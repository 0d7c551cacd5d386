"""A device that moves between groups is seen by the next query, without a publish."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from blockd.fastpath import Fastpath, load
from blockd.policy.compile import compile_snapshot
from blockd.policy.inputs import read_inputs

DEVICE, OTHER = "10.20.0.1", "10.30.0.1"


@pytest.fixture
def fastpath(tmp_path: Path) -> Fastpath:
    """Two groups: one is blocked something, one is not."""
    config = tmp_path / "blockd.yaml"
    values = {
        "server": {"listen": ["127.0.0.1:53"]},
        "admin": {"listen": "127.0.0.1:9153"},
        "upstream": {"servers": ["127.0.0.53:53"]},
        "groups": {"corporate": {"networks": ["10.20.0.0/16"]}, "personal": {"networks": ["10.30.0.0/16"]}},
        "policies": {"corporate": {"block": ["tiktok"]}, "personal": {}, "unidentified": {}},
    }
    config.write_text(yaml.safe_dump(values))
    file = tmp_path / "snapshot"
    compile_snapshot(read_inputs(config), file)
    return Fastpath(load(str(file)), [], 0, 0)


def action(fastpath: Fastpath, client: str) -> str:
    """Say what a client gets for a blocked name."""
    return fastpath.decide(client, "tiktok.com", 1)["action"]


def test_the_next_query_obeys(fastpath: Fastpath) -> None:
    """An address gets another view than its prefix, and its prefix's again when it is taken back."""
    generation = fastpath.sizes()["views.generation"]
    corporate = fastpath.decide(DEVICE, "tiktok.com", 1)["view"]
    personal = fastpath.decide(OTHER, "tiktok.com", 1)["view"]
    assert (action(fastpath, DEVICE), action(fastpath, OTHER)) == ("block", "pass")
    fastpath.set_devices(generation, [(OTHER, corporate), (DEVICE, personal)])
    assert (action(fastpath, DEVICE), action(fastpath, OTHER)) == ("pass", "block")
    assert action(fastpath, "10.30.0.2") == "pass", "its neighbour stays"
    assert action(fastpath, f"::ffff:{OTHER}") == "block", "by whatever family it comes"
    assert fastpath.sizes()["devices.changed"] == 2
    fastpath.set_devices(generation, [(OTHER, None), (DEVICE, None)])
    assert (action(fastpath, DEVICE), action(fastpath, OTHER)) == ("block", "pass")


def test_what_is_wrong_changes_nothing(fastpath: Fastpath) -> None:
    """Numbers of another generation, views that do not exist, more addresses than there may be."""
    generation = fastpath.sizes()["views.generation"]
    for changed, changes, said in (
        (generation + 1, [(DEVICE, 1)], "not the views in force"),
        (generation, [(DEVICE, 1), (OTHER, 99)], "no such view"),
        (generation, [(f"2001:db8::{at >> 16:x}:{at & 0xFFFF:x}", 1) for at in range(2**20 + 1)], "too many"),
    ):
        with pytest.raises(ValueError, match=said):
            fastpath.set_devices(changed, changes)
    assert fastpath.sizes()["devices.changed"] == 0
    assert action(fastpath, DEVICE) == "block"
