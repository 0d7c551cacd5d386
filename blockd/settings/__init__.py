"""The config file: one typed schema a section, every error with file, line and key."""

from blockd.settings.load import load_settings
from blockd.settings.schema import Settings

__all__ = ["Settings", "load_settings"]
