"""``blockd``, and ``python -m blockd``."""

import gc
import signal
import sys

# Imports and a single command leave no garbage worth looking for, and looking takes a tenth of their time. A daemon
# begins to look when all is there.
gc.disable()

if sys.argv[1:2] == ["serve"]:
    # Before the imports, which take their time: until the daemon can reload, a reload is nothing to die of.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

from blockd.cli import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
