"""Child process: the service under test, and on demand its twin behind Serve's own gRPC proxy."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import requests, say
from preceptor_service.app import start_service
from preceptor_service.config import parse_config


def main(settings: dict[str, Any], with_proxy: bool) -> None:
    """Serves until the parent closes the pipe."""
    proxy = _start_proxy() if with_proxy else None
    service = start_service(parse_config(settings))
    try:
        if with_proxy:
            from benchmarks.serve_proxy import deploy

            deploy(settings)
        pid = os.getpid() if settings["pool"] == "in-process" else _pid_of("ServeReplica:preceptor:Gateway")
        say(grpc=service.ports.grpc, metrics=service.ports.metrics, proxy=proxy, gateway_pid=pid)
        for _ in requests():
            pass
    finally:
        service.stop()
        if with_proxy:
            import ray
            from ray import serve

            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def _start_proxy() -> int:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, gRPCOptions

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=0),
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=["benchmarks.serve_proxy.add_servicer"]),
        logging_config={"log_level": "WARNING"},
    )
    return port


def _pid_of(title: str) -> int:
    """Returns the newest process of that title: Ray names its workers after their actors."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if title in (directory / "cmdline").read_text():
                found.append((directory.stat().st_ctime, int(directory.name)))
        except OSError:
            continue
    return max(found)[1]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), "--with-proxy" in sys.argv)
