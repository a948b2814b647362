"""`Journal`: the sub-batches of a co-trained run, durable before they are answered. Called by gateways and scorers.

    runs/<run_id>/…/journal/<step>-<rank>.safetensors                rows and answer of one sub-batch
    runs/<run_id>/…/answers/<first step>-<last step>-<bytes>.safetensors   answers alone, once their rows are trained on

A sub-batch is handed out by the exclusive creation of its file: whoever comes second gets what was handed out.
Everything here is safetensors, text in its header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from preceptor.errors import InternalError
from preceptor.quoting import brief
from preceptor_service.co_training.blocks import Handout
from preceptor_service.storage import Storage
from preceptor_service.weight_staging import disk_errors

_JOURNAL, _ANSWERS = "journal", "answers"
FOLDERS = (_JOURNAL, _ANSWERS)
"""What a run has of it in the store, beside its versions."""

FILE_NAME = r"\d{19}-\d{5}(?:\d{14}-\d+)?\.safetensors"
"""What the names in these folders match."""

_ENTRY = re.compile(r"(\d{19})-(\d{5})\.safetensors")
_KEPT = re.compile(r"(\d{19})-(\d{19})-(\d+)\.safetensors")
Reader = Literal["online", "reference"]
"""Who is trained on rows."""

_PREFIXES: Mapping[Reader, str] = {"online": "column.", "reference": "reference."}
_FIELDS_BYTES = 512
"""About what the fields of fixed size take in memory."""
_ARRAYS = ("indices", "scores", "weights")


@dataclass(frozen=True)
class Answer:
    """What a trainer was told.

    Attributes:
        identity: of what it asked.
        indices: int64 `[b]`, in the order drawn.
        scores: float32 `[B]`; empty where nothing was scored.
        weights: importance weights, float32 `[b]`; empty where the selector has none.
        learner_version, learner_step: behind the scores; None where there is none.
        fallback: why the draw was uniform; None where it was no fallback.
        non_finite_count: candidates that were left out.
    """

    identity: str
    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    learner_version: int | None
    learner_step: int | None
    fallback: str | None
    non_finite_count: int

    @property
    def total_bytes(self) -> int:
        """Bytes in memory, about."""
        return _FIELDS_BYTES + self.indices.nbytes + self.scores.nbytes + self.weights.nbytes


Columns = Mapping[str, NDArray[np.generic]]
"""Rows of a sub-batch: name → `[b, ...]`, in the order drawn."""


@dataclass(frozen=True)
class Kept:
    """Answers to the steps from `first_step` to `last_step`, in one file."""

    first_step: int
    last_step: int
    total_bytes: int
    name: str


class Journal:
    """The journals of all runs. Safe for any number of threads and processes at once; every method blocks.

    Every method raises `UnavailableError` where an object store cannot be reached; `open` and `create` raise
    `FileNotFoundError` where the run is gone.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def open(self, run_id: str) -> str:
        """Returns the folder for the entries of the present life of a run."""
        self._storage.open_versions(run_id, _ANSWERS)
        return self._storage.open_versions(run_id, _JOURNAL)

    def create(self, folder: str, handout: Handout, content: bytes) -> bool:
        """Hands a sub-batch out, durably, once for all; False where it was handed out before.

        Raises:
            DiskFullError: there is no space.
        """
        with disk_errors():
            return self._storage.create(f"{folder}/{_name(handout)}", content)

    def discard(self, folder: str, handout: Handout) -> None:
        """Takes back what `create` of this very caller handed out."""
        with suppress(FileNotFoundError):
            self._storage.remove(f"{folder}/{_name(handout)}")

    def handouts(self, run_id: str) -> set[Handout]:
        """Returns what was handed out and not cleared away."""
        folder = self._storage.find_versions(run_id, _JOURNAL)
        names = [] if folder is None else self._storage.names(folder)
        return {Handout(int(match[1]), int(match[2])) for name in names if (match := _ENTRY.fullmatch(name))}

    def rows(self, run_id: str, handout: Handout, reader: Reader = "online") -> Columns:
        """Returns the rows that `reader` is trained on.

        Raises:
            FileNotFoundError: it was cleared away, or never handed out.
            InternalError: it is damaged.
        """
        tensors, _ = self._read(run_id, handout)
        prefix = _PREFIXES[reader]
        return {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}

    def answer(self, run_id: str, handout: Handout) -> Answer | None:
        """Returns what was answered when it was handed out; None where that is not kept.

        Raises:
            InternalError: it is damaged.
        """
        try:
            tensors, texts = self._read(run_id, handout)
            return _answer(tensors, texts[_key(handout)])
        except FileNotFoundError:
            pass
        for kept in self.kept(run_id):
            if kept.first_step <= handout.step <= kept.last_step:
                with suppress(FileNotFoundError):  # dropped to stay in bounds
                    tensors, texts = _parsed(self._storage.read_once(kept.name), kept.name)
                    if _key(handout) in texts:
                        prefix = f"{_key(handout)}."
                        own = {
                            name.removeprefix(prefix): value
                            for name, value in tensors.items()
                            if name.startswith(prefix)
                        }
                        return _answer(own, texts[_key(handout)])
        return None

    def kept(self, run_id: str) -> list[Kept]:
        """Returns what is kept of answers, oldest step first."""
        folder = self._storage.find_versions(run_id, _ANSWERS)
        names = [] if folder is None else sorted(self._storage.names(folder))
        found = [match for name in names if (match := _KEPT.fullmatch(name))]
        return [Kept(int(match[1]), int(match[2]), int(match[3]), f"{folder}/{match[0]}") for match in found]

    def clear(
        self, run_id: str, before_step: int, limit_bytes: int, known: Callable[[Handout], Answer | None]
    ) -> set[Handout]:
        """Removes the rows of steps before `before_step`, which are trained on; keeps their answers, within bounds.

        Args:
            run_id: the run.
            before_step: the first step that is not trained on.
            limit_bytes: of all answers that are kept of the run; oldest out.
            known: answers that need not be read.

        Returns:
            What was cleared away.
        """
        folder, kept_in = (self._storage.find_versions(run_id, role) for role in (_JOURNAL, _ANSWERS))
        trained = sorted(handout for handout in self.handouts(run_id) if handout.step < before_step)
        if not trained or folder is None or kept_in is None:
            return set()
        content = _answers_content((handout, known(handout) or self.answer(run_id, handout)) for handout in trained)
        with disk_errors():
            first, last = trained[0].step, trained[-1].step
            self._storage.create(f"{kept_in}/{first:019d}-{last:019d}-{len(content)}.safetensors", content)
        for handout in trained:
            self.discard(folder, handout)
        self._bound(run_id, limit_bytes)
        return set(trained)

    def _bound(self, run_id: str, limit_bytes: int) -> None:
        kept = self.kept(run_id)
        total = sum(one.total_bytes for one in kept)
        for oldest in kept:
            if total <= limit_bytes:
                return
            with suppress(FileNotFoundError):
                self._storage.remove(oldest.name)
            total -= oldest.total_bytes

    def _read(self, run_id: str, handout: Handout) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
        folder = self._storage.find_versions(run_id, _JOURNAL)
        if folder is None:
            raise FileNotFoundError(run_id)
        name = f"{folder}/{_name(handout)}"
        return _parsed(self._storage.read_once(name), name)


