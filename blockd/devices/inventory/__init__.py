"""Devices from asset lists: one subject a file; `read_inventory` reads one."""

from blockd.devices.inventory.cells import is_randomised, mac_number, read_mac
from blockd.devices.inventory.device import Device, are_several, lines_of
from blockd.devices.inventory.reader import Inventory, read_inventory

__all__ = [
    "Device",
    "Inventory",
    "are_several",
    "lines_of",
    "read_inventory",
    "read_mac",
    "mac_number",
    "is_randomised",
]
