"""The gate: what may not take the place of the policy in force, how that is seen, and the way back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockd.lists.gate import Limits, moved, refusals
from blockd.problems import Problem
from tests.conftest import Serve
from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.upstream import Upstream

LIMITS = Limits(0.5, 2.0, 0.2)


def manifest(kept: int, **more: Any) -> dict[str, Any]:
    """Make the manifest of one app with one list."""
    report = {"app": "a", "file": "/l", "kept": kept, "skipped": {}, "samples": [], "refused_samples": [], **more}
    return {"lists": [report], "rules": {"a": kept}}


def texts(problems: list[Problem]) -> list[str]:
    """Give them as people read them."""
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("had", "has", "own", "said"),
    [
        (10, 5, {}, None),
        (10, 4, {}, "/l: the list of a would lose 6 of its 10 rules (60%), more than reload.largest_shrink (50%)"),
        (10, 4, {"largest_shrink": 0.9}, None),
        (10, 8, {"largest_shrink": 0.1}, "would lose 2 of its 10 rules (20%)"),
        (10, 60, {}, None),
        (10, 61, {}, "/l: the list of a would grow from 10 names to 61, by more than its largest growth (200%)"),
        (1_000, 3_000, {}, None),
        (1_000, 3_001, {}, "would grow from 1000 names to 3001"),
        (1_000, 3_001, {"largest_growth": 9.0}, None),
    ],
)
def test_a_list_may_change_so_much(had: int, has: int, own: dict[str, float], said: str | None) -> None:
    """By the limits for all or its own; short lists may leap."""
    found = texts(refusals(manifest(had), manifest(has, **own), LIMITS, "/c"))
    assert len(found) == (said is not None), found
    if said is not None:
        assert said in found[0]
        assert "if that is meant: blockd reload --accept" in found[0]


@pytest.mark.parametrize(
    ("before", "after", "has", "is_refused"),
    [(False, True, 9, True), (False, True, 10, False), (True, True, 9, False), (False, False, 9, False)],
)
def test_a_file_that_is_cut_off_is_told_by_its_end(before: bool, after: bool, has: int, is_refused: bool) -> None:
    """It ended with its last line before, does not now, and has less."""
    old, new = manifest(10, ends_within_line=before), manifest(has, ends_within_line=after)
    found = texts(refusals(old, new, LIMITS, "/c"))
    assert len(found) == is_refused, found
    assert (
        not is_refused or "/l: ends within a line, and has 9 names where it had 10, as a file has that was" in found[0]
    )


def test_an_app_does_not_leave_the_set_of_its_owner_unseen() -> None:
    """Its file is gone or has another owner, and a policy names the owner: that lifts a ban as an emptied list does."""

    def owned(*apps: str, live: str = "abc", by_set: str = "abc", rules: int = 9) -> dict[str, Any]:
        sets = {app: "@all" if app in by_set else None for app in live}
        return {"rules": dict.fromkeys(live, rules), "owners": {"@o": list(apps)}, "sets": sets}

    old = owned("a", "b", "c")
    text = "/c: the app c, no longer in @o, would lose 9 of its 9 rules (100%), more than reload.largest_shrink (50%)"
    for before, after, said in (
        (old, owned("a", "b", live="ab", by_set="ab"), text),
        (old, owned("a", "b", live="abc", by_set="ab"), None),  # The policy names it itself now.
        (old, owned("a", "b", "c", live="ab", by_set="ab"), None),  # The config's own set lost it, which was meant.
        (old, owned("a", "b", live="", by_set=""), None),  # No policy names the owner any more.
        (owned("a", "b", "c", by_set="ab"), owned("a", "b", live="ab", by_set="ab"), None),  # Only its name was there.
        ({"rules": {"a": 9, "c": 9}}, owned("a", live="a"), None),  # The generation is one of a release without sets.
    ):
        found = texts(refusals(before, after, LIMITS, "/c"))
        assert [line.startswith(said or "-") for line in found] == ([True] if said else []), found
    assert not refusals(old, owned("a", "b", live="ab", by_set="ab"), replace(LIMITS, largest_shrink=1.0), "/c")


def test_lists_that_move_are_paired_and_what_was_accepted_is_not_judged_again() -> None:
    """In the order in which they stand; a list that is as it was is what somebody took in, unless something is new."""
    old = manifest(100)
    new = manifest(3)
    new["lists"][0]["file"] = "/m"
    assert "/m: the list of a would lose 97 of its 100 rules" in texts(refusals(old, new, LIMITS, "/c"))[0]
    new["lists"][0]["is_lacking"] = True
    assert "is not there yet, and would take the place of one of 100 names" in texts(moved(old, new))[0]
    assert moved(None, new) == moved(old, manifest(3)) == []
    sample = {"line": 7, "reason": "a public suffix", "text": "com"}
    accepted = manifest(9, sha256="d", refused=1, refused_samples=[sample], skipped={"x": 9})
    assert refusals(accepted, accepted, LIMITS, "/c") == []
    assert refusals(accepted, manifest(9, sha256="e", refused=1, refused_samples=[sample]), LIMITS, "/c") != []
    assert refusals(accepted, manifest(9, sha256="d", refused=2, refused_samples=[sample]), LIMITS, "/c") != []


def test_lines_that_give_no_name_are_few() -> None:
    """A share of the lines, without what every hosts file has; the first is shown."""
    sample = {"line": 7, "reason": "more than one word", "text": "<html> x"}
    own = {"line": 1, "reason": "the machine's own name", "text": "localhost"}
    usual = manifest(8, skipped={"the machine's own name": 90, "more than one word": 2}, samples=[own, sample])
    assert not refusals(None, usual, LIMITS, "/c")
    bad = manifest(7, skipped={"the machine's own name": 90, "more than one word": 2}, samples=[own, sample])
    assert texts(refusals(None, bad, LIMITS, "/c")) == [
        "/l:7: 2 of 9 lines (22%) give no name, more than reload.largest_unparsed (20%); the first: more than one "
        "word: <html> x; if that is meant: blockd reload --accept"
    ]


@pytest.mark.parametrize("has", [(10, 0), (10, 4), (4, 10)])
def test_an_inventory_that_comes_empty_does_not_hide_behind_another(has: tuple[int, int]) -> None:
    """Of one group: each file may lose so much, and not only all of them together."""

    def both(*devices: int) -> dict[str, Any]:
        files = [inventory(count, 0)["inventories"][0] | {"file": f"/{at}.csv"} for at, count in enumerate(devices)]
        return {"lists": [], "inventories": files, "devices": {"g": sum(devices)}}

    found = texts(refusals(both(10, 10), both(*has), LIMITS, "/c"))
    at = has.index(min(has))
    wanted = f"/{at}.csv: this inventory of g would lose {10 - min(has)} of its 10 devices"
    assert [text.startswith(wanted) for text in found] == [True], found
    assert not refusals(both(10, 10), both(10, 5), LIMITS, "/c")


def inventory(records: int, unusable: int, devices: int | None = None, **more: Any) -> dict[str, Any]:
    """Make the manifest of one inventory."""
    sample = Problem("/i.csv", 3, "", "no MAC").as_json()
    named = Problem("/i.csv", 2, "hostname", "a name").as_json()
    report = {"group": "g", "file": "/i.csv", "only": [], "records": records, "unusable": unusable, "end": 0}
    report |= {"devices": records - unusable if devices is None else devices, "samples": [named, sample]}
    return {"lists": [], "inventories": [{**report, **more}]}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (None, (10, 2), None),
        (None, (10, 3), "/i.csv:3: 3 of 10 records (30%) cannot be used, more than reload.largest_unparsed (20%)"),
        ((10, 2), (10, 3), "3 of 10 records (30%)"),
        ((10, 3), (10, 3), None),
        ((10, 3), (12, 3), None),
        ((10, 3), (10, 5), None),
        ((10, 3), (10, 6), "6 of 10 records (60%)"),
    ],
)
def test_records_that_cannot_be_used_are_few(
    before: tuple[int, int] | None, after: tuple[int, int], said: str | None
) -> None:
    """A share of the records; those that somebody accepted keep out no other change."""
    old = None if before is None else inventory(*before)
    found = texts(refusals(old, inventory(*after, devices=99), LIMITS, "/c"))
    assert len(found) == (said is not None), found
    if said is not None:
        assert said in found[0]
        assert found[0].endswith("; the first: no MAC; if that is meant: blockd reload --accept")


@pytest.mark.parametrize(
    ("before", "after", "devices", "is_refused"),
    [(0, 1, 9, True), (0, 1, 10, False), (1, 1, 9, False), (1, 2, 9, True), (1, 0, 9, False), (2, 2, 9, False)],
)
def test_an_inventory_that_is_cut_off_is_told_by_its_end(
    before: int, after: int, devices: int, is_refused: bool
) -> None:
    """Within a line, or within a record where the tool writes no last line end, and with less than before."""
    old, new = inventory(10, 0, end=before), inventory(10, 0, devices, end=after)
    found = texts(refusals(old, new, LIMITS, "/c"))
    assert len(found) == is_refused, found
    assert not is_refused or "/i.csv: ends within a line, and has 9 devices where it had 10" in found[0]


def with_list(serve: Serve, upstream: Upstream, text: str, **reload: Any) -> tuple[Blockd, Path]:
    """Start a daemon with an app that has one list."""
    blockd = serve([upstream.address], reload={"largest_shrink": "50%", **reload})
    listed = blockd.directory / "apps" / "l.txt"
    listed.write_text(text)
    blockd.write_app("listed", suffixes=[], lists=[{"file": "l.txt", "format": "domains"}])
    blockd.values["policies"]["corporate"]["block"].append("listed")
    assert blockd.reload().returncode == 0
    return blockd, listed


GOOD = "".join(f"n{at}.example\n" for at in range(10))


POISON = {
    "com\n": ":11: com: a public suffix; 1 such in this list",
    "co.uk\ncom\n": ":11: co.uk: a public suffix; 2 such in this list",
    "vpn.dept.example\n": ":11: vpn.dept.example: a name that no list may block",
    "corp.test\n": ":11: corp.test: a name that no list may block",
    "test\n": ":11: test: a name above one that no list may block",
    "printer.local.test\n": ":11: printer.local.test: a name that no list may block",
}


def test_a_poisoned_list_is_refused(serve: Serve, upstream: Upstream) -> None:
    """Everybody's names, ours by `never_block`, zones and records; with file and line, staged, and nothing changed."""
    blockd, listed = with_list(serve, upstream, GOOD, never_block=["dept.example"])
    blockd.values["upstream"]["zones"] = {"corp.test": [upstream.address]}
    blockd.values["records"] = {"printer.local.test": ["A 10.0.0.9"]}
    assert blockd.reload().returncode == 0
    for added, said in POISON.items():
        listed.write_text(GOOD + added)
        refused = blockd.run("reload")
        assert refused.returncode == 1
        assert f"{listed}{said}" in refused.stderr
        assert rcode(ask(blockd, "n9.example", client=CORPORATE)) == "NXDOMAIN"
    assert blockd.metric("blockd_generation_staged") == 1
    assert f"{listed}{said}" in blockd.run("lists").stdout
    listed.write_text(GOOD)
    assert blockd.run("reload").returncode == 0
    assert blockd.metric("blockd_generation_staged") == 0
    assert "staged" not in blockd.run("lists").stdout


