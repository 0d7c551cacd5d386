"""A list that comes from elsewhere: where it is kept, and what is known of its fetches.

A directory holds two files a source: the list as it was last good, and what is known. A third is what came and waits
for a reload to take it in, a fourth what was refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from blockd.lists.gate import Limits

#: Of the files beside a list: what is known, what is being written, what is judged, what waits for a reload, what was
#: refused, what is put back.
ARRIVED, REFUSED, BACK = ".arrived", ".refused", ".back"
ENDINGS = (".json", ".json.new", ".new", ARRIVED, REFUSED, BACK)

Result = Literal["new", "unchanged", "failed", "refused"]


#: Why a list is refused that somebody went back from.
ROLLED_BACK = "somebody went back from it"


class FetchError(Exception):
    """Why there is no list; the text is for people."""


@dataclass(frozen=True)
class KeyFile:
    """A TSIG key and where its secret is."""

    name: str
    algorithm: str
    file: Path


@dataclass(frozen=True)
class Remote:
    """Where a list comes from, and where it is kept."""

    app: str
    #: Of a zone: `dns://address:port/zone`, for people.
    url: str
    #: The list as it was last good; this is the path that policy reads.
    path: Path
    #: Certificates to trust in place of the system's.
    ca: Path | None
    #: Largest size, uncompressed.
    largest_octets: int
    #: Seconds for all of a fetch.
    patience: float
    #: A zone that is transferred, from which server, and the key that it signs with.
    zone: str | None = None
    server: tuple[str, int] | None = None
    key: KeyFile | None = None

    @property
    def candidate(self) -> Path:
        """Where a list lies while it is fetched and judged."""
        return self.path.with_name(self.path.name + ".new")

    @property
    def refused(self) -> Path:
        """Where one lies that was fetched and does not get in."""
        return self.path.with_name(self.path.name + REFUSED)

    @property
    def arrived(self) -> Path:
        """Where one lies that is good by itself, until a reload has taken it in or refused it."""
        return self.path.with_name(self.path.name + ARRIVED)


@dataclass(frozen=True)
class State:
    """What is known of a source's fetches. Times are seconds since 1970."""

    url: str = ""
    etag: str | None = None
    modified: str | None = None
    result: Result | None = None
    #: Why the last fetch did not bring a list that is in use.
    reason: str | None = None
    tried: float | None = None
    #: When the list, as it is in use, was last seen to be what the server has.
    confirmed: float | None = None
    #: Fetches that failed since one that did not.
    failures: int = 0
    #: Names of the list in use, for whoever judges the next one.
    kept: int | None = None
    #: Names of the one that waits for a reload, and when it came.
    arrived: int | None = None
    arrived_at: float | None = None
    #: Which file the ETag and the date are of, by its ending: nothing is known of one that is not there.
    known_of: str = ""
    #: Digest of what somebody went back from: it does not come back by itself.
    abandoned: str | None = None

    def due(self, every: float) -> float:
        """Say when to fetch next; sooner after a failure, then ever later, and never later than usual."""
        if self.tried is None:
            return 0.0
        if self.failures:
            return self.tried + min(every, RETRY * 2.0 ** min(self.failures - 1, 16))
        return self.tried + every


#: Seconds until a failed fetch is tried again the first time.
RETRY = 30.0


#: What each value of a state may be; times are compared, so that none may be another type or not a number.
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("url", "known_of"), (str,)),
    **dict.fromkeys(("etag", "modified", "reason", "abandoned"), (str, type(None))),
    **dict.fromkeys(("tried", "confirmed", "arrived_at"), (int, float, type(None))),
    **dict.fromkeys(("kept", "arrived"), (int, type(None))),
    "failures": (int,),
}


def state_of(values: Any) -> State:
    """Make a state of what JSON says. ValueError when it says something else."""
    if not isinstance(values, dict) or values.get("result") not in (None, *get_args(Result)):
        raise ValueError("it is not the state of a fetch")
    for key, value in values.items():
        if key != "result" and (type(value) not in _KINDS.get(key, ()) or value != value):
            raise ValueError(f"it is not the state of a fetch: {key[:40]}")
    return State(**values)


def read_state(path: Path) -> State:
    """Read what is known of the source whose list is at this path; nothing is, where that cannot be read."""
    try:
        return state_of(json.loads(path.with_name(path.name + ".json").read_text()))
    except (OSError, ValueError, RecursionError):
        return State()


