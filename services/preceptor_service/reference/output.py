"""`Output`: the directory that a training writes, whole or resumable at any moment. Called by `train_job.py`."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from preceptor.weights import SafetensorsFile
from preceptor_service.models.manifest import check_weights
from preceptor_service.reference.errors import JobError
from preceptor_service.weight_staging import make_directory, sync_directory

CARD, WEIGHTS = "card.json", "reference.safetensors"
_CHECKPOINT, _PARTIAL = "checkpoint.safetensors", ".partial"
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
        self._lock = -1

    def __enter__(self) -> Output:
        try:
            make_directory(self._directory)
            self._lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise JobError(f"another process trains into {self._directory}; wait for it") from error
        except OSError as error:
            raise JobError(f"{self._directory} cannot be written to: {error.strerror}") from error
        try:
            self._refuse_foreign()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def card(self) -> dict[str, Any] | None:
        """Returns the card, or None where the training is not finished.

        Raises:
            JobError: the weights beside it are not those that it names.
        """
        card = self._read_card()
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
        partial = self._partial(_CHECKPOINT)
        metadata = {_METADATA: json.dumps({"identity": self._identity, "progress": progress})}
        with _disk(self._directory):
            save_file(dict(tensors), partial, metadata)
            self._publish(partial, _CHECKPOINT)

    def finish(self, module: nn.Module, card: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the weights, then the card, and returns the card, completed by `weights`.

        Raises:
            InvalidWeightsError: the weights are not finite.
        """
        partial, sha256 = self._partial(WEIGHTS), hashlib.sha256()
        encoded = SafetensorsFile(module.state_dict())  # as the client pushes them, so that digests are equal
        with _disk(self._directory):
            with partial.open("wb") as file:
                for _, chunk in encoded.chunks():
                    sha256.update(chunk)
                    file.write(chunk)
            check_weights(partial, module)
            self._publish(partial, WEIGHTS)
            weights = {"file": WEIGHTS, "digest": f"sha256:{sha256.hexdigest()}", "bytes": encoded.total_bytes}
            text = json.dumps({**card, "weights": weights, "identity": self._identity}, indent=2, ensure_ascii=False)
            partial = self._partial(CARD)
            partial.write_text(text + "\n", encoding="utf-8")
            self._publish(partial, CARD)
            (self._directory / _CHECKPOINT).unlink(missing_ok=True)
        return dict(json.loads(text))

    def _refuse_foreign(self) -> None:
        known = {CARD, WEIGHTS, _CHECKPOINT}
        for name in sorted(os.listdir(self._directory)):
            if name.removeprefix(".").removesuffix(_PARTIAL) not in known:
                raise JobError(f"{self._directory} holds {name!r}, which is no reference; name an empty directory")
        there = self._identity_there()
        for name, value in (there or {}).items():
            if self._identity.get(name) != value:
                raise JobError(
                    f"{self._directory} holds another training: {name} is {_shown(value)} there and "
                    f"{_shown(self._identity.get(name))} here; name another directory"
                )

    def _identity_there(self) -> dict[str, Any] | None:
        card = self._read_card()
        if card is not None:
            return dict(card["identity"])
        path = self._directory / _CHECKPOINT
        if not path.exists():
            return None
        with _opened(path) as file:
            return dict(_metadata(file)["identity"])

    def _read_card(self) -> dict[str, Any] | None:
        try:
            card = json.loads((self._directory / CARD).read_text(encoding="utf-8"))
            _ = card["identity"], card["weights"]["digest"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JobError(f"{self._directory / CARD} is no card of ours: {error}; name another directory") from error
        return dict(card)

    def _partial(self, name: str) -> Path:
        return self._directory / f".{name}{_PARTIAL}"

    def _publish(self, partial: Path, name: str) -> None:
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(self._directory / name)
        sync_directory(self._directory)


@contextmanager
def _opened(checkpoint: Path) -> Iterator[Any]:
    try:
        with safe_open(checkpoint, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{checkpoint} is no checkpoint of ours: {error}; remove it to train from the start") from error


def _metadata(file: Any) -> dict[str, Any]:
    return dict(json.loads((file.metadata() or {})[_METADATA]))


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise JobError(f"{directory} cannot be written to: {error}; free space and start again, it goes on") from error


def _digest_of(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError:
        return None


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "…"
