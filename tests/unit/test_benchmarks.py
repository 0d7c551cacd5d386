"""The benchmarks never print a figure for what went wrong, and README quotes what they wrote."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from pathlib import Path

import dns.message
import dns.rrset
import pytest

from benchmarks import compare, full, growth, lag, load, report
from benchmarks.compare import Interval
from benchmarks.measure import check_answers
from benchmarks.servers import BenchmarkError, Dnsdist, Server, build_load
from tests.support.servers import Nsd

ROOT = Path(__file__).parents[2]


class Fixed(Server):
    """A server in this process that answers every query with one rcode, or not at all, or to another question."""

    name = "fixed"

    def __init__(
        self, directory: Path, rcode: int = 0, is_silent: bool = False, asked: str = "", is_empty: bool = False
    ) -> None:
        super().__init__(directory, 0)
        self.rcode, self.is_silent, self.asked, self.is_empty = rcode, is_silent, asked, is_empty
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", self.port))
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            packet, peer = self.socket.recvfrom(1500)
            if not packet:
                return
            answer = dns.message.make_response(dns.message.from_wire(packet))
            answer.set_rcode(self.rcode)  # type: ignore[arg-type]
            if not self.is_empty:
                answer.answer.append(dns.rrset.from_text(answer.question[0].name, 60, "IN", "A", "192.0.2.9"))
            if self.asked:
                answer.question = dns.message.make_query(self.asked, "A").question
            if not self.is_silent:
                self.socket.sendto(answer.to_wire(), peer)

    def stop(self) -> None:
        """End the thread."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"", ("127.0.0.1", self.port))
        self.thread.join()
        self.socket.close()

    def cpu_seconds(self) -> float:
        """Cost nothing."""
        return 0.0


@pytest.fixture(scope="module")
def generator() -> None:
    """Build the load generator."""
    build_load()


QUESTIONS = ["a.example A 0", "b.example A 0"]


@pytest.mark.usefixtures("generator")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"rcode": 5}, "wrong answers, such as ['another rcode"),
        ({"rcode": 2}, "0 answered, 0 lost, 2 failed"),
        ({"is_empty": True}, "wrong answers, such as ['another rcode"),
        ({"asked": "c.example"}, "wrong answers, such as ['another question"),
        ({"is_silent": True}, "0 answered, 2 lost"),
    ],
    ids=["rcode", "servfail", "empty", "question", "silence"],
)
def test_a_wrong_or_lost_answer_gives_no_figure(tmp_path: Path, words: dict[str, object], said: str) -> None:
    """The generator checks ID, question and rcode of each."""
    server = Fixed(tmp_path, **words)  # type: ignore[arg-type]
    try:
        with pytest.raises(BenchmarkError, match=re.escape(said)):
            load.run(server, QUESTIONS, once=True, sources=1, sockets=1, in_flight=2)
    finally:
        server.stop()


@pytest.mark.usefixtures("generator")
def test_right_answers_are_counted(tmp_path: Path) -> None:
    """In the closed loop, and in the open one at its rate."""
    server = Fixed(tmp_path)
    try:
        assert load.run(server, QUESTIONS, once=True, sources=1, sockets=1, in_flight=2).answered == 2
        paced = load.run(server, QUESTIONS, seconds=1, rate=200, sources=3, sockets=2)
        assert 195 <= paced.answered <= 200
        assert 0 < paced.latency["p50"] <= paced.latency["p99"] <= paced.latency["max"]
    finally:
        server.stop()


@pytest.mark.usefixtures("generator")
def test_more_sockets_than_questions_under_way_all_get_their_turn(tmp_path: Path) -> None:
    """1,000 sockets with 4 questions under way: each question is asked once and answered."""
    server = Fixed(tmp_path)
    questions = [f"n{at}.example A 0" for at in range(300)]
    try:
        got = load.run(server, questions, once=True, sources=1, sockets=load.MANY_SOCKETS, in_flight=4)
    finally:
        server.stop()
    assert (got.sent, got.answered) == (300, 300)


