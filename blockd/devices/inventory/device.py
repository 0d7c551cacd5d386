"""One device of an inventory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blockd.settings.values import Address


@dataclass(frozen=True)
class Device:
    """One device, or one of the MACs that it has, and the line that says so."""

    #: Where it always is; none for one that is known by its MAC.
    address: Address | None
    hostname: str
    serial: str
    owner: str
    file: Path
    line: int
    #: As `read_mac` gives it; empty when it is not known.
    mac: str = ""

    def __str__(self) -> str:
        """Name it as people do; never its owner, whom only those who may read the file should know."""
        name = self.hostname or "a device"
        return f"{name}, serial {self.serial}" if self.serial else name

    @property
    def identities(self) -> set[str]:
        """Give the names that it is known by to people."""
        return {self.serial, self.hostname} - {""}

    def is_one_with(self, other: Device) -> bool:
        """Say whether the other is another line, or another MAC, of the same device."""
        by_line = (self.file, self.line) == (other.file, other.line)
        return by_line or not self.identities.isdisjoint(other.identities)


def lines_of(devices: Iterable[Device]) -> int:
    """Count devices as an inventory does: by line, however many MACs each has."""
    return len({(device.file, device.line) for device in devices})
