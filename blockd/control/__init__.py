"""The control socket: one JSON line asks, one JSON line answers; one command a function.

The daemon's side is :mod:`blockd.control.server`: commands have no need of Twisted.
"""

from blockd.control.client import ControlError, ask

__all__ = ["ControlError", "ask"]
