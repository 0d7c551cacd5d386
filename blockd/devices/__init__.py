"""Who is asking: the evidence that a device is ours."""

from blockd.devices.inventory import Device, read_inventory

__all__ = ["Device", "read_inventory"]
