"""`ScoringEngine`: losses of micro-batches and blocks of training, by torch on one device. No Ray, no gRPC."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from preceptor.errors import OverloadedError, ResourceExhaustedError
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.scoring.loading import ModelLoader
from preceptor_service.scoring.model_cache import ModelCache, Want
from preceptor_service.scoring.online_training import OnlineTraining
from preceptor_service.scoring.pool import (
    Losses,
    Measure,
    MicroBatch,
    ModelRef,
    ScoringModels,
    Trained,
    Training,
)
from preceptor_service.tasks import Task, task_named
from preceptor_service.weight_store import WeightStore

_TURN_TIMEOUT_S = 60.0
_NO_MEMORY = ("allocate memory", "CUDA error: out of memory")
"""What a plain RuntimeError says: on a CPU; on a GPU where CUDA itself finds no room."""


class ScoringEngine:
    """Scores micro-batches with the models that they name, loading those it does not hold.

    Eval mode and inference mode, float32, so that candidates leave no trace in batch-norm or dropout. The
    same micro-batch, of the same number of rows, gives the same losses on the same kind of device.

    Safe for any number of threads: one forward pass or update runs at a time, while weights load beside it.
    Blocking. Holds at most `model_bytes` of models, and one micro-batch on the device.

    Args:
        weights: where the models' weights are.
        registry: where their architectures are.
        device: `"auto"` takes the first GPU where there is one.
        threads: of one forward pass on a CPU, for the whole process; None leaves torch's setting.
        model_bytes: bound on the models held.
    """

    def __init__(
        self,
        weights: WeightStore,
        registry: ArchitectureRegistry,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        model_bytes: int = 4 << 30,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = _device(device)
        loader = ModelLoader(weights, registry, self._device)
        self._models: ModelCache[nn.Module] = ModelCache(model_bytes, loader.total_bytes, loader.load)
        self._turn = threading.Lock()  # held for one forward pass, or one update
        self._training = OnlineTraining(weights, registry, self._device, self._one_at_a_time)

    @property
    def device(self) -> str:
        """Where models run: `"cpu"` or `"cuda"`."""
        return self._device.type

    def device_works(self) -> bool:
        """Tells whether the device computes: after some errors a GPU never does again, in this process. Blocking."""
        try:
            return float(torch.ones(8, device=self._device).sum()) == 8.0
        except torch.OutOfMemoryError:
            return True
        except RuntimeError:
            return False

    def loaded(self) -> tuple[ModelRef, ...]:
        """Returns the models held now, least recently used first."""
        return self._models.held()

    def holds(self, models: ScoringModels) -> bool:
        """Tells whether `losses` could start without loading anything."""
        return {want.ref for want in _wants(models)} <= set(self._models.held())

    def load(self, models: ScoringModels) -> None:
        """Loads what is not held yet. Scoring goes on meanwhile.

        Raises:
            WeightsNotFoundError: the store does not have the weights.
            InternalError: they are damaged.
            TooLargeError: the models exceed `model_bytes`.
            OverloadedError: other models in use leave no room.
        """
        with self._models.lease(_wants(models)):
            pass

    def losses(self, models: ScoringModels, batch: MicroBatch) -> Losses:
        """Returns what `models` asks for of the candidates in `batch`: losses, gradient norms.

        Raises:
            ResourceExhaustedError: the device has too little memory for the forward pass.
            PreceptorError: as `load`.
        """
        task = task_named(models.task)
        is_held, started = self.holds(models), time.perf_counter()
        with self._models.lease(_wants(models)) as modules:
            loaded = time.perf_counter()
            by_ref = dict(zip((want.ref for want in _wants(models)), modules, strict=True))
            with self._one_at_a_time(), _out_of_memory(batch):
                turn = time.perf_counter()
                found: dict[tuple[ModelRef | None, Measure], NDArray[np.float32]] = {
                    (ref, measure): self._forward(task, by_ref[ref], measure, batch)
                    for ref, measure in models.forward_passes
                }
                forward_s = time.perf_counter() - turn
        return Losses(
            learner=found.get((models.learner, "loss")) if "loss" in models.learner_measures else None,
            reference=found.get((models.reference, "loss")),
            forward_s=forward_s,
            load_s=0.0 if is_held else loaded - started,
            learner_gradient_norms=found.get((models.learner, "gradient_norm")),
            reference_fold_1=found.get((models.reference_fold_1, "loss")),
        )

    def train(self, training: Training) -> Trained:
        """Trains one block of a run's online model; see `OnlineTraining.train`. Takes turns with forward passes.

        Not counted in `model_bytes`: the model under training, about four times its weights.
        """
        return self._training.train(training)

    def _forward(self, task: Task, module: nn.Module, measure: Measure, batch: MicroBatch) -> NDArray[np.float32]:
        compute = getattr(task, measure)
        with torch.inference_mode(), _same_every_time(self._device):
            features = {name: _tensor(values).to(self._device) for name, values in batch.columns.items()}
            values: torch.Tensor = compute(module, features)[: batch.row_count]
            return values.to("cpu", torch.float32).numpy()

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=_TURN_TIMEOUT_S):
            raise OverloadedError(f"a scorer did not come free within {_TURN_TIMEOUT_S} s; offer fewer candidates")
        try:
            yield
        finally:
            self._turn.release()


def _wants(models: ScoringModels) -> list[Want]:
    wants = [Want(models.learner, models.run_id)] if models.learner else []
    return [*wants, *(Want(reference, None) for reference in models.references)]


def _device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("scorer.device is 'cuda', and torch finds no GPU here; set 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _tensor(values: NDArray[np.generic]) -> torch.Tensor:
    # Torch has no read-only tensors and warns where it is given read-only memory, so such memory is copied.
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _same_every_time(device: torch.device) -> contextlib.AbstractContextManager[None]:
    if device.type == "cpu":
        return contextlib.nullcontext()
    # cuDNN would time several algorithms and may take another one next time, or round to TF32.
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


@contextmanager
def _out_of_memory(batch: MicroBatch) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_known and not any(text in str(error) for text in _NO_MEMORY):
            raise
        raise ResourceExhaustedError(
            f"a forward pass of {batch.rows} rows needs more memory than the scorer has; "
            "use a smaller model or lower scorer.micro_batch_rows"
        ) from error