def test_names_that_must_be_blocked_or_not(serve: Serve, upstream: Upstream) -> None:
    """A change of policy or list that breaks either is refused, at the line of the config; accepted, it is logged."""
    blockd, listed = with_list(serve, upstream, GOOD, must_block=["www.tiktok.com"], must_allow=["www.gov.example"])
    listed.write_text(GOOD + "gov.example\n")
    refused = blockd.run("reload")
    assert "reload.must_allow.0: www.gov.example would be blocked for corporate, as listed" in refused.stderr
    assert rcode(ask(blockd, "gov.example", client=CORPORATE)) == "NXDOMAIN", "the upstream's own"
    listed.write_text(GOOD)
    blockd.values["policies"]["corporate"]["block"] = ["listed"]
    refused = blockd.reload()
    assert "reload.must_block.0: www.tiktok.com would be blocked for no group" in refused.stderr
    assert blockd.metric("blockd_generation_staged") == 1
    # A restart is no way round.
    blockd.stop()
    blockd.start()
    assert "www.tiktok.com would be blocked for no group" in blockd.log.read_text()
    assert rcode(ask(blockd, "www.tiktok.com", client=CORPORATE)) == "NXDOMAIN"
    assert blockd.metric("blockd_decisions_total", app="tiktok", action="block") == 1
    assert blockd.run("reload", "--accept").returncode == 0
    assert "accepted by an operator: " in blockd.log.read_text()
    assert blockd.metric("blockd_generation_staged") == 0


