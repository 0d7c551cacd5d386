"""What takes longer than `make test` may: `make soak` runs it."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from blockd.control import ask as command_of
from tests.conftest import Serve
from tests.interop import test_rpz_in
from tests.properties import test_decision
from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.servers import Nsd
from tests.support.upstream import Upstream
from tests.unit import test_killed

pytestmark = pytest.mark.soak


def test_a_hundred_reloads_under_load(tmp_path: Path, serve: Serve) -> None:
    """5,000 queries a second through 100 reloads that change rules: none lost, no SERVFAIL, memory stays flat."""
    with Nsd(tmp_path / "nsd", {"example": "* A 192.0.2.1\n", "tiktok.com": "* A 192.0.2.2\n"}) as nsd:
        server = {"client_rate": 1_000_000, "client_burst": 1_000_000}
        good, poisoned = "a.more.example\nb.more.example\n", "a.more.example\nnever.example\nco.uk\n"
        more = tmp_path / "more.txt"
        more.write_text(good)
        flip = {"suffixes": ["flip.example"], "lists": [{"file": str(more)}]}
        blockd = serve([nsd.address], apps={"flip": flip}, server=server)
        control = blockd.directory / "control.sock"
        queries = tmp_path / "queries"
        queries.write_text("".join(f"n{at}.example A\nn{at}.tiktok.com A\n" for at in range(500)))
        command = ["dnsperf", "-s", "127.0.0.1", "-p", str(blockd.port), "-a", CORPORATE, "-d", str(queries)]
        load = subprocess.Popen(
            [*command, "-l", "120", "-Q", "5000", "-c", "8"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        sizes = []
        began = time.monotonic()
        for turn in range(100):
            blocks = ["tiktok", "bytedance-platform"] + (["flip"] if turn % 2 == 0 else [])
            blockd.values["policies"]["corporate"]["block"] = blocks
            blockd.write()
            if turn % 10 == 8:
                # What is refused is never seen, not for a moment.
                more.write_text(poisoned)
                assert not command_of(control, "reload")["ok"]
                assert rcode(ask(blockd, "never.example", client=CORPORATE)) == "NOERROR"
                more.write_text(good)
            assert command_of(control, "reload")["ok"]
            got = rcode(ask(blockd, "a.flip.example", client=CORPORATE))
            assert got == ("NXDOMAIN" if turn % 2 == 0 else "NOERROR")
            sizes.append(blockd.memory())
        print(f"100 reloads and 10 that are refused: {time.monotonic() - began:.0f} s")
        assert load.poll() is None, "the load ended before the reloads did"
        output = load.communicate(timeout=180)[0]
        assert "Queries lost:         0 (0.00%)" in output, output
        assert "SERVFAIL" not in output, output
        assert sizes[-1] - sizes[10] < 16 << 20, sizes


def test_more_policies_than_a_test_run_has_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle over 5,000 policies."""
    monkeypatch.setattr(test_decision, "POLICIES", 5_000)
    assert next(test_decision.mismatches("", Counter()), None) is None


def test_a_million_names_of_a_list(tmp_path: Path, serve: Serve) -> None:
    """A hosts file of a million names is taken in while queries are answered, and each name is blocked."""
    with Nsd(tmp_path / "nsd", {"example": "* A 192.0.2.1\n"}) as nsd:
        blockd = serve([nsd.address])
        listed = blockd.directory / "apps" / "big.txt"
        listed.write_text("".join(f"0.0.0.0 host{at}.list{at % 997}.example\n" for at in range(1_000_000)))
        blockd.write_app("big", lists=[{"file": "big.txt", "format": "hosts"}])
        blockd.values["policies"]["corporate"]["block"].append("big")
        assert blockd.reload().returncode == 0
        assert blockd.metric("blockd_list_names", app="big") == 1_000_000
        rng = random.Random(7)
        for at in rng.sample(range(1_000_000), 200):
            assert rcode(ask(blockd, f"host{at}.list{at % 997}.example", client=CORPORATE)) == "NXDOMAIN"
            assert rcode(ask(blockd, f"x.host{at}.list{at % 997}.example", client=CORPORATE)) == "NOERROR"
        started = time.monotonic()
        done = blockd.run("explain", "--client", CORPORATE, "host999999.list1.example")
        assert done.returncode == 0
        assert time.monotonic() - started < 10


def test_killed_two_hundred_times_it_starts_with_one_whole_generation(tmp_path: Path, upstream: Upstream) -> None:
    """kill -9 at random moments of reloads; a broken config makes each start use what is kept."""
    upstream.script = test_killed.any_address
    blockd = Blockd(tmp_path, [upstream.address])
    flip, names = tmp_path / "apps" / "flip.txt", ("a.flip.example", "b.flip.example")
    blockd.write_app("flip", suffixes=["flip.invalid"], lists=[{"file": "flip.txt"}])
    blockd.values["policies"]["corporate"]["block"].append("flip")
    flip.write_text("".join(f"0.{name}\n" for name in names))
    blockd.write()
    good = blockd.file.read_text()
    blockd.start()
    last = 0
    for turn in range(1, 201):
        assert blockd.process is not None
        flip.write_text("".join(f"{turn}.{name}\n" for name in names))
        blockd.hangup()
        time.sleep(random.uniform(0, 1.2))
        blockd.process.kill()
        blockd.process.wait()
        blockd.file.write_text(good + "nonsense: 1\n")
        blockd.start()
        said = {n: {rcode(ask(blockd, f"{n}.{name}", client=CORPORATE)) for name in names} for n in (last, turn)}
        whole = [number for number, answers in said.items() if answers == {"NXDOMAIN"}]
        assert len(whole) == 1, (turn, said)
        assert {"NOERROR"} in said.values(), (turn, said)
        last = whole[0]
        blockd.file.write_text(good)
    blockd.stop()


def test_a_hundred_thousand_questions_to_three_resolvers(tmp_path: Path) -> None:
    """Over eighty sets of random response policy zones, blockd says what BIND or Unbound says."""
    seen = test_rpz_in.compare(tmp_path, range(100, 180), 100_000)
    assert seen.total() == 100_000
