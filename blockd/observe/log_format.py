"""How the log is written: lines for people or JSON, with priorities where journald reads them."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import TextIO

from blockd.observe.log_writer import the_writer
from blockd.problems import escaped

#: Levels as syslog numbers them (sd-daemon(3)).
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class LineFormatter(logging.Formatter):
    """One line a record, whatever is in it: a line break in a message would forge another."""

    def __init__(self, as_json: bool, with_priority: bool) -> None:
        """``with_priority``: journald reads the lines, and keeps time and level itself."""
        super().__init__("%(levelname)s %(message)s")
        self.as_json = as_json
        self._with_priority = with_priority

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        if self.as_json:
            fields = getattr(record, "fields", None) or {"message": record.getMessage()}
            kind = "decision" if hasattr(record, "fields") else "message"
            line = json.dumps({"time": round(record.created, 3), "level": record.levelname, "kind": kind, **fields})
        elif self._with_priority:
            line = record.getMessage()
        else:
            line = super().format(record)
        if record.exc_info and self.as_json is False:
            line = f"{line}: {record.exc_info[1]!r}"
        line = escaped(line)
        return f"<{PRIORITIES.get(record.levelno, 6)}>{line}" if self._with_priority else line


def is_journal(stream: TextIO | None, environment: Mapping[str, str]) -> bool:
    """Say whether a stream leads to journald, which names device and inode of its own (systemd.exec(5))."""
    if stream is None:
        return False
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def set_up(as_json: bool = False) -> None:
    """Write the log of this process to stderr, without waiting for whoever reads it."""
    with_priority = is_journal(sys.__stderr__, os.environ)
    writer = the_writer(f"<{PRIORITIES[logging.ERROR]}>" if with_priority else "")
    writer.setFormatter(LineFormatter(as_json, with_priority))
    root = logging.getLogger()
    root.handlers[:] = [writer]
    root.setLevel(logging.INFO)
