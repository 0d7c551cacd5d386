"""What the readers of tables and of JSON give: cells by column."""

from __future__ import annotations

#: Column -> its cells; a device has a MAC for each card, and several columns or values for them.
Record = dict[str, list[str]]
