"""What a config may leave out and commands need to know: they find the daemon without reading the whole schema."""

#: The control socket.
SOCKET = "/run/blockd/control.sock"
#: Where the firewall's process reaches the daemon.
EGRESS_SOCKET = "/run/blockd/egress.sock"
#: Behind the socket's name: the file that says that nothing is to be enforced.
EGRESS_OFF = ".off"
#: The same in the state directory of its unit, which outlasts a start of the machine.
EGRESS_STATE, EGRESS_OFF_KEPT = "/var/lib/blockd-egress", "off"
