"""Keeps the process that serves response policy zones alive, and knows what it said."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from blockd.guard import Guard
from blockd.observe.repeated import RepeatedFailure
from blockd.priority import PYTHON, give_way

log = logging.getLogger("blockd")

#: Seconds until a process that ended is started again.
PAUSE = 5.0
#: Seconds without a line from the process, which writes one every few seconds, until it is killed: a process that is
#: stopped (SIGSTOP) or hangs ends no other way.
SILENCE_SECONDS = 30.0
#: Seconds until it has to serve a generation, or say why not; a zone of a million records takes less than a minute.
TAKE_SECONDS = 300.0
#: Seconds that a process may take to end after its last word.
END_SECONDS = 5.0


class Transfers:
    """One process, started when there is an address to serve on, and anew when it ends."""

    def __init__(
        self, listen: Sequence[tuple[object, int]], state: Path, notified: Callable[[str], None], guard: Guard
    ) -> None:
        """`state` is where the process keeps what must outlive it.

        `notified` is called, from another thread, with the name of a zone whose primary has news. `guard` counts lines
        of the process that cannot be used.
        """
        self._listen = [str(part) for endpoint in listen for part in endpoint]
        self._state, self._notified, self._guard = state, notified, guard
        self._command: dict[str, Any] | None = None
        self._process: subprocess.Popen[str] | None = None
        #: Guards what threads share, and is never held while anything is written or read.
        self._changed = threading.Condition()
        self._is_ending = False
        #: When the process said anything last, and since when a generation waits to be served.
        self._heard = self._asked = 0.0
        self._failure = RepeatedFailure()
        #: Zone -> what was last said of it.
        self.zones: dict[str, dict[str, Any]] = {}
        #: What processes that ended counted: transfers by group and kind, and refusals by reason.
        self._before: Counter[tuple[str, str]] = Counter()
        self._refused_before: Counter[str] = Counter()
        #: The same of the process that runs.
        self._refused: Counter[str] = Counter()
        #: Why the zones are not those of the policy in force, if they are not.
        self.problem: str | None = None

    def start(self) -> None:
        """Start it, if there is an address."""
        if self._listen:
            threading.Thread(target=self._keep_running, daemon=True).start()

    def publish(self, config: Path, generation: Path, inbound: list[tuple[str, str, str | None]]) -> None:
        """Have the zones of a generation served; `inbound` are zone, primary's address and key of those we take."""
        with self._changed:
            self._command = {"config": str(config), "generation": str(generation), "inbound": inbound}
            self._changed.notify_all()

    def stop(self) -> None:
        """End it."""
        with self._changed:
            self._is_ending = True
            if self._process is not None:
                self._process.kill()
            self._changed.notify_all()

    def look(self) -> None:
        """End a process that is stopped or hangs; it is started again."""
        now = time.monotonic()
        with self._changed:
            is_silent = now - self._heard > SILENCE_SECONDS
            is_late = bool(self._asked) and now - self._asked > TAKE_SECONDS
            if self._process is not None and (is_silent or is_late):
                self._process.kill()

    def transfers(self) -> Counter[tuple[str, str]]:
        """Count transfers by group and kind."""
        counts = self._before.copy()
        for zone in list(self.zones.values()):
            for kind, count in zone.get("transfers", {}).items():
                counts[zone["group"], kind] += count
        return counts

    def refused(self) -> Counter[str]:
        """Count by reason what was refused: connections, transfers, messages."""
        return self._refused_before + self._refused

    def _keep_running(self) -> None:
        while not self._is_ending:
            try:
                ended = self._run_once()
            except (OSError, ValueError) as error:
                self._end_process()
                ended = str(error)
            if self._is_ending:
                return
            self.problem = self.problem or f"the process that serves them ended: {ended}"
            self._failure.failed(f"zone transfers: the process ended ({ended}), and is started again in {PAUSE:g} s")
            time.sleep(PAUSE)

    def _run_once(self) -> str:
        # -P: a file in the working directory must not pass for a module of ours.
        command = [sys.executable, "-P", "-m", "blockd.transferring", str(os.getpid()), str(self._state)]
        with self._changed:
            if self._is_ending:
                return "the daemon ends"
            self._process = process = subprocess.Popen(
                [*command, *self._listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self._heard, self._asked = time.monotonic(), 0.0
        # Secondaries wait for it, as clients do for the reactor.
        give_way(process.pid, PYTHON)
        threading.Thread(target=self._send_to, args=(process,), daemon=True).start()
        assert process.stdout is not None
        for line in process.stdout:
            self._heard = time.monotonic()
            # A line that cannot be used, such as a warning of a library, must not end a process that serves zones.
            self._guard.run("zone_transfers", self._said, line)
        self._end_process()
        return f"exit code {process.returncode}"

    def _send_to(self, process: subprocess.Popen[str]) -> None:
        """Send a process what is to be served, as long as it runs: one that does not read keeps only this thread."""
        sent: dict[str, Any] | None = None
        assert process.stdin is not None
        while True:
            with self._changed:
                while self._command is sent and self._process is process and not self._is_ending:
                    self._changed.wait()
                if self._process is not process or self._is_ending:
                    return
                sent = self._command
                self._asked = time.monotonic()
            try:
                process.stdin.write(json.dumps(sent) + "\n")
                process.stdin.flush()
            except (OSError, ValueError):
                return

    def _end_process(self) -> None:
        """See the process end, whatever state it is in; what it counted stays."""
        self._before = self.transfers()
        self.zones = {zone: {**known, "transfers": {}} for zone, known in self.zones.items()}
        self._refused_before, self._refused = self.refused(), Counter()
        with self._changed:
            process, self._process = self._process, None
            self._changed.notify_all()
        if process is None:
            return
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            # What was not sent to it is lost with it.
            with suppress(OSError, ValueError):
                assert pipe is not None
                pipe.close()

    def _said(self, line: str) -> None:
        said: dict[str, Any] = json.loads(line)
        if "lives" in said:
            self._refused = Counter(said["turned_away"])
        elif "notify" in said:
            self._notified(said["notify"])
        elif "error" in said:
            self._asked = 0.0
            self.problem = said["error"]
            self._failure.failed(f"zone transfers: {said['error']}")
        elif "unconfirmed" in said:
            text = "zone %s: %s does not confirm a NOTIFY (%s); until it looks by itself it has the older zone"
            log.warning(text, said["zone"], said["unconfirmed"], said["why"])
        elif "refused" in said:
            zone = f"zone {said['zone']}: " if said["zone"] else ""
            log.warning("%s%s was refused: %s", zone, said["refused"], said["why"])
        elif "taken" in said:
            self._asked = 0.0
            self.problem = None
            self._failure.worked("zone transfers: zones are served again")
            self.zones = {zone: known for zone, known in self.zones.items() if zone in said["taken"]}
        elif "zone" in said:
            before = self.zones.get(said["zone"], {})
            self.zones = {**self.zones, said["zone"]: {**before, **said}}
            if "serial" in said and said["serial"] != before.get("serial"):
                log.info("zone %s of %s: serial %d, %d records", *map(said.get, ("zone", "group", "serial", "records")))