def test_a_dry_run_says_what_would_change(serve: Serve, upstream: Upstream) -> None:
    """Gains and losses by app with samples, and what speaks against; nothing is changed, staged or left on disk."""
    blockd, listed = with_list(serve, upstream, GOOD)
    generations = blockd.directory / "state" / "generations"
    before = sorted(path.name for path in generations.iterdir())
    same = blockd.run("reload", "--dry-run")
    assert (same.returncode, same.stdout) == (0, "a reload would change no name\n")
    listed.write_text("n0.example\nnew.example\n")
    blockd.write_app("tiktok-more", suffixes=["more.example"], holes=["ok.more.example"])
    blockd.values["policies"]["corporate"]["block"].append("tiktok-more")
    blockd.write()
    done = blockd.run("reload", "--dry-run")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:4] == ["listed: 1 gained, 9 lost", "  + new.example", "  - n1.example", "  - n2.example"]
    assert lines[-4:] == [
        "tiktok-more: 1 gained, 0 lost",
        "  + more.example",
        "tiktok-more (holes): 1 gained, 0 lost",
        "  + ok.more.example",
    ]
    assert "the list of listed would lose 8 of its 10 rules (80%)" in done.stderr
    assert "a reload would be refused" in done.stderr
    changes = json.loads(blockd.run("reload", "--dry-run", "--json").stdout)["changes"]
    assert (changes[0]["app"], changes[0]["gained"], changes[0]["lost"]) == ("listed", 1, 9)
    assert blockd.ready()["config_in_force"]
    assert blockd.ready()["staged"] == 0
    assert sorted(path.name for path in generations.iterdir()) == before
    broken = blockd.directory / "apps" / "broken.yaml"
    broken.write_text("app: [")
    assert blockd.run("reload", "--dry-run").returncode == 1
    assert blockd.ready()["config_in_force"], "a dry run is no reload, whatever it finds"


