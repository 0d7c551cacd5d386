"""What is wrong with an input, so that a person can mend it: file, line, key, what was expected."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: Skipped records of one source that are kept with place and reason; the others are only counted.
MAX_SAMPLES = 20
#: What would begin another line, or steer the terminal on which it is read: C0 but for tabs, C1, line separators, the
#: marks that turn the direction of text, and surrogates, which no encoding has.
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """Make one line that is safe to print, whatever a peer or a file has in it."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@dataclass(frozen=True)
class Problem:
    """One mistake in one place; line 0 is the file as a whole."""

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        """Give the form that compilers use, so that editors can jump there."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"

    def as_json(self) -> dict[str, Any]:
        """Give the fields by name."""
        return asdict(self)


@dataclass
class Skipped:
    """Records of one source that cannot be used: all counted by reason, the first few kept with their place.

    A reason is one of a fixed set of texts and never repeats what the record contains, so that counts stay bounded and
    nothing personal reaches a log or a metric.
    """

    counts: Counter[str] = field(default_factory=Counter)
    samples: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Count a record by the text of its problem; keep the problem while there is room."""
        self.counts[problem.text] += 1
        if len(self.samples) < MAX_SAMPLES:
            self.samples.append(problem)

    def update(self, other: Skipped) -> None:
        """Add what another has."""
        self.counts.update(other.counts)
        self.samples += other.samples[: MAX_SAMPLES - len(self.samples)]

    @property
    def total(self) -> int:
        """Give the number of skipped records."""
        return self.counts.total()

    def as_json(self) -> dict[str, Any]:
        """Give counts by reason, and the samples."""
        return {"skipped": dict(self.counts), "samples": [problem.as_json() for problem in self.samples]}


def os_text(error: OSError) -> str:
    """Say what the system refused, and of which file: without the number that `str` begins with."""
    text = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {text}" if error.filename else text


def skipped_lines(file: str, report: dict[str, Any], most: int = MAX_SAMPLES) -> list[str]:
    """Give what `Skipped.as_json` says as lines for people: how many are skipped and why, and where the first are."""
    counts: dict[str, int] = report["skipped"]
    if not counts:
        return []
    reasons = "; ".join(f"{reason} ({count})" for reason, count in sorted(counts.items(), key=lambda one: -one[1]))
    samples = [Problem(**sample) for sample in report["samples"][:most]]
    shown = [str(replace(sample, text=f"skipped: {sample.text}")) for sample in samples]
    return [f"{file}: {sum(counts.values())} skipped: {reasons}", *shown]


class StartError(Exception):
    """The daemon cannot start; the message says what to do."""


class InputError(Exception):
    """Inputs that cannot be used, with every problem that was found in them."""

    def __init__(self, problems: list[Problem]) -> None:
        """Keep the problems; the message is one a line."""
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
