"""What the commands that run a job share: options, and how a signal ends them."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from preceptor_service.reference.errors import JobError

V = TypeVar("V")

INTERRUPTED = 130
DEVICES: Mapping[str, Literal["auto", "cpu", "cuda"]] = {"auto": "auto", "cpu": "cpu", "cuda": "cuda"}


@contextmanager
def stopping_by_signals() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C and SIGTERM set; a second one ends the process at once."""
    stopping = threading.Event()

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def json_settings(model_config: str) -> dict[str, Any]:
    """Returns the settings that `--model-config` gives.

    Raises:
        JobError: they are not a JSON object.
    """
    try:
        settings = json.loads(model_config)
    except ValueError as error:
        raise JobError(f"--model-config is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise JobError(f'--model-config is {model_config[:64]!r}; give an object, such as {{"width": 16}}')
    return settings


def renamed(column: list[str] | None, known: list[str]) -> dict[str, str]:
    """Returns what `--column ours=theirs` says, ours → theirs.

    Raises:
        JobError: it is not of that form, or ours is not among `known`.
    """
    names = {}
    for pair in column or []:
        ours, _, theirs = pair.partition("=")
        if ours not in known or not theirs:
            raise JobError(f"--column is {pair[:64]!r}; give OURS=THEIRS, with one of {', '.join(known)} first")
        names[ours] = theirs
    return names


def choice(option: str, value: str, choices: Mapping[str, V]) -> V:
    """Returns what `value` stands for.

    Raises:
        JobError: it is not among `choices`.
    """
    if value not in choices:
        raise JobError(f"{option} is {value[:64]!r}; choose one of {', '.join(choices)}")
    return choices[value]