def test_a_number_is_one_generations_alone(serve: Serve, upstream: Upstream) -> None:
    """What was rolled back keeps its number: the next one has another, over a restart as well."""
    blockd, listed = with_list(serve, upstream, GOOD)
    listed.write_text(GOOD + "one.example\n")
    assert blockd.run("reload").returncode == 0
    left = blockd.ready()["generation"]
    assert blockd.run("lists", "rollback").returncode == 0
    blockd.stop()
    blockd.start()
    listed.write_text(GOOD + "two.example\n")
    assert blockd.run("reload").returncode == 0
    assert blockd.ready()["generation"] > left


def test_what_nobody_was_told_of_is_not_accepted(serve: Serve, upstream: Upstream) -> None:
    """`--accept` is about what was refused or shown, and not about what stands there by now."""
    upstream.records["n9.example"] = ["n9.example. 60 IN A 192.0.2.1"]
    blockd, listed = with_list(serve, upstream, GOOD)
    listed.write_text("n0.example\n")
    unseen = blockd.run("reload", "--accept")
    assert unseen.returncode == 1
    assert "would lose 9 of its 10 rules" in unseen.stderr
    assert "nobody was told of this before, or it changed since: if it is meant, say it again" in unseen.stderr
    assert rcode(ask(blockd, "n9.example", client=CORPORATE)) == "NXDOMAIN"
    listed.write_text("n1.example\n")
    assert blockd.run("reload", "--accept").returncode == 1, "it is another now"
    blockd.stop()
    blockd.start()
    assert blockd.run("reload", "--accept").returncode == 0, "staged, and told, over a restart"
    assert "accepted by an operator" in blockd.log.read_text()
    assert "if that is meant" not in blockd.log.read_text().partition("accepted by an operator")[2].partition("\n")[0]
    assert rcode(ask(blockd, "n9.example", client=CORPORATE)) == "NOERROR"