def printed(**more: object) -> str:
    """Give what the generator prints for a good run of two seconds."""
    counts = {"sent": 1_000, "answered": 1_000, "lost": 0, "late": 0, "wrong": 0, "failed": 0, "not_sent": 0}
    figures = {"not_asked": 0, "seconds": 2.0, "rate": 500.0, "latency_us": {}, "shown": []}
    return json.dumps({**counts, **figures, **more})


def test_a_load_that_was_none_gives_no_figure() -> None:
    """A generator that is too slow is not the server's fault; more answers than queries are the benchmark's."""
    good = load.judge("x", printed(), 1.9, rate=500)
    assert (good.offered, good.cores) == (500, 0.95)
    good.check_saturated(1)
    assert good.part_of(480) == pytest.approx(1.04, abs=0.01)
    for wrong, kind, said in (
        (
            lambda: load.judge("x", printed(sent=900, answered=900), 1, rate=500),
            load.CannotLoadError,
            "450 queries a second of 500",
        ),
        (lambda: load.judge("x", printed(), 1.7).check_saturated(1), load.CannotLoadError, "used 0.85 of 1 cores"),
        (
            lambda: load.judge("x", printed(), 1, rate=600, lossy=True),
            load.CannotLoadError,
            "500 queries a second of 600",
        ),
        (lambda: load.judge("x", printed(answered=1_001), 1), BenchmarkError, "impossible: x answered 1001 of 1000"),
        (lambda: good.part_of(250), BenchmarkError, "impossible: 500 answers a second, where 250 were measured"),
        (
            lambda: load.judge("x", printed(sent=900, answered=900, not_asked=100), 1, rate=500),
            load.CannotLoadError,
            "100 queries waited for a free ID while x used 0.50 of a core",
        ),
        (
            lambda: load.judge("x", printed(sent=900, answered=900, not_asked=100), 1.9, rate=500),
            load.LostError,
            "100 could not",
        ),
    ):
        with pytest.raises(kind, match=said):
            wrong()
    assert load.judge("x", printed(sent=900, answered=900, not_asked=100), 1, rate=500, lossy=True).answered == 900


def test_the_page_says_where_there_is_no_figure() -> None:
    """A step that could not load, and rates that are no peaks; both numbers of client sockets."""
    figures = json.loads((report.RESULTS / "full.json").read_text())
    half = figures.pop("half")
    figures["not_loaded"] = {"half": "the generator cannot load this server: 1 of 2"}
    figures["half_many"] = half
    figures["peak"]["hits"]["blockd"] = [{**row, "cores": 0.5} for row in figures["peak"]["hits"]["blockd"]]
    text = report.page(figures)
    assert "No figure for half: the generator cannot load this server: 1 of 2" in text
    assert "hits a second, 1,000 client sockets" in text
    assert "p50 at half load, 1,000 client sockets, over" in text
    assert not [goal for goal in report.goals(figures) if "half load, over" in goal.what]
    assert re.search(r"\| blockd \| at least [0-9,]+ \|", text)


@pytest.mark.parametrize(
    ("ratios", "low", "high", "said", "code"),
    [
        ([1.0] * 10, 1.0, 1.0, "pass", 0),
        # Of ten, the second smallest and the second largest: 2 * 11 of 1,024 throws of ten coins are outside.
        ([0.5, 0.99, 1, 1, 1, 1, 1, 1.01, 1.02, 9], 0.99, 1.02, "pass", 0),
        ([1.04, 1.05, 1.06, 1.05, 1.04, 1.2], 1.04, 1.2, "slower", compare.SLOWER),
        ([0.9, 1, 1.1, 1, 1, 1.2], 0.9, 1.2, "too noisy: 0.900 to 1.200", compare.NOISY),
    ],
)
def test_a_ratio_has_an_interval_that_decides_or_not(
    ratios: list[float], low: float, high: float, said: str, code: int
) -> None:
    """By order statistics; the worst of the kinds is what counts."""
    interval = Interval.of(ratios)
    assert (interval.low, interval.high) == (low, high)
    assert said in interval.verdict()
    text, found = compare.table({"hits": ratios, "blocks": [1.0] * 6})
    assert (found, said in text) == (code, True)
    slower = {"blocks": [1.5] * 6}
    assert compare.table({"hits": ratios, **slower})[1] == compare.SLOWER
    assert compare.table({**slower, "hits": ratios})[1] == compare.SLOWER