def write_state(path: Path, state: State) -> None:
    """Keep it; OSError when the disk refuses."""
    file = path.with_name(path.name + ".json")
    _write_whole(file, json.dumps(asdict(state)).encode())


def put_aside(remote: Remote, file: Path) -> None:
    """Have what was fetched, and lies there, wait for a reload; it is on the disk when this returns."""
    file.replace(remote.arrived)
    remote.refused.unlink(missing_ok=True)
    _sync(remote.path.parent)


def take_in(remote: Remote) -> State:
    """Put what waits in the place of the list; give what is known then. OSError when the disk refuses."""
    remote.arrived.replace(remote.path)
    _sync(remote.path.parent)
    state = read_state(remote.path)
    known_of = "" if state.known_of == ARRIVED else state.known_of
    state = replace(state, confirmed=state.arrived_at, kept=state.arrived, arrived=None, known_of=known_of)
    if not remote.refused.exists():
        # Otherwise a newer one was refused meanwhile, and that is what is said.
        state = replace(state, result="new", reason=None)
    write_state(remote.path, state)
    return state


def restore(remote: Remote, file: Path, kept: int, since: float) -> State:
    """Put a list back that was in force before; what is there is put aside, and does not come back by itself.

    OSError when the disk refuses.
    """
    copy = remote.path.with_name(remote.path.name + BACK)
    shutil.copyfile(file, copy)
    abandoned = None
    if remote.path.exists():
        abandoned = sha256(remote.path)
        remote.path.replace(remote.refused)
    copy.replace(remote.path)
    _sync(remote.path.parent)
    # What the server has is asked for anew, whole: nothing is known of what lies here.
    before = read_state(remote.path)
    confirmed = since if before.confirmed is None else min(before.confirmed, since)
    state = replace(before, url=remote.url, etag=None, modified=None, kept=kept, confirmed=confirmed)
    if abandoned is not None:
        state = replace(state, result="refused", reason=ROLLED_BACK, abandoned=abandoned)
    write_state(remote.path, state)
    return state


def sha256(file: Path) -> str:
    """Give the digest of a file, without holding it. OSError when it cannot be read."""
    with file.open("rb") as octets:
        return hashlib.file_digest(octets, "sha256").hexdigest()


def refuse(remote: Remote, reason: str) -> State:
    """Put what waits aside, for no reload takes it; give what is known then. OSError when the disk refuses."""
    remote.arrived.replace(remote.refused)
    _sync(remote.path.parent)
    state = replace(read_state(remote.path), result="refused", reason=reason, arrived=None, known_of=REFUSED)
    write_state(remote.path, state)
    return state


def accept(remote: Remote) -> bool:
    """Have what was refused wait for a reload, for an operator who says so; say whether there was any."""
    if not remote.refused.exists():
        return False
    remote.refused.replace(remote.arrived)
    _sync(remote.path.parent)
    # How many names it has is what the next one is compared with: unknown, until one passes by itself.
    state = read_state(remote.path)
    state = replace(state, arrived=None, arrived_at=state.tried, known_of=ARRIVED, abandoned=None)
    write_state(remote.path, state)
    return True


def _write_whole(file: Path, octets: bytes) -> None:
    new = file.with_name(file.name + ".new")
    with new.open("wb") as out:
        out.write(octets)
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Task:
    """A source, and what its list is judged by."""

    remote: Remote
    #: As the crate reads it: format, kind, whether public suffixes are meant.
    as_read: dict[str, Any]
    #: Names that no list may block.
    guarded: list[str]
    limits: Limits
    #: Seconds between fetches.
    every: float

    def as_json(self) -> str:
        """Write it as :func:`read_task` reads it."""
        return json.dumps(asdict(self), default=str)


def read_task(text: str) -> Task:
    """Read what :meth:`Task.as_json` wrote."""
    parts = json.loads(text)
    remote = parts["remote"]
    ca = None if remote["ca"] is None else Path(remote["ca"])
    key = None if remote["key"] is None else KeyFile(**{**remote["key"], "file": Path(remote["key"]["file"])})
    server = None if remote["server"] is None else tuple(remote["server"])
    parts["remote"] = Remote(**{**remote, "path": Path(remote["path"]), "ca": ca, "key": key, "server": server})
    return Task(**{**parts, "limits": Limits(**parts["limits"])})
