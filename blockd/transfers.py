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
from blockd.priority import PYTHON, give_way

log = logging.getLogger("blockd")

#: Seconds until a process that ended is started again.
PAUSE = 5.0


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
        self._lock = threading.Lock()
        self._is_ending = False
        #: Zone -> what was last said of it.
        self.zones: dict[str, dict[str, Any]] = {}
        #: Why the zones are not those of the policy in force, if they are not.
        self.problem: str | None = None

    def start(self) -> None:
        """Start it, if there is an address."""
        if self._listen:
            threading.Thread(target=self._keep_running, daemon=True).start()

    def publish(self, config: Path, generation: Path, inbound: list[tuple[str, str, str | None]]) -> None:
        """Have the zones of a generation served; `inbound` are zone, primary's address and key of those we take."""
        self._command = {"config": str(config), "generation": str(generation), "inbound": inbound}
        self._send()

    def stop(self) -> None:
        """End it."""
        with self._lock:
            self._is_ending = True
            if self._process is not None:
                self._process.kill()

    def transfers(self) -> Counter[tuple[str, str]]:
        """Count transfers by group and kind."""
        counts: Counter[tuple[str, str]] = Counter()
        for zone in list(self.zones.values()):
            for kind, count in zone.get("transfers", {}).items():
                counts[zone["group"], kind] += count
        return counts

    def _send(self) -> None:
        with self._lock:
            process = self._process
            if process is not None and process.stdin is not None and self._command is not None:
                with suppress(OSError):
                    process.stdin.write(json.dumps(self._command) + "\n")
                    process.stdin.flush()

    def _keep_running(self) -> None:
        while not self._is_ending:
            try:
                ended = self._run_once()
            except (OSError, ValueError) as error:
                self.stop_process()
                ended = str(error)
            if self._is_ending:
                return
            self.problem = self.problem or f"the process that serves them ended: {ended}"
            log.error("zone transfers: the process ended (%s), and is started again in %g s", ended, PAUSE)
            time.sleep(PAUSE)

    def _run_once(self) -> str:
        # -P: a file in the working directory must not pass for a module of ours.
        command = [sys.executable, "-P", "-m", "blockd.transferring", str(os.getpid()), str(self._state)]
        with self._lock:
            if self._is_ending:
                return "the daemon ends"
            self._process = process = subprocess.Popen(
                [*command, *self._listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        # Secondaries wait for it, as clients do for the reactor.
        give_way(process.pid, PYTHON)
        self._send()
        assert process.stdout is not None
        for line in process.stdout:
            # A line that cannot be used, such as a warning of a library, must not end a process that serves zones.
            self._guard.run("zone_transfers", self._said, line)
        return f"exit code {process.wait()}"

    def stop_process(self) -> None:
        """End the process, whatever state it is in."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _said(self, line: str) -> None:
        said: dict[str, Any] = json.loads(line)
        if "notify" in said:
            self._notified(said["notify"])
        elif "error" in said:
            self.problem = said["error"]
            log.error("zone transfers: %s", said["error"])
        elif "unconfirmed" in said:
            text = "zone %s: %s does not confirm a NOTIFY (%s); until it looks by itself it has the older zone"
            log.warning(text, said["zone"], said["unconfirmed"], said["why"])
        elif "refused" in said:
            zone = f"zone {said['zone']}: " if said["zone"] else ""
            log.warning("%s%s was refused: %s", zone, said["refused"], said["why"])
        elif "taken" in said:
            self.problem = None
            self.zones = {zone: known for zone, known in self.zones.items() if zone in said["taken"]}
        elif "zone" in said:
            before = self.zones.get(said["zone"], {})
            self.zones = {**self.zones, said["zone"]: {**before, **said}}
            if "serial" in said and said["serial"] != before.get("serial"):
                log.info("zone %s of %s: serial %d, %d records", *map(said.get, ("zone", "group", "serial", "records")))
