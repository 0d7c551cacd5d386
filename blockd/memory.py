"""How much memory there is: a table that does not fit must be refused before the system picks a process to kill."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterable
from pathlib import Path

from blockd.problems import Problem

#: Octets that a compile takes for each line of a list: an entry of ten, or a slot and a third of ten.
LIST_OCTETS_A_LINE = 16
#: And for each octet of one, where a line has many names.
LIST_FACTOR = 1
#: And for each line of other files, inventories most of all: each device is an object.
FILE_OCTETS_A_LINE = 1_500
#: Octets that loading takes for each octet of a snapshot: its small parts are held twice.
LOAD_FACTOR = 2


def compile_octets(files: Iterable[bytes], list_octets: int, list_lines: int) -> int:
    """Reckon what a compile of files, and of lists of so many octets and lines, takes; octets."""
    lists = max(LIST_FACTOR * list_octets, LIST_OCTETS_A_LINE * list_lines)
    return lists + sum(len(data) + FILE_OCTETS_A_LINE * data.count(b"\n") for data in files)


def available_octets(root: Path = Path("/")) -> int:
    """Give the least that the system, this process's control group and its own limit still allow, octets."""
    free = [_system(root / "proc/meminfo")]
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        # A group's limit holds for those below it.
        for group in (Path(path), *Path(path).parents):
            if controllers == "":
                free += _room(root / f"sys/fs/cgroup{group}", "memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                where = root / f"sys/fs/cgroup/memory{group}"
                free += _room(where, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        pages = int((root / "proc/self/statm").read_text().split()[0])
        free.append(limit - pages * resource.getpagesize())
    return max(0, min(free))


def _system(meminfo: Path) -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    # The unit shows its processes no /proc but their own (ProcSubset=pid): then all that there is, less nothing.
    return int(found.group(1)) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _room(group: Path, limit: str, used: str, prefix: str) -> list[int]:
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return []
        # Pages of files are counted as used, and are given up when somebody needs memory.
        rows = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        cached = sum(int(n) for name, n in rows if name in (f"{prefix}inactive_file", f"{prefix}active_file"))
        return [int(most) - int((group / used).read_text()) + cached]
    except (OSError, ValueError):
        # The root group has no limit, and no file that says so.
        return []


def too_large(file: str, what: str, needed: int) -> list[Problem]:
    """Say that something does not fit, with the figure that it would need; nothing when it does."""
    available = available_octets()
    if needed <= available:
        return []
    text = (
        f"{what} would need {_megabytes(needed)} MB of memory and {_megabytes(available)} MB are free: "
        "let shorter lists live, or give the machine, or the service, more"
    )
    return [Problem(file, 0, "", text)]


def _megabytes(octets: int) -> str:
    return f"{-(-octets // 1_000_000):,}"
