"""`OnlineTraining`: one block of updates of what a run co-trains, by torch on one device. Called by the engine.

What comes out is a pure function of the version before, the run's settings and the sub-batches of the block, on the
same kind of device with the same number of threads. Nothing is kept from one block to the next.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from preceptor.errors import DivergedError, FailedPreconditionError, InternalError, ResourceExhaustedError
from preceptor.quoting import brief
from preceptor_service.co_training.blocks import Handout, handouts_of, learning_rate
from preceptor_service.co_training.journal import Columns, Journal, Reader
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.scoring.pool import Trained, TrainedModel, Trainee, Training
from preceptor_service.scoring.update_losses import UpdateLoss, has_loss, update_loss_of
from preceptor_service.scoring.update_randomness import own_random_numbers
from preceptor_service.weight_store import WeightStore

_LOSS, _OPTIMISER = "update_loss.", "optimiser."

logger = logging.getLogger(__name__)

Turn = Callable[[], AbstractContextManager[None]]
"""Waits until nobody else computes on the device, and keeps it so."""


class OnlineTraining:
    """Trains blocks on one device, for any number of threads. Holds nothing between two blocks.

    While one lasts: the model, its gradients and what the optimiser keeps, about four times the weights with AdamW.
    """

    def __init__(self, weights: WeightStore, registry: ArchitectureRegistry, device: torch.device, turn: Turn) -> None:
        self._weights = weights
        self._journal = Journal(weights.storage)
        self._registry = registry
        self._device = device
        self._turn = turn

    def train(self, training: Training) -> Trained:
        """Makes the next version's blobs, on the block that `training` names; without one the untrained model's.

        Scoring goes on between two updates.

        Raises:
            FileNotFoundError: a sub-batch of the block is not in the journal.
            DivergedError: a loss or a weight is not finite.
            FailedPreconditionError: the model cannot be trained on a sub-batch.
            WeightsNotFoundError: the version before is gone.
            InternalError: it is damaged.
        """
        started = time.perf_counter()
        online = self._trained(training, training.online, "online")
        reference = None if training.reference is None else self._trained(training, training.reference, "reference")
        return Trained(online, reference, time.perf_counter() - started)

    def _trained(self, training: Training, trainee: Trainee, reader: Reader) -> TrainedModel:
        model = _Model(training, trainee, self._registry, self._device)
        if training.block is None:
            return self._kept(model, [])
        model.restore(self._tensors(trainee.weights), self._tensors(trainee.optimiser))
        losses = []
        for step, handouts in _by_step(handouts_of(training.spec, training.block)):
            columns = _joined([self._journal.rows(training.run_id, handout, reader) for handout in handouts])
            with self._turn():
                losses.append(model.update(step, columns))
        return self._kept(model, losses)

    def _tensors(self, digest: str | None) -> dict[str, torch.Tensor]:
        if digest is None:
            return {}
        try:
            return load_file(self._weights.verify(digest))
        except SafetensorError as error:
            logger.warning("weights %s cannot be read", digest, exc_info=error)
            raise InternalError(f"weights {digest} cannot be read; the scorer's log says why") from error

    def _kept(self, model: _Model, losses: list[float]) -> TrainedModel:
        weights, optimiser = save(model.weights()), save(model.optimiser()) if losses else None
        return TrainedModel(
            weights=self._weights.put(weights),
            weights_bytes=len(weights),
            optimiser=None if optimiser is None else self._weights.put(optimiser),
            mean_loss=sum(losses) / len(losses) if losses else None,
        )


class _Model:
    """A model, what trains beside it, and the optimiser of both."""

    def __init__(
        self, training: Training, trainee: Trainee, registry: ArchitectureRegistry, device: torch.device
    ) -> None:
        self._training = training
        self._device = device
        spec = training.spec
        self._module = registry.build(trainee.architecture, json.loads(trainee.config), spec.seed).float().to(device)
        self._loss: UpdateLoss = update_loss_of(training.task, spec.contrast)
        parameters = [*self._module.parameters(), *self._loss.parameters().values()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._optimiser: torch.optim.Optimizer
        if spec.optimiser == "adamw":
            betas = (spec.beta1, spec.beta2)
            self._optimiser = torch.optim.AdamW(trained, betas=betas, weight_decay=spec.weight_decay)
        else:
            self._optimiser = torch.optim.SGD(trained, momentum=spec.momentum, weight_decay=spec.weight_decay)

    def restore(self, weights: Mapping[str, torch.Tensor], optimiser: Mapping[str, torch.Tensor]) -> None:
        """Goes to where these were taken."""
        try:
            self._module.load_state_dict(weights)
            with torch.no_grad():
                for name, value in _below(_LOSS, optimiser).items():
                    self._loss.parameters()[name].copy_(value)
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in _below(_OPTIMISER, optimiser).items():
                index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
            groups = self._optimiser.state_dict()["param_groups"]
            self._optimiser.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, KeyError, ValueError) as error:
            run_id = self._training.run_id
            logger.warning("the online model of run %s does not fit its own architecture", run_id, exc_info=error)
            raise InternalError(
                f"the online model of run {run_id!r} does not fit its own architecture; the scorer's log says why"
            ) from error

    def update(self, step: int, columns: Columns) -> float:
        """Takes one step on the mean update loss of a sub-batch, and returns that loss.

        Rows without a loss are left out; where there is no other, nothing changes and the loss is 0.
        """
        with_loss = has_loss(self._training.task, columns)
        kept = slice(None) if with_loss is None else np.flatnonzero(with_loss)
        features = {name: _tensor(values[kept]).to(self._device) for name, values in columns.items()}
        if not len(next(iter(features.values()))):
            return 0.0
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self._training.spec, step)
        self._module.train()
        self._optimiser.zero_grad()
        seed = _word(self._training.spec.seed, self._training.run_id, step)
        with _repeatable(self._device), self._understood(step):
            with own_random_numbers(seed, self._device):
                loss = self._loss.loss(self._module, features)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value) or not self._is_finite():
            spec = self._training.spec
            raise DivergedError(
                f"the online model of run {self._training.run_id!r} diverged at step {step}, its loss is {value:g}; "
                f"begin another run with a co_training.learning_rate below {spec.learning_rate:g}, or with a warm-up"
            )
        return value

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns what scores."""
        return _copied(self._module.state_dict())

    def optimiser(self) -> dict[str, torch.Tensor]:
        """Returns what else updates change."""
        found: dict[str, torch.Tensor] = {_LOSS + name: value for name, value in self._loss.parameters().items()}
        for index, values in self._optimiser.state_dict()["state"].items():
            # What has no value is there again when it is needed: SGD's momentum without momentum.
            found |= {f"{_OPTIMISER}{index}.{key}": value for key, value in values.items() if value is not None}
        return _copied(found)

    def _is_finite(self) -> bool:
        tensors = [value for value in self._module.state_dict().values() if value.is_floating_point()]
        return all(bool(value.isfinite().all()) for value in tensors)

    @contextmanager
    def _understood(self, step: int) -> Iterator[None]:
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ResourceExhaustedError(
                f"training run {self._training.run_id!r} on step {step} needs more memory than the scorer has; use a "
                "smaller online model or sub_batch_size"
            ) from error
        except (ValueError, TypeError) as error:
            raise FailedPreconditionError(
                f"the online model of run {self._training.run_id!r} cannot be trained on step {step}: {brief(error)}; "
                "begin another run with a model or a sub_batch_size that can"
            ) from error


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Within it torch prefers algorithms that give the same bits every time.

    It only warns of operators that have none, because the setting is that of the whole process, a trainer's perhaps.
    """
    if device.type == "cpu":
        yield  # every operator of a forward or backward pass adds in the same order, for the same number of threads
        return
    # Read when cuBLAS starts; without it its results may differ from one call to the next.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def _by_step(handouts: tuple[Handout, ...]) -> Iterator[tuple[int, list[Handout]]]:
    steps: dict[int, list[Handout]] = {}
    for handout in handouts:
        steps.setdefault(handout.step, []).append(handout)
    return iter(steps.items())


def _joined(ranks: list[Columns]) -> Columns:
    return {name: np.concatenate([columns[name] for columns in ranks]) for name in ranks[0]}


def _tensor(values: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _word(seed: int, run_id: str, step: int) -> int:
    digest = hashlib.blake2b(f"{seed} {run_id} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
