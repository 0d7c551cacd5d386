"""Where inputs are read from: the disk as it is now, or what was kept with a snapshot."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

from blockd.problems import InputError, Problem

#: Beside a snapshot: what it was made of.
MANIFEST = "manifest.json"
INPUTS = "inputs"


class Source(ABC):
    """Reads files and remembers what it read, so that it can be kept and told apart."""

    #: Whether the files are those of this machine now, so that its interfaces and addresses belong to them.
    is_current = False

    def __init__(self) -> None:
        """Start with nothing read."""
        self.files: dict[Path, bytes] = {}
        #: The file that holds a list's octets: lists are read where they lie, for there may be a gigabyte of them.
        self._lists: dict[Path, Path] = {}
        self._digests: dict[Path, str] = {}
        #: Lists that are not there, and may lack.
        self.lacking: set[Path] = set()
        #: Lists whose last line has no end, as in a file that was cut off.
        self.ending_within_line: set[Path] = set()
        #: What was asked for, read or not: a change of any of these may mend what was refused.
        self.tried: set[Path] = set()

    def read(self, path: Path) -> bytes:
        """Read a file, once. InputError says which and why not."""
        self.tried.add(path)
        if path not in self.files:
            self.files[path] = self._read(path)
        return self.files[path]

    def read_if_there(self, path: Path) -> bytes | None:
        """Read a file, once, if there is one."""
        return self.read(path) if self._has(path) else None

    def list_file(self, path: Path, may_lack: bool = False) -> Path:
        """Give the file to read a list from. InputError says why it cannot be read.

        One that `may_lack` is empty when it is not there: it was not fetched yet.
        """
        self.tried.add(path)
        if path not in self._lists:
            self._lists[path], self._digests[path] = self._list_file(path, may_lack)
        return self._lists[path]

    @property
    def lists(self) -> set[Path]:
        """Those of them that are lists."""
        return set(self._lists)

    @property
    def paths(self) -> set[Path]:
        """All that belongs to the inputs."""
        return {*self.files, *self._lists}

    def sha256(self, path: Path) -> str:
        """Give the digest of a file that was read, or of a list, made once."""
        if path not in self._digests:
            self._digests[path] = hashlib.sha256(self.files[path]).hexdigest()
        return self._digests[path]

    @abstractmethod
    def _read(self, path: Path) -> bytes: ...

    @abstractmethod
    def _has(self, path: Path) -> bool: ...

    @abstractmethod
    def _list_file(self, path: Path, may_lack: bool) -> tuple[Path, str]: ...

    @abstractmethod
    def yaml_files(self, directory: Path) -> list[Path]:
        """List the YAML files of a directory, in order. InputError when there is no such directory."""

    @abstractmethod
    def list_files(self, directory: Path) -> list[Path]:
        """List the files of a directory that are lists, in order. InputError when there is no such directory."""


#: What is held of a list while it is copied.
CHUNK_OCTETS = 1 << 20


class Disk(Source):
    """The files as they are now."""

    is_current = True

    def __init__(self, spool: Path | None = None) -> None:
        """With `spool`, a directory, lists are copied there first: what is compiled is what is kept, whoever writes."""
        super().__init__()
        self._spool = spool
        #: Lines and octets of all lists, for a reckoning of what their compile takes.
        self.list_lines = self.list_octets = 0

    def _read(self, path: Path) -> bytes:
        try:
            _refuse_pipe(path)
            return path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from None

    def _has(self, path: Path) -> bool:
        try:
            return path.exists()
        except OSError as error:
            # Whether it is there cannot be known: that is no reason to go on as if it were not.
            raise _unreadable(path, error) from None

    def _list_file(self, path: Path, may_lack: bool) -> tuple[Path, str]:
        if may_lack and not self._has(path):
            self.lacking.add(path)
            return self._copied(path, Path(os.devnull))
        return self._copied(path, path)

    def _copied(self, path: Path, lies_at: Path) -> tuple[Path, str]:
        """Copy a list from where it lies; give the copy, and its digest."""
        digest, last = hashlib.sha256(), b""
        copy = lies_at if self._spool is None else self._spool / f"{len(self._lists):04}-{path.name}"
        try:
            with open(os.devnull if self._spool is None else copy, "wb") as file:
                for chunk in self._chunks(lies_at):
                    digest.update(chunk)
                    file.write(chunk)
                    last = chunk[-1:]
        except OSError as error:
            text = f"cannot be copied to {copy}: {error.strerror}"
            raise InputError([Problem(str(path), 0, "", text)]) from None
        if last not in (b"", b"\n"):
            self.ending_within_line.add(path)
        return copy, digest.hexdigest()

    def _chunks(self, path: Path) -> Iterator[bytes]:
        try:
            _refuse_pipe(path)
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(CHUNK_OCTETS):
                    self.list_lines += chunk.count(b"\n")
                    self.list_octets += len(chunk)
                    yield chunk
        except OSError as error:
            raise _unreadable(path, error) from None

    def yaml_files(self, directory: Path) -> list[Path]:
        """List the YAML files of a directory, in order. InputError when there is no such directory."""
        if not directory.is_dir():
            raise InputError([Problem(str(directory), 0, "", "there is no such directory")])
        misnamed = sorted(path for path in directory.glob("*.yml") if not path.name.startswith("."))
        if misnamed:
            raise InputError([Problem(str(path), 0, "", "is not read: rename it to .yaml") for path in misnamed])
        # What begins with a dot is an editor's.
        return sorted(path for path in directory.glob("*.yaml") if not path.name.startswith("."))

    def list_files(self, directory: Path) -> list[Path]:
        """List the files of a directory that are lists, in order. InputError when there is no such directory."""
        try:
            return sorted(path for path in directory.iterdir() if _is_list(path) and path.is_file())
        except OSError as error:
            raise _unreadable(directory, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    text = f"cannot be read: {error.strerror}"
    if isinstance(error, PermissionError):
        text += "; let the daemon's user read it, or run the command as that user or root"
    return InputError([Problem(str(path), 0, "", text)])


def _is_list(path: Path) -> bool:
    return not path.name.startswith(".") and not path.name.endswith("~") and path.suffix not in (".yaml", ".yml")


def _refuse_pipe(path: Path) -> None:
    if path.exists() and not path.is_file() and path != Path(os.devnull):
        # A pipe would hold the reload for ever.
        raise InputError([Problem(str(path), 0, "", "cannot be read: it is no regular file")])


class Kept(Source):
    """The files as they were when a snapshot was accepted."""

    def __init__(self, generation: Path) -> None:
        """Read the manifest of a generation. OSError or ValueError when there is none that can be read."""
        super().__init__()
        try:
            manifest = json.loads((generation / MANIFEST).read_text())
            self.config = Path(manifest["config"])
            self._sums: dict[Path, str] = {Path(item["path"]): str(item["sha256"]) for item in manifest["inputs"]}
            self._kept: dict[Path, Path] = {
                Path(item["path"]): generation / INPUTS / item["kept"] for item in manifest["inputs"]
            }
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{generation / MANIFEST}: is not a manifest: {type(error).__name__}") from None

    def _has(self, path: Path) -> bool:
        return path in self._kept

    def _list_file(self, path: Path, may_lack: bool) -> tuple[Path, str]:
        if path not in self._kept or not self._kept[path].is_file():
            raise InputError([Problem(str(path), 0, "", "was not kept with the snapshot")])
        return self._kept[path], self._sums[path]

    def _read(self, path: Path) -> bytes:
        try:
            return self._kept[path].read_bytes()
        except (KeyError, OSError):
            raise InputError([Problem(str(path), 0, "", "was not kept with the snapshot")]) from None

    def yaml_files(self, directory: Path) -> list[Path]:
        """List the YAML files of a directory, in order."""
        return sorted(path for path in self._kept if path.parent == directory and path.suffix == ".yaml")

    def list_files(self, directory: Path) -> list[Path]:
        """List the files of a directory that were lists, in order."""
        return sorted(path for path in self._kept if path.parent == directory and _is_list(path))


class Arrived(Disk):
    """A generation's files, but for some that came since: a list that is fetched takes nobody's half-done edit in."""

    is_current = False

    def __init__(self, kept: Kept, arrived: Mapping[Path, Path], spool: Path) -> None:
        """`arrived` says where those that came lie."""
        super().__init__(spool)
        self._kept, self._arrived = kept, arrived

    def _read(self, path: Path) -> bytes:
        return super()._read(self._arrived[path]) if path in self._arrived else self._kept.read(path)

    def _has(self, path: Path) -> bool:
        return path in self._arrived or self._kept.read_if_there(path) is not None

    def _list_file(self, path: Path, may_lack: bool) -> tuple[Path, str]:
        if path in self._arrived:
            return self._copied(path, self._arrived[path])
        lies_at = self._kept.list_file(path)
        if may_lack and not lies_at.stat().st_size:
            # No list that was ever fetched is empty.
            self.lacking.add(path)
        return self._copied(path, lies_at)

    def yaml_files(self, directory: Path) -> list[Path]:
        """List the YAML files of a directory, in order."""
        return self._kept.yaml_files(directory)

    def list_files(self, directory: Path) -> list[Path]:
        """List the files of a directory that were lists, in order."""
        return self._kept.list_files(directory)
