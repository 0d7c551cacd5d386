"""``blockd``, and ``python -m blockd``."""

import gc
import os
import signal
import sys

# Imports and a single command leave no garbage worth looking for, and looking takes a tenth of their time. A daemon
# begins to look when all is there.
gc.disable()

# A standard stream that was closed is opened on nothing: else the next file or socket would get its number, and with it
# what is written there.
for descriptor in range(3):
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)
if sys.stdout is None:
    # Python gives what is printed no place then, not even in a child that has a pipe there.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  for as long as the process runs

if sys.argv[1:2] == ["serve"]:
    # Before the imports, which take their time: until the daemon can reload, a reload is nothing to die of.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

from blockd.cli import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
