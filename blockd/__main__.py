"""``blockd``, and ``python -m blockd``."""

import signal
import sys

if sys.argv[1:2] == ["serve"]:
    # Before the imports, which take their time: until the daemon can reload, a reload is nothing to die of.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

from blockd.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
