"""What a config may leave out and commands need to know: they find the daemon without reading the whole schema."""

#: The control socket.
SOCKET = "/run/blockd/control.sock"
#: Where the firewall's process reaches the daemon.
EGRESS_SOCKET = "/run/blockd/egress.sock"
