"""What the service manager that started this process is told, by systemd's protocol. Called by the command."""

from __future__ import annotations

import os
import socket


def tell_service_manager(state: str) -> None:
    """Sends `state`, such as `READY=1`, to the socket that `NOTIFY_SOCKET` names; does nothing where it is not set.

    Raises:
        OSError: nobody reads that socket.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if address is None:
        return
    if address.startswith("@"):  # Linux' abstract sockets have no file.
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.sendto(state.encode(), address)
