"""Where inputs are read from: the disk as it is now, or what was kept with a snapshot."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from blockd.problems import InputError, Problem

#: Beside a snapshot: what it was made of.
MANIFEST = "manifest.json"
INPUTS = "inputs"


class Source(ABC):
    """Reads files and remembers what it read, so that it can be kept and told apart."""

    def __init__(self) -> None:
        """Start with nothing read."""
        self.files: dict[Path, bytes] = {}
        self._digests: dict[Path, str] = {}
        self._checked: set[Path] = set()
        #: What was asked for, read or not: a change of any of these may mend what was refused.
        self.tried: set[Path] = set()

    def read(self, path: Path) -> bytes:
        """Read a file, once. InputError says which and why not."""
        self.tried.add(path)
        if path not in self.files:
            self.files[path] = self._read(path)
        return self.files[path]

    def check(self, path: Path) -> None:
        """See that a list can be read. InputError says why not."""
        self.read(path)

    @property
    def paths(self) -> set[Path]:
        """All that belongs to the inputs, whether its octets were wanted or not."""
        return {*self.files, *self._checked}

    def sha256(self, path: Path) -> str:
        """Give the digest of a file that was read, made once."""
        if path not in self._digests:
            self._digests[path] = hashlib.sha256(self.files[path]).hexdigest()
        return self._digests[path]

    @abstractmethod
    def _read(self, path: Path) -> bytes: ...

    @abstractmethod
    def yaml_files(self, directory: Path) -> list[Path]:
        """List the YAML files of a directory, in order. InputError when there is no such directory."""


class Disk(Source):
    """The files as they are now."""

    def _read(self, path: Path) -> bytes:
        try:
            if path.exists() and not path.is_file():
                # A pipe would hold the reload for ever.
                raise InputError([Problem(str(path), 0, "", "cannot be read: it is no regular file")])
            return path.read_bytes()
        except OSError as error:
            raise InputError([Problem(str(path), 0, "", f"cannot be read: {error.strerror}")]) from None

    def yaml_files(self, directory: Path) -> list[Path]:
        """List the YAML files of a directory, in order. InputError when there is no such directory."""
        if not directory.is_dir():
            raise InputError([Problem(str(directory), 0, "", "there is no such directory")])
        misnamed = sorted(path for path in directory.glob("*.yml") if not path.name.startswith("."))
        if misnamed:
            raise InputError([Problem(str(path), 0, "", "is not read: rename it to .yaml") for path in misnamed])
        # What begins with a dot is an editor's.
        return sorted(path for path in directory.glob("*.yaml") if not path.name.startswith("."))


class Kept(Source):
    """The files as they were when a snapshot was accepted."""

    def __init__(self, generation: Path) -> None:
        """Read the manifest of a generation. OSError or ValueError when there is none that can be read."""
        super().__init__()
        manifest: dict[str, Any] = json.loads((generation / MANIFEST).read_text())
        self.config = Path(manifest["config"])
        self._kept: dict[Path, Path] = {
            Path(item["path"]): generation / INPUTS / item["kept"] for item in manifest["inputs"]
        }

    def check(self, path: Path) -> None:
        """See that a list was kept; its octets went into the snapshot, and the daemon need not hold them again."""
        if path not in self._kept or not self._kept[path].is_file():
            raise InputError([Problem(str(path), 0, "", "was not kept with the snapshot")])
        self._checked.add(path)

    def _read(self, path: Path) -> bytes:
        try:
            return self._kept[path].read_bytes()
        except (KeyError, OSError):
            raise InputError([Problem(str(path), 0, "", "was not kept with the snapshot")]) from None

    def yaml_files(self, directory: Path) -> list[Path]:
        """List the YAML files of a directory, in order."""
        return sorted(path for path in self._kept if path.parent == directory and path.suffix == ".yaml")
