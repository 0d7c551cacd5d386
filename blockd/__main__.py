"""``blockd``, and ``python -m blockd``."""

from blockd.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
