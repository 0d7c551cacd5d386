"""The firewall's half: the same decision in the packet filter, by a process of its own that parses no packet."""
