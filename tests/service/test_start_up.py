"""Starting where it cannot work: ports that are taken, settings that make no sense."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from preceptor import SelectionClient
from preceptor_service.app import RunningService, start_service
from preceptor_service.config import ConfigError
from tests.service import digits
from tests.service.conftest import config, target_of, wait_until


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("pool", ["in-process", "ray"])
@pytest.mark.parametrize(("section", "option"), [("gateway", "--port"), ("metrics", "--metrics-port")])
def test_a_taken_port_is_named_with_the_option_that_changes_it(
    tmp_path: Path, taken: int, pool: str, section: str, option: str
) -> None:
    settings = config(tmp_path, pool=pool, **{section: {"port": taken}})
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{taken}: .*; choose another with {option}$"):
        start_service(settings)


def test_a_port_that_was_taken_can_be_used_later(start: Callable[..., RunningService], taken: int) -> None:
    with pytest.raises(ConfigError):
        start(gateway={"port": taken})
    assert start().ports.grpc != taken


def test_two_services_do_not_share_a_port_by_accident(start: Callable[..., RunningService]) -> None:
    first = start()
    with pytest.raises(ConfigError, match=str(first.ports.grpc)):
        start(gateway={"port": first.ports.grpc})


def test_a_host_that_is_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        start_service(config(tmp_path, gateway={"host": "192.0.2.1", "port": 7600}))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("os:nothing_of_the_kind", "cannot be imported"),
        ("no.such.module:f", "cannot be imported"),
        ("nonsense", "cannot be imported"),
        ("os:sep", "must be a function"),
    ],
)
def test_an_architecture_that_cannot_be_imported_is_named(tmp_path: Path, path: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"architectures.mine is '{path}'.*{text}"):
        start_service(config(tmp_path, architectures={"mine": path}))


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"weights\.path"):
        start_service(config(file))


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"scorer\.device is 'cuda', and torch finds no GPU here"):
        start_service(config(tmp_path, scorer={"device": "cuda"}))


def test_a_service_that_was_stopped_leaves_no_thread(start: Callable[..., RunningService]) -> None:
    before = set(threading.enumerate())
    service = start()
    with SelectionClient(target_of(service)) as client:
        run = client.create_run(digits.spec("ended", score="hard_learner"))
        run.push_weights(digits.weights(1), step=0)
        run.select(digits.candidates(1), 4, step=1)
    service.stop()

    def left() -> list[str]:
        return [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("preceptor-")]

    wait_until(lambda: left() == [], "its threads ended")