def entry_content(handout: Handout, rows: Mapping[Reader, Columns], answer: Answer) -> bytes:
    """Returns what is written of one super-batch: the sub-batch, what else is trained on, and the answer."""
    tensors = {
        _PREFIXES[reader] + name: np.ascontiguousarray(values)
        for reader, columns in rows.items()
        for name, values in columns.items()
    }
    tensors |= {name: np.ascontiguousarray(getattr(answer, name)) for name in _ARRAYS}
    return save(tensors, {_key(handout): _described(answer)})


def check_content(content: bytes, name: str) -> None:
    """Checks that a file of a journal can be read.

    Raises:
        InternalError: it cannot.
    """
    tensors, texts = _parsed(content, name)
    try:
        for key, text in texts.items():
            prefix = "" if "indices" in tensors else f"{key}."
            _answer({each: tensors[prefix + each] for each in _ARRAYS}, text)
    except (KeyError, TypeError, ValueError) as error:
        raise InternalError(f"{name} is damaged: {brief(error)}") from error


def _answers_content(answers: Iterable[tuple[Handout, Answer | None]]) -> bytes:
    tensors: dict[str, NDArray[Any]] = {}
    texts: dict[str, str] = {}
    for handout, answer in answers:
        if answer is not None:
            tensors |= {f"{_key(handout)}.{name}": np.ascontiguousarray(getattr(answer, name)) for name in _ARRAYS}
            texts[_key(handout)] = _described(answer)
    return save(tensors, texts)


def _parsed(content: bytes, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    try:
        header_bytes = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + header_bytes])
        return load(content), dict(header.get("__metadata__", {}))
    except (SafetensorError, ValueError) as error:
        raise InternalError(f"{name} is damaged in the store: {brief(error)}") from error


def _answer(tensors: Mapping[str, NDArray[Any]], text: str) -> Answer:
    return Answer(indices=tensors["indices"], scores=tensors["scores"], weights=tensors["weights"], **json.loads(text))


def _described(answer: Answer) -> str:
    return json.dumps(
        {
            "identity": answer.identity,
            "learner_version": answer.learner_version,
            "learner_step": answer.learner_step,
            "fallback": answer.fallback,
            "non_finite_count": answer.non_finite_count,
        },
        sort_keys=True,
    )


def _name(handout: Handout) -> str:
    return f"{handout.step:019d}-{handout.rank:05d}.safetensors"


def _key(handout: Handout) -> str:
    return f"{handout.step}/{handout.rank}"
