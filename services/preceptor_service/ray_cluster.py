"""The Ray that this process uses: joined where there is one, else started here and owned."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from preceptor_service.config import ConfigError, is_loopback
from preceptor_service.process_log import LOG_TO, LogRelay

logger = logging.getLogger(__name__)

_MIN_RAY = (2, 60)
_END_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 5.0


class RayCluster:
    """A connection to Ray, with Serve running on it; `stop` ends what this object started, and nothing else.

    Joins the Ray that this process already uses, or that `RAY_ADDRESS` names; else starts one on this
    machine, whose ports want a token that dies with it, and whose replicas log to the standard error of this process.

    Args:
        serves: whether Serve is started too; jobs do without.

    Raises:
        ConfigError: this Ray is too old to be safe or did not start, or none answers where it was said to be.
    """

    def __init__(self, serves: bool = True) -> None:
        address = os.environ.get("RAY_ADDRESS", "local")
        if address == "local":
            _want_token()
            _stay_on_this_machine()
        else:
            _require_answer(address)
        import ray

        if tuple(map(int, ray.__version__.split(".")[:2])) < _MIN_RAY:
            raise ConfigError(f"Ray is {ray.__version__}; before 2.60 it opens unauthenticated ports, so upgrade it")
        _warn_without_token()
        self._owns_connection = not ray.is_initialized()
        self._relay: LogRelay | None = None
        if self._owns_connection:
            if address == "local" and serves and LOG_TO not in os.environ:
                self._relay = LogRelay()
            try:
                connection = ray.init(
                    address=address,
                    include_dashboard=False if address == "local" else None,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
            except ConnectionError as error:
                raise ConfigError(f"the Ray at RAY_ADDRESS {address!r} cannot be joined: {error}") from error
            except Exception as error:
                if type(error) is not Exception:  # Ray says this way that its processes did not come up in time
                    raise
                raise ConfigError(
                    f"Ray did not start: {error} Is this machine busy, or short of memory? Try again, or use the pool "
                    "in-process, which needs no Ray"
                ) from error
            _warn_of_dashboard(connection.dashboard_url)
        if not serves:
            return
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})

    def stop(self) -> None:
        """Leaves Ray where this object joined it, and ends it where this object started it."""
        import ray

        if not self._owns_connection:
            return
        started = _processes_of_ray(Path(ray.__file__).parent)
        ray.shutdown()
        # Ray's agents notice up to half a minute later that their Ray is gone.
        _, left = psutil.wait_procs(started, timeout=0)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, stubborn = psutil.wait_procs(left, timeout=_END_TIMEOUT_S)
        for process in stubborn:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._relay is not None:
            self._relay.stop()
            self._relay = None


def _require_answer(address: str) -> None:
    """Raises `ConfigError` where nobody listens at "host:port": Ray itself would try for minutes, and say little."""
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():  # "auto", or a URL: Ray's to read
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"RAY_ADDRESS is {address!r}, and no Ray answers there ({error}); start one there, or unset RAY_ADDRESS"
        ) from error


def _processes_of_ray(package: Path) -> list[psutil.Process]:
    """Returns the processes that Ray, installed in `package`, started for this one, with all that they started."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if str(package) in " ".join(child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _want_token() -> None:
    """Turns on Ray's token authentication, which Ray reads once, when it is imported."""
    if "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _stay_on_this_machine() -> None:
    """Has a Ray that is started here listen on 127.0.0.1 alone, as it does on macOS; read once, on import, as well."""
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _warn_without_token() -> None:
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode != "token":
        logger.warning(
            "RAY_AUTH_MODE is %r: whoever reaches the ports of this Ray can run code on it; start Ray with "
            "RAY_AUTH_MODE=token, or keep its ports unreachable",
            mode,
        )


def _warn_of_dashboard(url: str | None) -> None:
    host = (url or "").removeprefix("http://").rpartition(":")[0]
    if host and not is_loopback(host):
        logger.warning(
            "the dashboard of this Ray listens on %s: jobs can be started there; start Ray with "
            "--dashboard-host=127.0.0.1, or keep it unreachable",
            host,
        )
