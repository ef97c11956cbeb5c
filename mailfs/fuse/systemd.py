"""What a service manager hears of a mount: the protocol of sd_notify(3), one datagram to the socket it names.

READY=1 when the mount can be used, RELOADING=1 and READY=1 around a reload, STOPPING=1 at the end, STATUS= a line for
`systemctl status`. MONOTONIC_USEC is what `Type=notify-reload` of systemd.service(5) wants beside RELOADING=1.
"""

import logging
import os
import socket
import time

log = logging.getLogger(__name__)

# The manager's queue may be full for a moment; a mount must not stand still for it.
_SEND_DEADLINE_S = 1.0


class ServiceManager:
    """Who started us and wants to know how we are. Nobody, where `address` is None.

    `address` is the value of NOTIFY_SOCKET: an absolute path, or `@` and a name in Linux's abstract namespace.
    Nothing here raises: a mount that serves is better than one that could say so.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address

    def ready(self, status: str) -> None:
        """The mount can be used, or goes on after a reload."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """The configuration is being read again; ready() says that it has been."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The mount is about to end."""
        self._send("STOPPING=1", _status(status))

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_DEADLINE_S)
                address = os.fsencode(self._address)
                sender.connect(b"\0" + address[1:] if address.startswith(b"@") else address)
                sender.send(os.fsencode("\n".join(assignments)))
        except OSError as error:
            log.warning("the service manager at %s does not hear: %s", self._address, error)


def _status(text: str) -> str:
    """A line is an assignment; a mount point may have a newline in its name."""
    return "STATUS=" + text.replace("\n", " ")
