"""A changed file means a reload, after a second of quiet; what would lose too much is refused."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

from blockd.watch import QUIET, Watch, signature
from tests.conftest import Serve
from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.upstream import Upstream


def wait_for(blockd: Blockd, generation: int, seconds: float = 30) -> None:
    """Wait until the views have this generation."""
    deadline = time.monotonic() + seconds
    while blockd.ready()["views_generation"] != generation:
        assert time.monotonic() < deadline, blockd.log.read_text()
        time.sleep(0.05)


def test_a_changed_file_is_taken_in(serve: Serve, upstream: Upstream) -> None:
    """A list written in place, replaced whole, behind a link; a new app's file; a broken one is refused once."""
    blockd = serve([upstream.address], reload={"watch": True})
    listed = blockd.directory / "apps" / "l.txt"
    listed.write_text("one.example\n")
    blockd.write_app("listed", lists=[{"file": "l.txt", "format": "domains"}])
    blockd.values["policies"]["corporate"]["block"].append("listed")
    blockd.write()
    wait_for(blockd, 2)
    listed.write_text("one.example\ntwo.example\n")
    wait_for(blockd, 3)
    assert rcode(ask(blockd, "two.example", client=CORPORATE)) == "NXDOMAIN"
    new = blockd.directory / "l.new"
    new.write_text("three.example\n")
    os.replace(new, listed)
    wait_for(blockd, 4)
    upstream.records["one.example"] = ["one.example. 60 IN A 192.0.2.1"]
    assert rcode(ask(blockd, "three.example", client=CORPORATE)) == "NXDOMAIN"
    assert rcode(ask(blockd, "one.example", client=CORPORATE)) == "NOERROR"
    (blockd.directory / "apps" / "broken.yaml").write_text("app: [")
    deadline = time.monotonic() + 30
    while blockd.ready()["config_in_force"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(2)
    assert blockd.metric("blockd_config_reloads_total", result="failure") == 1, (
        "not tried again until something changes"
    )
    (blockd.directory / "apps" / "broken.yaml").unlink()
    wait_for(blockd, 5)
    assert blockd.ready()["config_in_force"]


def test_mending_what_was_refused_is_a_change(serve: Serve, upstream: Upstream) -> None:
    """A list that was not there, and an inventory that had a bad line: files that only the refused config names."""
    blockd = serve([upstream.address], reload={"watch": True})
    blockd.write_app("listed", lists=[{"file": "l.txt", "format": "domains"}])
    blockd.values["groups"]["corporate"]["inventory"] = [{"file": "devices.csv"}]
    blockd.values["policies"]["corporate"]["block"].append("listed")
    (blockd.directory / "devices.csv").write_text("address,hostname,serial,owner\n127.0.0.300,,,\n")
    refused = blockd.reload()
    assert "l.txt cannot be read" in refused.stderr
    assert "devices.csv:2: address" in refused.stderr
    (blockd.directory / "apps" / "l.txt").write_text("one.example\n")
    time.sleep(3)
    assert not blockd.ready()["config_in_force"]
    (blockd.directory / "devices.csv").write_text("address,hostname,serial,owner\n127.0.0.30,,,\n")
    wait_for(blockd, 2)
    assert rcode(ask(blockd, "one.example", client="127.0.0.30")) == "NXDOMAIN"


def test_an_emptied_inventory_is_refused(serve: Serve, upstream: Upstream) -> None:
    """An export that failed must not make every device unidentified; a restart key beside it is no dead end."""
    blockd = serve([upstream.address], reload={"largest_shrink": "50%"})
    devices = blockd.directory / "devices.csv"
    rows = "".join(f"127.0.0.{at},,,\n" for at in range(30, 40))
    devices.write_text("address,hostname,serial,owner\n" + rows)
    blockd.values["groups"]["corporate"]["inventory"] = [{"file": "devices.csv"}]
    assert blockd.reload().returncode == 0
    devices.write_text("address,hostname,serial,owner\n")
    refused = blockd.reload()
    assert "this inventory of corporate would lose 10 of its 10 devices (100%)" in refused.stderr
    assert rcode(ask(blockd, "tiktok.com", client="127.0.0.30")) == "NXDOMAIN"
    assert blockd.metric("blockd_decisions_total", group="corporate", action="block") == 1
    blockd.values["cache"]["size_mb"] = 9
    refused = blockd.reload()
    assert "cache.size_mb: changed, and only a restart takes it in" in refused.stderr
    assert "would lose 10 of its 10 devices" in refused.stderr
    assert blockd.run("reload", "--accept").returncode == 1
    blockd.stop()
    blockd.start()
    assert blockd.ready()["config_in_force"], "what was accepted is not asked about again"


def test_quiet_is_waited_for() -> None:
    """While an editor still writes, nothing is read; what was taken in is no change."""
    watch = Watch({"a": (1, 1, 1, 1)})
    assert not watch.look({"a": (1, 1, 1, 1)}, 0.0)
    for at in range(5):
        assert not watch.look({"a": (2 + at, 1, 1, 1)}, 1.0 + at * 0.5)
    assert not watch.look({"a": (6, 1, 1, 1)}, 3.0 + QUIET - 0.1)
    assert watch.look({"a": (6, 1, 1, 1)}, 3.0 + QUIET)
    watch.taken_in({"a": (6, 1, 1, 1)})
    assert not watch.look({"a": (6, 1, 1, 1)}, 99.0)


def test_a_signature_sees_what_matters(tmp_path: Path) -> None:
    """Content, a replaced file, a removed one, a new one of a directory; not what an editor hides."""
    file, directory = tmp_path / "a", tmp_path / "d"
    file.write_text("x")
    directory.mkdir()
    states = [signature([file], [directory])]
    (directory / "n.yaml").write_text("")
    states.append(signature([file], [directory]))
    (tmp_path / "b").write_text("x")
    os.replace(tmp_path / "b", file)
    states.append(signature([file], [directory]))
    file.unlink()
    states.append(signature([file], [directory]))
    assert all(before != after for before, after in itertools.pairwise(states))
    (directory / ".n.yaml.swp").write_text("")
    (directory / ".x.yaml").write_text("")
    assert signature([file], [directory]) == states[-1]


def test_what_loses_too_much_is_refused_unless_accepted(serve: Serve, upstream: Upstream) -> None:
    """A list, an app, at a restart too; a policy that no longer names an app loses nothing."""
    blockd = serve([upstream.address], reload={"largest_shrink": "50%"})
    listed = blockd.directory / "apps" / "l.txt"
    listed.write_text("".join(f"n{at}.example\n" for at in range(10)))
    blockd.write_app("listed", lists=[{"file": "l.txt", "format": "domains"}])
    blockd.values["policies"]["corporate"]["block"].append("listed")
    assert blockd.reload().returncode == 0
    listed.write_text("".join(f"n{at}.example\n" for at in range(5)))
    assert blockd.reload().returncode == 0, "half is not more than half"
    listed.write_text("n0.example\n")
    refused = blockd.reload()
    assert refused.returncode == 1
    assert (
        f"{listed}: the list of listed would lose 4 of its 5 rules (80%), more than reload.largest_shrink"
        in refused.stderr
    )
    assert "blockd reload --accept" in refused.stderr
    assert rcode(ask(blockd, "n4.example", client=CORPORATE)) == "NXDOMAIN"
    assert blockd.metric("blockd_decisions_total", app="listed", action="block") == 1
    blockd.write_app("listed", suffixes=["only.example"])
    refused = blockd.reload()
    assert "the app listed would lose 4 of its 5 rules (80%)" in refused.stderr
    blockd.stop()
    blockd.start()
    assert "THE CONFIG IS NOT IN FORCE" in blockd.log.read_text()
    assert rcode(ask(blockd, "n4.example", client=CORPORATE)) == "NXDOMAIN", "a restart is no way round"
    assert blockd.run("reload", "--accept").returncode == 0
    assert blockd.ready()["config_in_force"]
    upstream.records["n4.example"] = ["n4.example. 60 IN A 192.0.2.1"]
    assert rcode(ask(blockd, "n4.example", client=CORPORATE)) == "NOERROR"
    blockd.values["policies"]["corporate"]["block"].remove("listed")
    assert blockd.reload().returncode == 0
