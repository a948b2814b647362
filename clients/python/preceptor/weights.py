"""A `state_dict` as a safetensors file, streamed to the service.

The encoder is our own, for two reasons: a base install stays as light as it is (no `safetensors`, no torch), and the
library's `save` builds the whole file in memory, a second copy of the weights that a trainer has no room for. Here at
most one tensor is copied at a time.

Called by `client.py`. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from preceptor.answers import PushedWeights
from preceptor.channel import Connection
from preceptor.decoding import pushed_from_proto
from preceptor.v1 import weights_pb2
from preceptor.wire import CHUNK_BYTES, with_chunk

_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
}
# Types of torch that numpy lacks, each with the integer that carries its bits.
_CARRIERS = {
    "bfloat16": ("BF16", "int16"),
    "float8_e4m3fn": ("F8_E4M3", "uint8"),
    "float8_e5m2": ("F8_E5M2", "uint8"),
}
_HEADER_ALIGNMENT = 8
_METADATA_KEY = "__metadata__"


@dataclass(frozen=True)
class _Tensor:
    name: str
    value: Any
    dtype: str
    shape: tuple[int, ...]
    item_bytes: int

    @property
    def byte_count(self) -> int:
        count = self.item_bytes
        for size in self.shape:
            count *= size
        return count


class SafetensorsFile:
    """A safetensors file that is never whole in memory.

    Tensors lie widest element type first, then by name: the same weights give the same bytes, and every tensor is
    aligned to its element type, which readers that map the file rely on. Tied tensors are written once per name.

    Args:
        state_dict: name → numpy array or torch tensor on any device, of any shape including 0-d, contiguous or not.

    Raises:
        TypeError: `state_dict` is no mapping, a value is no array or tensor, or safetensors has no name for its element
            type.
        ValueError: no tensors, or one has the name that safetensors reserves.

    Attributes:
        total_bytes: size of the file.
    """

    def __init__(self, state_dict: Mapping[str, Any]) -> None:
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"state_dict is a {type(state_dict).__name__}; give name → tensor or array, e.g. model.state_dict()"
            )
        if not state_dict:
            raise ValueError("the state_dict has no tensors; give name → tensor or array")
        tensors = [_described(name, value) for name, value in state_dict.items()]
        self._tensors = sorted(tensors, key=lambda tensor: (-tensor.item_bytes, tensor.name))
        self._header = _header(self._tensors)
        self.total_bytes = len(self._header) + sum(tensor.byte_count for tensor in self._tensors)

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, bytes) of the file in order; all but the last have `chunk_bytes`."""
        offset, chunk = 0, bytearray()
        for part in self._parts():
            start = 0
            while start < len(part):
                taken = part[start : start + chunk_bytes - len(chunk)]
                chunk += taken
                start += len(taken)
                if len(chunk) == chunk_bytes:
                    yield offset, bytes(chunk)
                    offset += len(chunk)
                    chunk.clear()
        if chunk:
            yield offset, bytes(chunk)

    def _parts(self) -> Iterator[memoryview]:
        yield memoryview(self._header)
        for tensor in self._tensors:
            yield _bytes_of(tensor.value)


def push(
    connection: Connection,
    run_id: str,
    role: weights_pb2.WeightsRole.ValueType,
    state_dict: Mapping[str, Any],
    step: int,
    rewind: bool,
    timeout_s: float,
    fold: int | None = None,
    card: weights_pb2.ReferenceCard | None = None,
) -> PushedWeights:
    """Sends weights and returns once they are durable.

    Blocks at most `timeout_s`. While the service is unavailable the push is repeated; that is safe, because the same
    (role, step, SHA-256) names one version. `state_dict` must not change meanwhile.

    Raises:
        TypeError, ValueError: as `SafetensorsFile`.
        PreceptorError: what the service said, or `UnavailableError` when it could not be reached in time.
    """
    file = SafetensorsFile(state_dict)
    header = weights_pb2.PushHeader(
        run_id=run_id, role=role, step=step, total_bytes=file.total_bytes, rewind=rewind, fold=fold, card=card
    )
    answer = connection.repeated_unary(
        "PushWeights",
        lambda: _requests(header, file),
        weights_pb2.PushWeightsResponse,
        timeout_s,
        f"weights of step {step} for run {run_id!r} were not taken",
    )
    return pushed_from_proto(answer)


def _requests(header: weights_pb2.PushHeader, file: SafetensorsFile) -> Iterator[weights_pb2.PushWeightsRequest]:
    yield weights_pb2.PushWeightsRequest(header=header)
    sha256 = hashlib.sha256()
    for offset, data in file.chunks():
        sha256.update(data)
        yield with_chunk(weights_pb2.PushWeightsRequest(), offset, data)
    yield weights_pb2.PushWeightsRequest(commit=weights_pb2.PushCommit(sha256=sha256.digest()))


def _described(name: str, value: Any) -> _Tensor:
    is_tensor = hasattr(value, "detach")
    if name == _METADATA_KEY:
        raise ValueError(f"a tensor is named {name!r}, which safetensors reserves; rename it")
    if not is_tensor and not isinstance(value, np.ndarray):
        raise TypeError(f"state_dict[{name!r}] is a {type(value).__name__}; give a numpy array or a torch tensor")
    dtype_name = str(value.dtype).removeprefix("torch.") if is_tensor else value.dtype.newbyteorder("=").name
    dtype = _DTYPES.get(dtype_name) or _CARRIERS.get(dtype_name, ("", ""))[0]
    if not dtype:
        known = ", ".join([*_DTYPES, *_CARRIERS])
        raise TypeError(f"state_dict[{name!r}] has element type {value.dtype}; it can be {known}")
    item_bytes = int(value.element_size() if is_tensor else value.dtype.itemsize)
    return _Tensor(name, value, dtype, tuple(int(size) for size in value.shape), item_bytes)


def _header(tensors: list[_Tensor]) -> bytes:
    entries: dict[str, dict[str, object]] = {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.byte_count
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(value: Any) -> memoryview:
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        carrier = _CARRIERS.get(str(tensor.dtype).removeprefix("torch."))
        if carrier is not None:
            # The caller holds a tensor, so torch is loaded; this module must not be what loads it.
            torch = sys.modules[type(tensor.dtype).__module__]
            tensor = tensor.view(getattr(torch, carrier[1]))
        value = tensor.numpy()
    array = np.asarray(value)
    little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little_endian.reshape(-1).view(np.uint8).data