def test_what_cannot_be_compiled_is_staged_too(serve: Serve, upstream: Upstream) -> None:
    """With its reason; there is nothing that could be accepted."""
    blockd, listed = with_list(serve, upstream, GOOD)
    listed.write_text("<html>\n")
    said = blockd.run("reload").stderr.splitlines()[0]
    assert "l.txt" in said
    assert said in blockd.run("lists").stdout
    assert blockd.metric("blockd_generation_staged") == 1
    assert blockd.run("reload", "--accept").returncode == 1
    listed.write_text(GOOD)
    assert blockd.run("reload").returncode == 0
    assert blockd.metric("blockd_generation_staged") == 0


def test_a_public_suffix_is_left_out_of_what_is_accepted(serve: Serve, upstream: Upstream) -> None:
    """And is no gain of a dry run; the app may say that it is meant."""
    blockd, listed = with_list(serve, upstream, GOOD)
    listed.write_text(GOOD + "co.uk\n")
    done = blockd.run("reload", "--dry-run")
    assert "co.uk" not in done.stdout, done.stdout
    assert "co.uk: a public suffix; 1 such in this list; to take the list in without" in done.stderr
    assert blockd.run("reload", "--accept").returncode == 0
    assert "skipped, a public suffix: co.uk" in blockd.log.read_text()


def test_a_dry_run_sees_what_a_reload_cannot_take(serve: Serve, upstream: Upstream) -> None:
    """A key that only a restart takes in."""
    blockd, _ = with_list(serve, upstream, GOOD)
    blockd.values["cache"]["size_mb"] = 9
    blockd.write()
    done = blockd.run("reload", "--dry-run")
    assert done.returncode == 1
    assert "cache.size_mb: changed, and only a restart takes it in" in done.stderr


def test_a_dry_run_sees_what_is_no_name(serve: Serve, upstream: Upstream) -> None:
    """Expressions, and rules of response policy zones with what they do."""
    blockd = serve([upstream.address])
    expressions, zone = (blockd.directory / "apps" / name for name in ("x.regex", "z.rpz"))
    head = "@ SOA ns.invalid. host.invalid. 1 60 60 86400 60\n"
    expressions.write_text("^ads[0-9]+[.]\n^pixel[.]\n")
    zone.write_text(f"{head}one.example A 10.0.0.1\n*.two.example CNAME .\n32.1.2.0.192.rpz-ip CNAME .\n")
    blockd.write_app("odd", lists=[{"file": "x.regex", "format": "regex"}, {"file": "z.rpz"}])
    blockd.values["policies"]["corporate"]["block"].append("odd")
    assert blockd.reload().returncode == 0
    expressions.write_text("^ads[0-9]+[.]\n^beacon[.]\n")
    zone.write_text(f"{head}one.example A 10.0.0.2\n*.two.example CNAME .\n24.0.2.0.192.rpz-ip CNAME .\n")
    done = blockd.run("reload", "--dry-run")
    assert done.stdout.splitlines() == [
        "odd: 3 gained, 3 lost",
        "  + ^beacon[.]",
        "  + one.example: A 10.0.0.2",
        "  + 192.0.2.0/24 in an answer: NXDOMAIN",
        "  - ^pixel[.]",
        "  - one.example: A 10.0.0.1",
        "  - 192.0.2.1/32 in an answer: NXDOMAIN",
        "a reload would take it",
    ]


