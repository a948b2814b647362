"""`check_weights`: whether a safetensors file fits an architecture, before it is committed. Called by the gateway."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from preceptor.errors import InvalidWeightsError, UnavailableError
from preceptor.quoting import brief, quoted

_FLOATING = ("F32", "BF16", "F16")
_EXACT = {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
_WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}
_MOST_WRAPPERS = 4
_SHOWN_TENSORS = 3
_SHOWN_CHARACTERS = 200
_PIECE_ELEMENTS = 1 << 22

logger = logging.getLogger(__name__)


def check_weights(path: Path, outline: nn.Module) -> None:
    """Checks names, shapes, types and values of weights against an architecture. Reads the file once.

    Floating-point tensors may be float32, bfloat16 or float16; others must have the architecture's type.
    Holds one tensor at a time beside the mapped file.

    Args:
        path: a safetensors file.
        outline: the model, on the meta device or not; only shapes and types of its state dict are read.

    Raises:
        InvalidWeightsError: the file is malformed, or a tensor is missing, extra, misshapen, of another
            type, or not finite; names the first ones and says how many.
        UnavailableError: the file cannot be read now, for want of memory or files.
    """
    expected: dict[str, torch.Tensor] = outline.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            found = set(file.keys())
            missing, extra = sorted(expected.keys() - found), sorted(found - expected.keys())
            if missing or extra:
                faults = [_fault(missing, "missing")] if missing else []
                faults += [_fault(extra, "not in the run's model")] if extra else []
                raise InvalidWeightsError(
                    f"the weights have {', and '.join(faults)}; {_remedy(missing, extra, found, expected.keys())}"
                )
            _refuse(
                list(_misfits(file, expected)),
                "that do not fit",
                "create the run with the settings of the model you push",
            )
            _refuse(list(_non_finite(file, expected)), "with NaN or infinity", "go back to a checkpoint before it")
    except (SafetensorError, ValueError) as error:
        raise InvalidWeightsError(f"the weights are not a safetensors file: {brief(error)}") from error
    except (OSError, MemoryError) as error:
        logger.warning("the weights in %s cannot be checked: %r", path, error)
        raise UnavailableError(
            "the weights cannot be checked now; push again, and if it stays so, the service's log says why"
        ) from error


def _refuse(tensors: list[str], fault: str, remedy: str) -> None:
    if tensors:
        raise InvalidWeightsError(f"the weights have {_fault(tensors, fault)}; {remedy}")


def _fault(tensors: list[str], fault: str) -> str:
    noun = "tensor" if len(tensors) == 1 else "tensors"
    shown = ", ".join(tensor[:_SHOWN_CHARACTERS] for tensor in tensors[:_SHOWN_TENSORS])
    more = f" and {len(tensors) - _SHOWN_TENSORS} more" if len(tensors) > _SHOWN_TENSORS else ""
    return f"{len(tensors)} {noun} {fault}: {shown}{more}"


def _remedy(missing: list[str], extra: list[str], found: Set[str], expected: Set[str]) -> str:
    prefix = _wrapping(found, expected)
    if prefix:
        wrappers = " and ".join(wrapper for name, wrapper in _WRAPPERS.items() if name in prefix)
        return f"every name starts with {prefix!r}, which comes from {wrappers}; push model.{prefix}state_dict()"
    if not missing:
        return "push what its state_dict holds and no more"
    return "push the whole state_dict of the run's model" + (", and no more" if extra else "")


def _wrapping(found: Set[str], expected: Set[str]) -> str:
    """Returns what wrappers put before all names; nothing where the names say so little."""
    prefix = ""
    for _ in range(_MOST_WRAPPERS):
        if not found or any(prefix + name in found for name in expected):
            break
        added = next((name for name in _WRAPPERS if all(tensor.startswith(prefix + name) for tensor in found)), None)
        if added is None:
            # Weights of another model, wrapped; or of one with a part of that name.
            return "" if any(name.startswith(prefix) for name in expected) else prefix
        prefix += added
    return prefix


def _misfits(file: Any, expected: dict[str, torch.Tensor]) -> Iterable[str]:
    for name, tensor in expected.items():
        piece = file.get_slice(name)
        shape, dtype = list(piece.get_shape()), piece.get_dtype()
        wanted = _FLOATING if tensor.is_floating_point() else (_EXACT.get(tensor.dtype, str(tensor.dtype)),)
        if shape != list(tensor.shape):
            yield f"{name} has shape {quoted(shape)}, expected {list(tensor.shape)}"
        elif dtype not in wanted:
            yield f"{name} has type {dtype}, expected {' or '.join(wanted)}"


def _non_finite(file: Any, expected: dict[str, torch.Tensor]) -> Iterable[str]:
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            count = sum(
                piece.numel() - int(piece.isfinite().sum())
                for piece in file.get_tensor(name).reshape(-1).split(_PIECE_ELEMENTS)
            )
            if count:
                yield f"{name} ({count} of {tensor.numel()} values)"