def test_few_rounds_have_no_interval() -> None:
    """Five throws of a coin show one side with more than a twentieth of chance."""
    with pytest.raises(ValueError, match="5 rounds are too few"):
        Interval.of([1.0] * 5)


@pytest.mark.usefixtures("generator")
def test_two_builds_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This tree with itself, very shortly; a tree without a build is an error."""
    words = ["--rounds", "6", "--seconds", "0.1", "--kind", "hits", "--before", str(ROOT)]
    assert compare.main([*words, "--after", str(tmp_path)]) == compare.SLOWER
    assert f"{tmp_path} has no built blockd" in capsys.readouterr().err
    assert compare.main([*words, "--after", str(ROOT)]) in (0, compare.SLOWER, compare.NOISY)
    out = capsys.readouterr().out
    assert re.search(r"\| hits \| [0-9.]+ \| [0-9.]+ to [0-9.]+ \| 6 \|", out)
    assert "this is a trial, not a figure" in out


def test_a_server_with_another_policy_is_no_rival(tmp_path: Path) -> None:
    """Answers are compared before anything is measured."""
    server = Fixed(tmp_path)
    try:
        with pytest.raises(BenchmarkError, match=r"fixed answers c1\.example"):
            check_answers(server)
    finally:
        server.stop()


def test_a_missing_rival_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what installs it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match="dnsdist is missing: make bench-packages installs it"):
        Dnsdist(tmp_path, 53)


def test_every_rival_cites_its_vendor() -> None:
    """The first line of its configuration is the page that it was tuned by."""
    for file in (ROOT / "benchmarks" / "rivals").glob("*.conf"):
        assert "https://" in file.read_text().splitlines()[0], file


def test_pages_are_what_the_figures_say() -> None:
    """The page is made of the figures beside it; README and docs quote it."""
    figures = json.loads((report.RESULTS / "full.json").read_text())
    assert (report.RESULTS / "full.md").read_text() == report.page(figures)
    assert "-dirty" not in figures["about"]["commit"], "measured on what no commit has"
    assert growth.PAGE.read_text() == growth.page(figures), "python -m benchmarks.growth writes it"
    readme = growth.README.read_text()
    assert readme == growth.readme(figures, readme), "python -m benchmarks.growth writes its table"
    assert all(row in readme for row in report.summary(figures))


def test_a_part_is_measured_anew_only_of_the_same_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of two builds do not come onto one page."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.chdir(ROOT)
    (tmp_path / "full.json").write_text(json.dumps({"about": {"commit": "0" * 40}}))
    with pytest.raises(BenchmarkError, match="blockd is another now: measure everything"):
        full.again(Nsd(tmp_path, {}), tmp_path, ["half"])


def test_losses_of_rivals_stand_beside_their_latencies() -> None:
    """A rival that loses queries at half load has its figure, and how many it lost in all rounds."""
    row = {"p50": 90.0, "p99": 300.0, "p99.9": 500.0}
    rows = report.latencies({"Recursor": [{**row, "lost": 3}, {**row, "lost": 4}], "blockd": [row]}, 100.0, "")
    assert "| Recursor | 90 | 300 | 500 | 7 |" in rows
    assert "| blockd | 90 | 300 | 500 | 0 |" in rows


def test_nothing_is_left_running() -> None:
    """No server of a benchmark outlives it."""
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in shown.splitlines() if "release/bare" in line]


def test_lag_is_interpolated_between_bounds() -> None:
    """Half of the ticks below 10 ms, the rest below 20: the quantiles lie where Prometheus has them."""
    before = {0.01: 10.0, 0.02: 10.0, 1.0: 10.0, float("inf"): 10.0}
    after = {0.01: 60.0, 0.02: 110.0, 1.0: 110.0, float("inf"): 110.0}
    assert lag.quantile(before, after, 0.5) == pytest.approx(10)
    assert lag.quantile(before, after, 0.75) == pytest.approx(15)
    assert lag.quantile(before, before, 0.99) == 0
    assert lag.quantile(before, {**after, float("inf"): 210.0}, 0.9) == pytest.approx(1000)
