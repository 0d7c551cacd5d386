"""What is wrong with an input, so that a person can mend it: file, line, key, what was expected."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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


class StartError(Exception):
    """The daemon cannot start; the message says what to do."""


class InputError(Exception):
    """Inputs that cannot be used, with every problem that was found in them."""

    def __init__(self, problems: list[Problem]) -> None:
        """Keep the problems; the message is one a line."""
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
