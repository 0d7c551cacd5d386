"""A resolver that bans an app from the devices you own, and from no others."""

__version__ = "0.1.0"
