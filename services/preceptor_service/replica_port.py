"""`keep_replica_port_local`: where Serve's replicas listen to each other. Called by the two deployments.

Serve has every replica listen on a port of its own, on all addresses of the machine, for calls from other replicas.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.serve._private import replica

from preceptor_service.config import is_loopback

logger = logging.getLogger(__name__)

_ANYWHERE = "[::]:0"
_OPENS = "add_port_to_grpc_server"


def keep_replica_port_local() -> None:
    """Has this replica listen on 127.0.0.1 alone where its node does, before Serve opens the port. Safe to repeat."""
    node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    if not is_loopback(node):
        return
    listen = getattr(replica, _OPENS, None)
    if listen is None:
        logger.warning("this Ray opens the ports of its replicas in another way; keep them unreachable")
        return

    def listen_locally(server: Any, address: str) -> int:
        port: int = listen(server, f"{node}:0" if address == _ANYWHERE else address)
        return port

    setattr(replica, _OPENS, listen_locally)
