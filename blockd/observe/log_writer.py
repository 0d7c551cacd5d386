"""Writes the log without making anybody wait: lines go into a bounded queue, and a thread of its own writes them.

A log reader that stalls, went away or never was costs lines, which are counted, and nothing else.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import select
import signal
import sys
import threading
import time
from collections import Counter, deque
from typing import Any

#: Octets of lines of each kind that may wait. Each kind has a share of its own, so that a flood of decisions drops
#: neither messages nor errors.
QUEUE_OCTETS = {"decision": 1 << 20, "message": 1 << 20, "error": 1 << 20}
#: Octets that a line costs in the queue beside its text.
LINE_OCTETS = 100
#: Octets of one write, and of an unfinished line on `sys.stderr`.
WRITE_OCTETS = 1 << 16
#: Seconds that an exit waits for lines to be written.
EXIT_SECONDS = 1.0


class LogWriter(logging.Handler):
    """A handler that never blocks: formats a record, queues the line, and leaves the writing to a thread."""

    def __init__(self, descriptor: int | None) -> None:
        """Write to a descriptor; None for one that was closed before the process started."""
        super().__init__()
        self._descriptor = descriptor
        self._lines: deque[tuple[str, str]] = deque()
        self._waiting: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_writing = False
        #: In a forked child, which has no thread: written at once.
        self._is_direct = False
        #: Kind -> lines that were not written.
        self.dropped: Counter[str] = Counter()
        #: Those of them that the log does not report yet.
        self._unreported: Counter[str] = Counter()
        os.register_at_fork(
            before=self._changed.acquire, after_in_parent=self._changed.release, after_in_child=self._forked
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  a record that cannot be formatted: the standard library reports it
            self.handleError(record)
            return
        is_decision = hasattr(record, "fields")
        self.put("decision" if is_decision else "error" if record.levelno >= logging.ERROR else "message", line)

    def put(self, kind: str, line: str) -> None:
        """Queue a line, or count it where there is no room."""
        octets = len(line) + LINE_OCTETS
        with self._changed:
            if self._descriptor is None or self._waiting[kind] + octets > QUEUE_OCTETS[kind]:
                self._drop(kind)
                return
            self._lines.append((kind, line))
            self._waiting[kind] += octets
            if self._is_direct:
                self._write_some()
                return
            if self._thread is None:
                self._start()
            self._changed.notify_all()

    def _drop(self, kind: str) -> None:
        self.dropped[kind] += 1
        self._unreported[kind] += 1

    def _start(self) -> None:
        # The thread must not receive signals: the main thread may block them for a reason.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
            self._write_some()

    def _write_some(self) -> None:
        """Write some of what waits, behind a report of what was dropped before it."""
        with self._changed:
            taken: list[tuple[str, str]] = []
            octets = 0
            while self._lines and octets < WRITE_OCTETS:
                kind, line = self._lines.popleft()
                self._waiting[kind] -= len(line) + LINE_OCTETS
                taken.append((kind, line))
                octets += len(line)
            reported, self._unreported = self._unreported, Counter()
            self._is_writing = True
        text = "".join(f"{line}\n" for _, line in taken)
        is_written = self._write(
            ((self._report(reported) if reported else "") + text).encode(errors="backslashreplace")
        )
        with self._changed:
            self._is_writing = False
            if not is_written:
                self._unreported += reported
                for kind, _ in taken:
                    self._drop(kind)
            self._changed.notify_all()

    def _report(self, dropped: Counter[str]) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(dropped.items()))
        text = f"log: {dropped.total()} lines were dropped because they could not be written: {kinds}"
        fields = {"name": "blockd", "levelno": logging.WARNING, "levelname": "WARNING", "msg": text}
        return self.format(logging.makeLogRecord(fields)) + "\n"

    def _write(self, data: bytes) -> bool:
        assert self._descriptor is not None
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                # Whoever shares the pipe made it non-blocking.
                waiting = select.poll()
                waiting.register(self._descriptor, select.POLLOUT)
                waiting.poll(1_000)
            except OSError:
                return False
        return True

    def wait_until_written(self, seconds: float = EXIT_SECONDS) -> None:
        """Wait until everything is written, for a bounded time."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._thread is not None and (self._lines or self._is_writing):
                if (left := deadline - time.monotonic()) <= 0:
                    return
                self._changed.wait(left)

    def _forked(self) -> None:
        self._changed = threading.Condition()
        self._lines.clear()
        self._waiting.clear()
        self._thread, self._is_writing, self._is_direct = None, False, True


class Stderr(io.TextIOBase):
    """`sys.stderr` for tracebacks, warnings and other people's prints: their lines go into the same queue."""

    def __init__(self, writer: LogWriter, prefix: str) -> None:
        """Put a prefix before each line: the priority, where journald reads it."""
        self._writer, self._prefix = writer, prefix
        self._line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Give the encoding of what is written."""
        return "utf-8"

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def fileno(self) -> int:
        """Give the descriptor, for those that ask what it is."""
        return 2

    def isatty(self) -> bool:
        """Say whether a person reads it."""
        return os.isatty(2)

    def write(self, text: str) -> int:
        """Queue the lines that are whole."""
        *whole, self._line = (self._line + text).split("\n")
        if len(self._line) > WRITE_OCTETS:
            whole, self._line = [*whole, self._line], ""
        for line in whole:
            self._writer.put("error", self._prefix + line)
        return len(text)


_writer: LogWriter | None = None


def the_writer(prefix: str = "") -> LogWriter:
    """Give the writer of this process. The first call takes over `sys.stderr`, and the lines of an exit."""
    global _writer
    if _writer is None:
        _writer = LogWriter(None if sys.stderr is None else 2)
        sys.stderr = Stderr(_writer, prefix)
        atexit.register(_writer.wait_until_written)
    return _writer


def dropped() -> Counter[str]:
    """Count the lines of this process that were not written, by kind."""
    return Counter() if _writer is None else _writer.dropped.copy()


def wait_until_written(seconds: float = EXIT_SECONDS) -> None:
    """Wait until everything is written, for a bounded time."""
    if _writer is not None:
        _writer.wait_until_written(seconds)


def hear_twisted() -> None:
    """Have what Twisted reports go to the log: it would write to the stderr that it found when it was imported."""
    from twisted.logger import LogLevel, eventAsText, globalLogBeginner

    lines = Stderr(the_writer(), "")

    def tell(event: dict[str, Any]) -> None:
        if event.get("log_level") is LogLevel.critical:
            print(f"unexpected: {eventAsText(event, includeTimestamp=False)}", file=lines)

    observers: list[Any] = [tell]
    globalLogBeginner.beginLoggingTo(observers, discardBuffer=True, redirectStandardIO=False)
