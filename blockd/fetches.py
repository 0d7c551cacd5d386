"""Lists from elsewhere: each fetched on its own schedule, in a process of its own, and none waits for another."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from blockd.lists.remote import (
    ENDINGS,
    RETRY,
    State,
    Task,
    accept,
    read_state,
    refuse,
    restore,
    sha256,
    state_of,
    take_in,
    write_state,
)
from blockd.observe.repeated import RepeatedFailure
from blockd.priority import COMPILE, give_way

log = logging.getLogger("blockd")

#: Fetches at once: a site with a hundred lists does not open a hundred connections.
AT_ONCE = 4
#: Seconds that a fetch may take beside its own patience, to judge what came. The child's own clock stands still while
#: the child is stopped; this one does not.
JUDGE_SECONDS = 120.0
#: Seconds that a first start waits for lists that it never had.
FIRST_PATIENCE = 30.0
#: Share of the time between fetches by which the next one is put off at random: not all sites ask at the full hour.
JITTER = 0.1


def _identity(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


Now = Callable[[], float]


class Fetches:
    """Knows what is due, fetches it, and says when a list changed. Threads call nothing but what says so."""

    def __init__(self, now: Now) -> None:
        """Start with no source; `now` is seconds since 1970."""
        self._now = now
        self._tasks: dict[Path, Task] = {}
        self._states: dict[Path, State] = {}
        self._due: dict[Path, float] = {}
        #: Those that somebody said to have changed while they were fetched.
        self._again: set[Path] = set()
        #: New lists that a reload refused together: each is tried by itself.
        self._apart: set[Path] = set()
        #: Those that could be neither taken in nor put aside, for no fault of theirs -> why, times, and when again.
        self._put_off: dict[Path, tuple[str, int, float]] = {}
        #: What was shown of refused lists: whoever accepts one means that one.
        self._shown: dict[Path, tuple[tuple[int, ...], str]] = {}
        #: Digests of lists that wait, as long as they are the same file: nothing is read each second.
        self._digests: dict[Path, tuple[tuple[int, ...], str]] = {}
        #: Lists of a generation that somebody went back to, which the disk has refused: path -> as in :meth:`restore`.
        self._to_restore: dict[Path, tuple[Path, int, float]] = {}
        #: Those that a reload is about: what lies there is not to be written to meanwhile.
        self._tried: set[Path] = set()
        #: What is under way: path -> octets so far, and in all where the server said so.
        self._progress: dict[Path, tuple[int, int | None]] = {}
        self._processes: dict[Path, subprocess.Popen[str]] = {}
        self._lock = threading.Lock()
        self._is_ending = False
        #: (app, result) -> fetches.
        self.counts: Counter[tuple[str, str]] = Counter()
        #: By list: what keeps it from being fetched.
        self._failures: defaultdict[Path, RepeatedFailure] = defaultdict(RepeatedFailure)

    def publish(self, tasks: Iterable[Task]) -> None:
        """Take the sources of what is in force; what is known of a new one is read from the disk."""
        before, self._tasks = self._tasks, {task.remote.path: task for task in tasks}
        self._states = {path: self._states.get(path) or read_state(path) for path in self._tasks}
        self._due = {
            path: self._due[path] if task == before.get(path) else self._due_time(task, self._states[path])
            for path, task in self._tasks.items()
        }

    def _due_time(self, task: Task, state: State) -> float:
        due = state.due(task.every)
        # A clock that was set back must not put off the next fetch for years.
        return min(due + (due - (state.tried or due)) * JITTER * random.random(), self._now() + 2 * task.every)  # noqa: S311

    def due(self) -> list[Task]:
        """Give the sources to fetch now, the longest due first, as many as may run beside those that do."""
        now = self._now()
        busy = self._tried | self._progress.keys()
        waiting = [path for path, due in self._due.items() if due <= now and path not in busy]
        room = max(0, AT_ONCE - len(self._progress))
        return [self._tasks[path] for path in sorted(waiting, key=self._due.__getitem__)[:room]]

    def wanted(self, apps: Iterable[str]) -> list[Path]:
        """Make sources due at once, of these apps or, without any, of all; give which."""
        names = set(apps)
        chosen = [path for path, task in self._tasks.items() if not names or task.remote.app in names]
        for path in chosen:
            self._due[path] = 0.0
        return chosen

    def zones(self) -> list[tuple[str, str, str | None]]:
        """Give zone, primary's address and key of each list that is a zone."""
        remotes = [task.remote for task in self._tasks.values()]
        return [
            (remote.zone, remote.server[0], None if remote.key is None else remote.key.name)
            for remote in remotes
            if remote.zone is not None and remote.server is not None
        ]

    def hear_of(self, zone: str) -> None:
        """Make the lists due that are this zone; one that is being fetched may be the older, and is fetched again."""
        for path, task in self._tasks.items():
            if task.remote.zone == zone:
                self._due[path] = 0.0
                self._again.add(path)

    def begin(self, task: Task) -> None:
        """Note that a fetch is under way."""
        self._progress[task.remote.path] = (0, None)
        self._again.discard(task.remote.path)

    def run(self, task: Task) -> State:
        """Fetch one, in this thread; give what is known then. Never raises."""
        path = task.remote.path
        try:
            state = self._fetch(task)
        except Exception as error:  # noqa: BLE001  of one fetch; others, and the next of this one, go on
            before = read_state(path)
            text = f"the fetch ended without a word: {error}"
            state = replace(before, tried=self._now(), result="failed", reason=text, failures=before.failures + 1)
            with suppress(OSError):
                write_state(path, state)
        return state

    def _fetch(self, task: Task) -> State:
        path = task.remote.path
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        # -P: a file in the working directory must not pass for a module of ours.
        command = [sys.executable, "-P", "-m", "blockd.fetching", str(os.getpid())]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            give_way(process.pid, COMPILE)
            with self._lock:
                self._processes[path] = process
                if self._is_ending:
                    process.kill()
            most = task.remote.patience + JUDGE_SECONDS
            clock = threading.Timer(most, process.kill)
            clock.daemon = True
            clock.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stderr is not None
                with suppress(BrokenPipeError):
                    process.stdin.write(task.as_json())
                    process.stdin.close()
                last: Any = None
                for line in process.stdout:
                    try:
                        last = json.loads(line)
                    except (ValueError, RecursionError):
                        # Such as a warning of a library; what counts is the last line that the child means.
                        continue
                    if isinstance(last, dict) and type(last.get("octets")) is int and path in self._progress:
                        self._progress[path] = (last["octets"], last.get("of"))
                said = process.stderr.read().strip().splitlines()
                if process.wait() != 0:
                    is_late = not clock.is_alive() and not self._is_ending
                    otherwise = f"it did not end within {most:g} s" if is_late else f"exit code {process.returncode}"
                    raise ValueError(said[-1] if said else otherwise)
                return state_of(last)
            finally:
                clock.cancel()
                with self._lock:
                    self._processes.pop(path, None)

    def end(self, task: Task, state: State) -> bool:
        """Note how a fetch ended; say whether the list in use is another now."""
        path, app = task.remote.path, task.remote.app
        self._progress.pop(path, None)
        if state.result != "new":
            # A new one is counted when a reload has taken it in, or refused it.
            self.counts[app, state.result or "failed"] += 1
        if path in self._tasks:
            self._states[path] = state
            self._due[path] = 0.0 if path in self._again else self._due_time(self._tasks[path], state)
        if state.result == "new":
            log.info("fetched %s for %s: %s names", task.remote.url, app, state.arrived)
        elif state.result in ("failed", "refused"):
            kept = "the last good one stays in use" if path.exists() else "there is none yet"
            text = f"the list of {app} from {task.remote.url}: {state.result}: {state.reason}; {kept}"
            self._failures[path].failed(text)
        elif state.result == "unchanged":
            self._failures[path].worked(f"the list of {app} from {task.remote.url} is well again")
        return state.result == "new"

    def arrived(self) -> list[Task]:
        """Give the lists that wait for a reload: together, or one by one after they were refused together."""
        now = self._now()
        waiting = [
            task
            for path, task in self._tasks.items()
            if path not in self._progress
            and task.remote.arrived.exists()
            and self._put_off.get(path, ("", 0, 0.0))[2] <= now
        ]
        self._apart &= {task.remote.path for task in waiting}
        return [task for task in waiting if task.remote.path in self._apart][:1] or waiting

    def accept(self, apps: Iterable[str]) -> list[Task]:
        """Have what was refused of these apps' lists wait for a reload, by an operator's word; give which.

        OSError when the disk refuses. One that is being fetched is judged in a moment, by somebody who writes to the
        same place.
        """
        return [task for task in self.refused(apps) if accept(task.remote)]

    def is_as_shown(self, task: Task) -> bool:
        """Say whether what was refused of a list is what somebody was shown last."""
        return self._shown.get(task.remote.path) == (_identity(task.remote.refused), self.reason(task))

    def reason(self, task: Task) -> str:
        """Say why a list was refused last, as far as that is known."""
        return self._states.get(task.remote.path, State()).reason or ""

    def show(self, tasks: Iterable[Task]) -> None:
        """Note that somebody is shown what was refused of these."""
        for task in tasks:
            self._shown[task.remote.path] = (_identity(task.remote.refused), self.reason(task))

    def refused(self, apps: Iterable[str]) -> list[Task]:
        """Give the lists of these apps or URLs of which something refused lies there, and nobody is at it."""
        names, busy = set(apps), self._tried | self._progress.keys()
        return [
            task
            for path, task in self._tasks.items()
            if not names.isdisjoint((task.remote.app, task.remote.url))
            and path not in busy
            and task.remote.refused.exists()
        ]

    def trying(self, tasks: Iterable[Task]) -> None:
        """Note that a reload is about these: no fetch of them begins until it ended."""
        self._tried = {task.remote.path for task in tasks}

    def settle(self, in_force: Mapping[str, str]) -> None:
        """Put lists in their place that are in force already: path -> digest of the list that is. Never raises.

        A daemon that is killed in between does it at its next start.
        """
        for path, task in self._tasks.items():
            arrived = task.remote.arrived
            if path in self._progress or not arrived.exists():
                continue
            try:
                identity = _identity(arrived)
                if self._digests.get(path, ((), ""))[0] != identity:
                    self._digests[path] = (identity, sha256(arrived))
                if self._digests[path][1] == in_force.get(str(path)):
                    self._states[path] = take_in(task.remote)
            except OSError as error:
                self._put(path, f"{arrived}: cannot be put in its place: {error.strerror}")

    def _put(self, path: Path, why: str) -> None:
        """Put a list off: half a minute, then ever longer."""
        before, count, _ = self._put_off.get(path, ("", 0, 0.0))
        self._put_off[path] = (why, count + 1, self._now() + RETRY * 2 ** min(count, 8))
        if why != before:
            log.error("%s", why)

    def tried(self, tasks: list[Task], problem: str | None, is_theirs: bool = True) -> None:
        """Note how a reload of these ended: refused, each is tried by itself, and what is bad alone is put aside.

        Unless it `is_theirs`, the fault is ours (a disk that is full, memory): they wait, and are tried again.
        """
        self._tried.clear()
        for task in tasks:
            if problem is None:
                self.counts[task.remote.app, "new"] += 1
            if problem is None or is_theirs:
                self._put_off.pop(task.remote.path, None)
            else:
                self._put(task.remote.path, f"the list of {task.remote.app} from {task.remote.url} waits: {problem}")
        if problem is None or not is_theirs:
            return
        if len(tasks) > 1:
            self._apart = {task.remote.path for task in tasks}
            return
        for task in tasks:
            remote = task.remote
            try:
                self._states[remote.path] = refuse(remote, problem)
            except OSError as error:
                self._put(remote.path, f"{remote.arrived}: cannot be put aside: {error.strerror}")
            self.counts[remote.app, "refused"] += 1
            log.error(
                "the list of %s from %s: refused: %s; the last good one stays in use", remote.app, remote.url, problem
            )

    def fetch_lacking(self, tasks: Iterable[Task]) -> dict[str, str]:
        """Fetch lists that were never there, all at once, and wait for them a while: a first start has no other.

        Gives why some could not be. OSError when the disk refuses what came.
        """
        lacking = [task for task in tasks if not task.remote.path.exists()]
        failed: dict[str, str] = {}
        if not lacking:
            return failed
        log.info("fetching %d lists for the first time, for at most %g s", len(lacking), FIRST_PATIENCE)
        clock = threading.Timer(FIRST_PATIENCE, self._kill_those, [[task.remote.path for task in lacking]])
        clock.start()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for task, state in zip(lacking, pool.map(self.run, lacking), strict=True):
                self.end(task, state)
                if state.result != "new":
                    failed[str(task.remote.path)] = f"{task.remote.url}: {state.result}: {state.reason}"
                else:
                    # Nothing is in force that it could take the place of.
                    self.counts[task.remote.app, "new"] += 1
                    self._states[task.remote.path] = take_in(task.remote)
        clock.cancel()
        clock.join()
        return failed

    def forget_others(self, directory: Path) -> None:
        """Remove what is kept, in their directory, of sources that no app in force names any more."""
        ours = {path.name + end for path in self._tasks for end in ("", *ENDINGS)}
        with suppress(OSError):
            for file in directory.iterdir():
                if file.name not in ours:
                    file.unlink()

    def kill(self) -> None:
        """End what is under way, and what was about to be."""
        with self._lock:
            self._is_ending = True
            for process in self._processes.values():
                process.kill()

    def _kill_those(self, paths: Iterable[Path]) -> None:
        with self._lock:
            for process in [self._processes[path] for path in paths if path in self._processes]:
                process.kill()

    def known(self, path: Path) -> dict[str, Any] | None:
        """Say what is known of the source whose list is at a path, for people; None when it has no source."""
        task = self._tasks.get(path)
        if task is None:
            return None
        state, now = self._states[path], self._now()
        under_way = self._progress.get(path)
        return {
            "url": task.remote.url,
            "result": "fetching" if under_way else state.result,
            "reason": state.reason,
            "refused": str(task.remote.refused) if task.remote.refused.exists() else None,
            "is_waiting": task.remote.arrived.exists(),
            "put_off": self._put_off.get(path, (None, 0, 0.0))[0],
            "next_in": max(0.0, self._due[path] - now),
            "confirmed_ago": None if state.confirmed is None else max(0.0, now - state.confirmed),
            "octets": under_way and under_way[0],
            "of": under_way and under_way[1],
        }

    def forget(self, tasks: Iterable[Task]) -> None:
        """Remove lists that a start fetched and that keep it from being one: the next is to fetch them anew."""
        for task in tasks:
            with suppress(OSError):
                task.remote.path.unlink()

    def restore(self, generation: Mapping[Path, tuple[Path, int, float]]) -> None:
        """Put lists back that a generation has, of a rollback: path -> where it lies, its names, and since when it was.

        What the disk refuses is tried again by :meth:`restore_the_rest`.
        """
        self._to_restore = dict(generation)
        try:
            self.restore_the_rest()
        except OSError as error:
            log.error("%s: a list cannot be put back: %s", error.filename, error.strerror)

    def restore_the_rest(self) -> None:
        """Put back what could not be. OSError when the disk still refuses one; the others are where they belong."""
        refused: OSError | None = None
        for path, (file, kept, since) in list(self._to_restore.items()):
            task = self._tasks.get(path)
            try:
                if task is not None and (not path.exists() or sha256(path) != sha256(file)):
                    self._states[path] = restore(task.remote, file, kept, since)
                del self._to_restore[path]
            except OSError as error:
                refused = error
        if refused is not None:
            raise refused

    def oldest(self) -> dict[str, float]:
        """Give, by app, when its list that was longest not confirmed was; 0 for one that never was."""
        oldest: dict[str, float] = {}
        for path, task in self._tasks.items():
            confirmed = self._states[path].confirmed or 0.0
            oldest[task.remote.app] = min(confirmed, oldest.get(task.remote.app, confirmed))
        return oldest
