"""A table that does not fit in memory is refused before it is published, with the figure that it would need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from blockd.memory import available_octets
from tests.conftest import Serve
from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.upstream import Upstream

MEMINFO = "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "wanted"),
    [
        ("0::/\n", {}, 8_192_000),
        ("0::/a\n", {"sys/fs/cgroup/a/memory.max": "max\n", "sys/fs/cgroup/a/memory.current": "5\n"}, 8_192_000),
        (
            "0::/a/b\n",
            {
                "sys/fs/cgroup/a/memory.max": "7000\n",
                "sys/fs/cgroup/a/memory.current": "5000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 300\nactive_file 200\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
            },
            2_500,
        ),
        (
            "4:cpu,memory:/b\n0::/\n",
            {
                "sys/fs/cgroup/memory/b/memory.limit_in_bytes": "3000\n",
                "sys/fs/cgroup/memory/b/memory.usage_in_bytes": "4000\n",
                "sys/fs/cgroup/memory/b/memory.stat": "inactive_file 9000\ntotal_inactive_file 500\n",
            },
            0,
        ),
    ],
    ids=["the system", "no limit", "a limit above", "an old limit, passed"],
)
def test_the_least_of_all_limits_counts(tmp_path: Path, cgroup: str, files: dict[str, str], wanted: int) -> None:
    """Of the system, of control groups of either version."""
    written = {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, "proc/self/statm": "100 1 1\n", **files}
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_octets(tmp_path) == wanted


def test_lists_that_do_not_fit_are_refused_with_a_figure(serve: Serve, upstream: Upstream) -> None:
    """A compile under a limit says what it would need, and the daemon goes on with what it has."""
    blockd = serve([upstream.address])
    (blockd.directory / "long.txt").write_text("".join(f"n{at}.invalid\n" for at in range(3_000_000)))
    blockd.write_app("long", suffixes=[], lists=[{"file": str(blockd.directory / "long.txt"), "format": "domains"}])
    blockd.values["policies"]["corporate"]["block"].append("long")
    blockd.write()
    compile_it = [sys.executable, "-m", "blockd", "compile", "--config", str(blockd.file)]
    # Address space, of which an idle Python takes about 50 MB.
    limited = ["prlimit", f"--as={80 << 20}", *compile_it, "--output", str(blockd.directory / "out")]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "files would need 5" in done.stderr
    assert "MB of memory and" in done.stderr
    assert "MB are free: let shorter lists live" in done.stderr
    assert not (blockd.directory / "out").exists()
    assert rcode(ask(blockd, "tiktok.com", client=CORPORATE)) == "NXDOMAIN"


def test_more_ways_of_overlap_than_there_are_numbers_for_are_refused(tmp_path: Path) -> None:
    """Each name stands in lists of its own choice among seventeen: 2^17 rule sets, and 65,536 are allowed."""
    blockd = Blockd(tmp_path, ["127.0.0.1:53"])
    apps = [f"app{at}" for at in range(17)]
    for at, app in enumerate(apps):
        names = (f"n{number}.invalid\n" for number in range(1, 1 << 17) if number >> at & 1)
        (tmp_path / f"{app}.txt").write_text("".join(names))
        blockd.write_app(app, lists=[{"file": str(tmp_path / f"{app}.txt")}])
    blockd.values["policies"]["corporate"]["block"] = apps
    blockd.write()
    done = blockd.run("compile", "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "blockd.yaml:" in done.stderr
    assert "policies: the apps' rules overlap in more than the 65536 ways that are allowed" in done.stderr
    assert not (tmp_path / "out").exists()
