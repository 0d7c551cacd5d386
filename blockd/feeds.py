"""What says where devices are: read by a thread a source, so that one that hangs holds up no other and no start.

What was said of devices of ours is kept on disk, too: a source that cannot be read when blockd starts anew makes no
stranger of them either.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blockd.control.kea import KeaReader
from blockd.devices.leases import Feed, KeaSocket, Part
from blockd.devices.neighbours import Neighbours
from blockd.devices.placement import Placement, Source
from blockd.observe.metrics import wall_clock
from blockd.observe.repeated import RepeatedFailure
from blockd.policy.inputs import Inputs
from blockd.policy.views import group_views
from blockd.problems import Problem
from blockd.settings.values import Address

log = logging.getLogger("blockd")

#: Seconds after which a source that is being read is one that does not answer.
SLOW = 10.0
#: Seconds that a start waits for what devices' addresses are.
FIRST = 3.0
#: Leases that are taken in at once.
SLICE = 2_000
#: In the state directory: what was said last of devices of ours.
KEPT = "leases.json"


def lease_sources(inputs: Inputs) -> Iterator[Feed | KeaSocket]:
    """Give the lease files and sockets of a config, unread."""
    for item in inputs.settings.devices.leases:
        path = Path(os.path.abspath(inputs.relative(item.file or item.socket or "")))
        if item.socket is None:
            yield Feed(path, item.format)
        else:
            source = KeaSocket(path)
            source.read = KeaReader(path, item.every).read
            yield source


def unread_leases(inputs: Inputs) -> Iterator[Problem]:
    """Read each lease file and socket of a config once; give what cannot be read, and records that cannot be used."""
    for at, source in enumerate(lease_sources(inputs)):
        source.take(source.fetch(), wall_clock())
        if source.problem is not None:
            yield inputs.document.problem(("devices", "leases", at), source.problem)
        yield from source.skipped.samples


class Feeds:
    """All sources of the config in force, and what follows from them. `lock` is held to read `placement`."""

    def __init__(self, state: Path, changed: Callable[[set[Address]], None]) -> None:
        """`changed` is called by any thread, with the addresses that belong elsewhere than before."""
        self.placement: Placement | None = None
        self.lock = threading.RLock()
        self._file, self._changed = state / KEPT, changed
        #: By source: its thread, and when that began.
        self._readers: dict[Source, tuple[threading.Thread, float]] = {}
        #: By source: reasons for skipped records that were logged. Each is logged once: a client that comes back each
        #: minute with a record that cannot be used must not fill the log.
        self._told: dict[Source, set[str]] = {}
        self._keeping = threading.Lock()
        #: By file that is read or written again and again.
        self._failures: defaultdict[str, RepeatedFailure] = defaultdict(RepeatedFailure)
        #: Groups whose devices may be kept by address.
        self._logged: set[str] = set()

    def open(self, inputs: Inputs) -> None:
        """Have the sources that a config asks for; what was read of them stays."""
        wanted = inputs.settings.devices
        with self.lock:
            before: dict[tuple[Path, str], Any] = {}
            if self.placement is not None:
                before = {(feed.file, feed.format): feed for feed in self.placement.feeds}
            feeds: list[Any] = []
            for new in lease_sources(inputs):
                known = before.pop((new.file, new.format), None)
                if isinstance(known, KeaSocket) and isinstance(new, KeaSocket):
                    # It may be asked at another pace from now on.
                    known.read = new.read
                feeds.append(known if type(known) is type(new) else new)
            table = before.pop((Neighbours.file, Neighbours.format), None)
            if wanted.neighbours:
                feeds.append(table or Neighbours())
            elif table is not None:
                table.close()
            now = self.placement
            if not feeds:
                self.placement = None
            elif now is None or (now.feeds, now.stands, now.outcomes) != (feeds, wanted.stands, wanted.states):
                self.placement = Placement(feeds, wanted.stands, wanted.states)
            if self.placement is not None:
                self.placement.learn(inputs.devices, wall_clock())
            self._logged = {view.group for view in group_views(inputs) if view.is_logged}

    def start(self) -> None:
        """Read all of it, for as long as a start may wait; what is not there is as it was when it was kept."""
        if self.placement is None:
            return
        self.look()
        deadline = time.monotonic() + FIRST
        for reader, _ in list(self._readers.values()):
            reader.join(max(0.0, deadline - time.monotonic()))
        with self.lock:
            for feed, (reader, _) in self._readers.items():
                if reader.is_alive() and not feed.confirmed:
                    self._take(feed, Part(problem=f"{feed.file}: does not answer"))
            try:
                kept = json.loads(self._file.read_text())
            except FileNotFoundError:
                return
            except (OSError, ValueError, RecursionError) as error:
                log.error("leases: %s cannot be read: %s", self._file, error)
                return
            skipped = self.placement.restore(kept.get("sources") if isinstance(kept, dict) else kept, wall_clock())
            if skipped.total:
                log.error("leases: %s: %d records skipped; the others count", self._file, skipped.total)

    def look(self) -> None:
        """Have each source read that is not being read."""
        with self.lock:
            feeds = list(self.placement.feeds) if self.placement is not None else []
        now = time.monotonic()
        for feed in feeds:
            reader, began = self._readers.get(feed, (None, 0.0))
            if reader is None or not reader.is_alive():
                # Of the daemon kind: one that hangs must not hold up the end.
                reader = threading.Thread(target=self._read, args=(feed,), name="leases", daemon=True)
                self._readers[feed] = (reader, now)
                reader.start()
            elif now - began > SLOW:
                with self.lock:
                    self._tell(self._take(feed, Part(problem=f"{feed.file}: does not answer")))
        for gone in self._readers.keys() - set(feeds):
            del self._readers[gone]
            self._told.pop(gone, None)

    def _read(self, feed: Source) -> None:
        try:
            part = feed.fetch()
        except Exception as error:  # noqa: BLE001  whatever it is: said, and tried again
            part = Part(problem=f"{feed.file}: {type(error).__name__}: {error}")
        # In slices: who asks where somebody is does not wait for a hundred thousand others.
        for some in part.slices(SLICE):
            with self.lock:
                self._tell(self._take(feed, some))
            time.sleep(0)

    def _take(self, feed: Source, part: Part) -> set[Address]:
        if self.placement is None or feed not in self.placement.feeds:
            return set()
        changed = self.placement.take(feed, part, wall_clock())
        told = self._told.setdefault(feed, set())
        for reason in feed.skipped.counts.keys() - told:
            file = Problem(str(feed.file), 0, "", reason)
            first = next((one for one in feed.skipped.samples if one.text == reason), file)
            log.warning("leases: %s; the record is skipped, the others count", first)
            told.add(reason)
        if feed.problem is not None:
            text = f"leases: {feed.problem}; what it said stands for {self.placement.stands:g} s"
            self._failures[str(feed.file)].failed(text)
        else:
            self._failures[str(feed.file)].worked(f"leases: {feed.file} is read again")
        return changed

    def standing(self) -> list[dict[str, Any]]:
        """Say how each source does: the problem that keeps it from being read, and records that cannot be used."""
        with self.lock:
            return [
                {"file": str(feed.file), "problem": feed.problem, **feed.skipped.as_json()}
                for feed in (self.placement.feeds if self.placement is not None else ())
            ]

    def _tell(self, changed: set[Address]) -> None:
        if changed:
            self._changed(changed)

    def keep(self) -> None:
        """Write down what is known of devices of ours. It may wait for a disk."""
        with self._keeping:
            with self.lock:
                if self.placement is None:
                    return
                kept = self.placement.kept(self._logged)
            new = self._file.with_suffix(".new")
            try:
                descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(json.dumps({"sources": kept}))
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(self._file)
            except OSError as error:
                self._failures[str(self._file)].failed(f"leases: {self._file} cannot be written: {error.strerror}")
            else:
                self._failures[str(self._file)].worked(f"leases: {self._file} is written again")
