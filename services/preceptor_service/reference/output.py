"""`Output`: the directory that a training writes, whole or resumable at any moment. Called by `train_job.py`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from preceptor.weights import SafetensorsFile
from preceptor_service.models.manifest import check_weights
from preceptor_service.reference.durable import PARTIAL, locked, refuse_other, written
from preceptor_service.reference.errors import JobError

CARD, WEIGHTS = "card.json", "reference.safetensors"
_CHECKPOINT = "checkpoint.safetensors"
_METADATA = "training"

Identity = Mapping[str, Any]
"""What makes a training the same one again: name → value, for JSON."""


class Output:
    """The output directory of one training; a context manager that keeps other processes out.

    A file appears whole, under its name, or not at all. The card comes last: where it is, the training is finished.

    Args:
        directory: made where it is missing.
        identity: of the training that may write here.

    Raises (on entering):
        JobError: the directory holds other files or another training, or another process trains into it.
    """

    def __init__(self, directory: Path, identity: Identity) -> None:
        self._directory, self._identity = directory, json.loads(json.dumps(identity))
        self._lock = ExitStack()

    def __enter__(self) -> Output:
        with ExitStack() as stack:
            stack.enter_context(locked(self._directory))
            self._refuse_foreign()
            self._lock = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.close()

    def card(self) -> dict[str, Any] | None:
        """Returns the card, or None where the training is not finished.

        Raises:
            JobError: the weights beside it are not those that it names.
        """
        card = read_card(self._directory)
        if card is not None and _digest_of(self._directory / WEIGHTS) != card["weights"]["digest"]:
            raise JobError(f"{self._directory / WEIGHTS} is not what {CARD} names; remove both, train again")
        return card

    def checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Returns tensors and progress of the last checkpoint, or None where there is none."""
        path = self._directory / _CHECKPOINT
        if not path.exists():
            return None
        with _opened(path) as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}, _metadata(file)["progress"]

    def save_checkpoint(self, tensors: Mapping[str, torch.Tensor], progress: Mapping[str, Any]) -> None:
        """Replaces the checkpoint, durably."""
        metadata = {_METADATA: json.dumps({"identity": self._identity, "progress": progress})}
        with written(self._directory / _CHECKPOINT) as partial:
            save_file(dict(tensors), partial, metadata)

    def finish(self, module: nn.Module, card: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the weights, then the card, and returns the card, completed by `weights`.

        Raises:
            InvalidWeightsError: the weights are not finite.
        """
        sha256 = hashlib.sha256()
        encoded = SafetensorsFile(module.state_dict())  # as the client pushes them, so that digests are equal
        with written(self._directory / WEIGHTS) as partial:
            with partial.open("wb") as file:
                for _, chunk in encoded.chunks():
                    sha256.update(chunk)
                    file.write(chunk)
            check_weights(partial, module)
        weights = {"file": WEIGHTS, "digest": f"sha256:{sha256.hexdigest()}", "bytes": encoded.total_bytes}
        text = json.dumps({**card, "weights": weights, "identity": self._identity}, indent=2, ensure_ascii=False)
        with written(self._directory / CARD) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
        (self._directory / _CHECKPOINT).unlink(missing_ok=True)
        return dict(json.loads(text))

    def _refuse_foreign(self) -> None:
        known = {CARD, WEIGHTS, _CHECKPOINT}
        for name in sorted(os.listdir(self._directory)):
            if name.removeprefix(".").removesuffix(PARTIAL) not in known:
                raise JobError(f"{self._directory} holds {name!r}, which is no reference; name an empty directory")
        there = self._identity_there()
        if there is not None:
            refuse_other(self._directory, "another training", there, self._identity)

    def _identity_there(self) -> dict[str, Any] | None:
        card = read_card(self._directory)
        if card is not None:
            return dict(card["identity"])
        path = self._directory / _CHECKPOINT
        if not path.exists():
            return None
        with _opened(path) as file:
            return dict(_metadata(file)["identity"])


def read_card(directory: Path) -> dict[str, Any] | None:
    """Returns the card of a finished training; None where there is none.

    Raises:
        JobError: what lies there is no card of ours.
    """
    try:
        card = json.loads((directory / CARD).read_text(encoding="utf-8"))
        _ = card["identity"], card["weights"]["digest"], card["task"], card["model"], card["model_config"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{directory / CARD} is no card of ours: {error}; name another directory") from error
    return dict(card)


@contextmanager
def _opened(checkpoint: Path) -> Iterator[Any]:
    try:
        with safe_open(checkpoint, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{checkpoint} is no checkpoint of ours: {error}; remove it to train from the start") from error


def _metadata(file: Any) -> dict[str, Any]:
    return dict(json.loads((file.metadata() or {})[_METADATA]))


def _digest_of(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError:
        return None