def test_a_rollback_goes_back_at_once_and_holds(serve: Serve, upstream: Upstream) -> None:
    """The generation before, over changed files and a restart, until somebody reloads; then the one before that."""
    upstream.records["n20.example"] = ["n20.example. 60 IN A 192.0.2.1"]
    blockd, listed = with_list(serve, upstream, GOOD, watch=True)
    first = blockd.ready()["generation"]
    assert blockd.metric("blockd_generation") == int(first)
    listed.write_text(GOOD + "n20.example\n")
    assert blockd.run("reload").returncode == 0
    assert f", generation {blockd.ready()['generation']}" in blockd.log.read_text()
    second = blockd.ready()["generation"]
    assert rcode(ask(blockd, "n20.example", client=CORPORATE)) == "NXDOMAIN"
    done = blockd.run("lists", "rollback")
    assert (done.returncode, done.stdout) == (0, f"generation {first} is in force, and holds until blockd reload\n")
    assert rcode(ask(blockd, "n20.example", client=CORPORATE)) == "NOERROR"
    assert blockd.metric("blockd_generation_held") == 1
    assert f"{second} was rolled back" in blockd.run("lists").stdout
    assert "held since a rollback" in blockd.run("status").stdout
    listed.write_text(GOOD + "n21.example\n")
    blockd.stop()
    blockd.start()
    assert blockd.ready()["is_held"]
    assert blockd.ready()["generation"] == first
    assert rcode(ask(blockd, "n20.example", client=CORPORATE)) == "NOERROR"
    # What was rolled back is not what the next one goes to.
    done = blockd.run("lists", "rollback")
    assert done.returncode == 0, done.stderr
    assert blockd.ready()["generation"] < first
    while (done := blockd.run("lists", "rollback")).returncode == 0:
        pass
    assert "there is no generation before this one" in done.stderr
    assert blockd.run("reload").returncode == 0
    assert not blockd.ready()["is_held"]
    assert blockd.ready()["config_in_force"]
    assert rcode(ask(blockd, "n21.example", client=CORPORATE)) == "NXDOMAIN"


def test_a_generation_that_is_damaged_is_not_gone_back_to(serve: Serve, upstream: Upstream) -> None:
    """It says so, and what is in force stays."""
    blockd, listed = with_list(serve, upstream, GOOD)
    first = blockd.ready()["generation"]
    listed.write_text(GOOD + "n20.example\n")
    assert blockd.run("reload").returncode == 0
    snapshot = blockd.directory / "state" / "generations" / first / "snapshot"
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    done = blockd.run("lists", "rollback")
    assert done.returncode == 1
    assert "cannot be read back" in done.stderr
    assert rcode(ask(blockd, "n20.example", client=CORPORATE)) == "NXDOMAIN"
    assert not blockd.ready()["is_held"]
    assert blockd.ready()["config_in_force"]
    shutil.rmtree(snapshot.parent)
    assert blockd.run("lists", "--json").returncode == 0


def test_a_refusal_may_name_its_generation(serve: Serve, upstream: Upstream) -> None:
    """In the Extended DNS Error, when the config wants it; by default a reload that changes no rule changes none."""
    blockd, _ = with_list(serve, upstream, GOOD)
    assert b"generation" not in ask(blockd, "tiktok.com", client=CORPORATE).to_wire()
    blockd.values["answers"]["ede_generation"] = True
    assert blockd.reload().returncode == 0
    generation = blockd.ready()["generation"]
    said = ask(blockd, "tiktok.com", client=CORPORATE).to_wire()
    assert f"TikTok is blocked by policy on this network (generation {generation}); ask mailto:".encode() in said
