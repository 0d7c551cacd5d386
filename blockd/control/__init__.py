"""The control socket: one JSON line asks, one JSON line answers; one command a function."""

from blockd.control.client import ControlError, ask
from blockd.control.server import ControlFactory

__all__ = ["ControlError", "ControlFactory", "ask"]
