"""What DHCP servers say of who has which address: their own files, as they write them."""

from blockd.devices.leases.feed import FORMATS, Feed, Part
from blockd.devices.leases.kea_socket import KeaSocket
from blockd.devices.leases.lease import Lease

__all__ = ["FORMATS", "Feed", "KeaSocket", "Lease", "Part"]
