"""`ModelLoader`: from a committed set of weights to a module that is ready to score. Called by the model cache."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from functools import lru_cache
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from preceptor.errors import InternalError, ResourceExhaustedError
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.scoring.pool import ModelRef
from preceptor_service.weight_store import WeightStore

_ARCHITECTURES_HELD = 64

logger = logging.getLogger(__name__)


class ModelLoader:
    """Loads models onto one device in float32, in eval mode. Safe for several threads.

    Holds the skeletons of the architectures used last, so that the next version of a learner costs reading
    its weights and nothing else.
    """

    def __init__(self, weights: WeightStore, registry: ArchitectureRegistry, device: torch.device) -> None:
        self._weights = weights
        self._registry = registry
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._total_bytes = lru_cache(maxsize=_ARCHITECTURES_HELD)(self._measured)
        self._skeleton = lru_cache(maxsize=_ARCHITECTURES_HELD)(self._built)

    def total_bytes(self, ref: ModelRef) -> int:
        """Returns the bytes that the loaded model takes, known without building it.

        Raises:
            InvalidRunError: the registry does not know the architecture or a setting of it.
        """
        return self._total_bytes(ref.architecture, ref.config)

    def load(self, ref: ModelRef) -> nn.Module:
        """Returns the model, its file's checksum verified.

        Raises:
            WeightsNotFoundError: the store does not have the weights.
            InternalError: they are damaged, or do not fit the architecture.
            ResourceExhaustedError: the device has too little memory for them.
        """
        path = self._weights.verify(ref.digest)
        module = copy.deepcopy(self._skeleton(ref.architecture, ref.config))
        # A stream of its own keeps the copies from standing between two forward passes.
        stream = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        try:
            with stream, safe_open(path, framework="pt") as file:
                module.load_state_dict({name: self._placed(file, name) for name in list(file.keys())}, assign=True)
                module = module.to(self._device)
        except torch.OutOfMemoryError as error:
            raise ResourceExhaustedError(
                f"weights {ref.digest} need more memory than the scorer has; use a smaller model or lower "
                "scorer.model_bytes"
            ) from error
        except (SafetensorError, RuntimeError) as error:
            logger.warning("weights %s cannot be loaded into %s", ref.digest, ref.architecture, exc_info=error)
            raise InternalError(
                f"weights {ref.digest} cannot be loaded into {ref.architecture!r}; the scorer's log says why"
            ) from error
        if self._stream is not None:
            self._stream.synchronize()
        return module.eval().requires_grad_(False)

    def _placed(self, file: Any, name: str) -> torch.Tensor:
        tensor: torch.Tensor = file.get_tensor(name)
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        # Copied out of the mapped file: a page read back from a slow disk would stall a forward pass.
        return tensor.to(self._device, dtype, copy=True)

    def _measured(self, architecture: str, config: str) -> int:
        outline = self._registry.outline(architecture, json.loads(config))
        return sum(tensor.nbytes for tensor in (*outline.parameters(), *outline.buffers()))

    def _built(self, architecture: str, config: str) -> nn.Module:
        module = self._registry.build(architecture, json.loads(config))
        on_meta = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
        module.load_state_dict(on_meta, assign=True)
        return module
