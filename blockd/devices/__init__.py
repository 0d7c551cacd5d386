"""Who is asking: the evidence that a device is ours."""

from blockd.devices.inventory import COLUMNS, Device, read_inventory

__all__ = ["COLUMNS", "Device", "read_inventory"]
