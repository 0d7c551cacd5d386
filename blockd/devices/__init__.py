"""Who is asking: the evidence that a device is ours."""

from blockd.devices.inventory import Device, Inventory, are_several, read_inventory

__all__ = ["Device", "Inventory", "are_several", "read_inventory"]
