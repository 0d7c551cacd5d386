"""The end of the daemon: it comes within a bounded time of the signal, whatever hangs.

Signals are read by a thread of its own. A reactor that waits for a disk, a database that does not answer or a thread in
a library's code neither delays that thread nor keeps the process.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType

from blockd.observe import log_writer

log = logging.getLogger("blockd")

#: Seconds from SIGTERM until the process ends, however far it is.
STOP_SECONDS = 4.5
#: Seconds of these that what is kept over a restart may take to write. Queries are answered meanwhile.
KEEP_SECONDS = 1.5
#: Seconds that the last lines of the log may take.
LOG_SECONDS = 0.3


def end_process(code: int = 0) -> None:
    """End this process without waiting for any thread: one may be in a library's code, and never come back."""
    log_writer.wait_until_written(LOG_SECONDS)
    os._exit(code)


class Work:
    """What has to be written before the end: each part in a thread of its own, so that none waits for another."""

    def __init__(self) -> None:
        """Start with nothing to do."""
        self._threads: dict[str, threading.Thread] = {}
        self._deadline = 0.0

    def begin(self, parts: Mapping[str, Callable[[], object]]) -> None:
        """Begin all parts, by what they write."""
        self._deadline = time.monotonic() + KEEP_SECONDS

        def do(name: str, part: Callable[[], object]) -> None:
            try:
                part()
            except Exception:
                log.exception("%s cannot be kept", name)

        for name, part in parts.items():
            thread = threading.Thread(target=do, args=(name, part), name="stopping", daemon=True)
            self._threads[name] = thread
            thread.start()

    def unfinished(self) -> list[str]:
        """Name the parts that are not written yet."""
        return [name for name, thread in self._threads.items() if thread.is_alive()]

    def is_over(self) -> bool:
        """Say whether all of it is written, or has had its time."""
        return not self.unfinished() or time.monotonic() >= self._deadline


class Signals:
    """Reads signals in a thread of its own; the first that ends the daemon starts the clock."""

    def __init__(self, hangup: Callable[[], object], ending: Callable[[], object], unfinished: Callable[[], list[str]]):
        """`hangup` and `ending` are called by the thread, `unfinished` names what is not written when time is over."""
        self._hangup, self._ending, self._unfinished = hangup, ending, unfinished

    def start(self) -> None:
        """Take signals over, on the main thread. Until then each does what it does to any process."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _nothing)
        threading.Thread(target=self._read, args=(reading,), name="signals", daemon=True).start()

    def _read(self, reading: int) -> None:
        is_ending = False
        while True:
            for number in os.read(reading, 64):
                # A loop that is closed ends by itself.
                with suppress(RuntimeError):
                    if number == signal.SIGHUP:
                        self._hangup()
                    elif number in (signal.SIGINT, signal.SIGTERM) and not is_ending:
                        is_ending = True
                        threading.Thread(target=self._end_in_time, name="deadline", daemon=True).start()
                        self._ending()

    def _end_in_time(self) -> None:
        time.sleep(STOP_SECONDS - LOG_SECONDS)
        what = ", ".join(self._unfinished()) or "nothing that is kept"
        log.error("the stop is not complete after %g s and ends here; not written: %s", STOP_SECONDS, what)
        end_process()


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Let the thread that reads signals do it."""
