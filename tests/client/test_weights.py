"""Weights as a safetensors file: what the library reads back is what was pushed, in pieces, with a checksum."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from preceptor import Run
from preceptor.errors import InvalidWeightsError, UnavailableError
from preceptor.v1 import weights_pb2
from preceptor.weights import SafetensorsFile
from tests.client.fake_service import Abort, FakeService

TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def whole(file: SafetensorsFile, chunk_bytes: int = 1 << 20) -> bytes:
    data = b""
    for offset, chunk in file.chunks(chunk_bytes):
        assert offset == len(data)
        assert 0 < len(chunk) <= chunk_bytes
        data += chunk
    assert len(data) == file.total_bytes
    return data


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)])
def test_a_tensor_of_any_type_reads_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)

    read = safetensors.torch.load(whole(SafetensorsFile({"weight": tensor})))["weight"]

    assert read.dtype == dtype
    assert read.shape == tensor.shape
    assert read.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_arrays_of_mixed_types_read_back_with_numpy_and_with_a_mapped_file(tmp_path: Any) -> None:
    # Odd byte counts and names against the order of widths: readers that map the file need aligned tensors.
    arrays = {
        "a.bytes": np.arange(3, dtype=np.uint8),
        "b.floats": np.linspace(0, 1, 5, dtype=np.float32),
        "c.flags": np.array([True, False, True]),
        "d.doubles": np.array(2.5),
        "e.halves": np.arange(3, dtype=np.float16),
        "ü": np.arange(4, dtype=">i8"),
    }
    data = whole(SafetensorsFile(arrays))
    (tmp_path / "weights.safetensors").write_bytes(data)

    by_numpy = safetensors.numpy.load(data)
    mapped = safetensors.torch.load_file(tmp_path / "weights.safetensors")

    assert by_numpy.keys() == mapped.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(by_numpy[name], array)
        np.testing.assert_array_equal(mapped[name].numpy(), array)


def test_a_state_dict_of_a_module_reads_back_whatever_its_memory_layout() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(5, 2))
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = dict(module.state_dict()) | {"transposed": torch.arange(6.0).reshape(2, 3).t().bfloat16()}

    read = safetensors.torch.load(whole(SafetensorsFile(state)))

    assert read.keys() == state.keys()
    assert all(read[name].equal(tensor) for name, tensor in state.items())


def test_parameters_that_require_grad_are_accepted() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert safetensors.torch.load(whole(SafetensorsFile({"p": parameter})))["p"].equal(parameter.detach())


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 1 << 20])
def test_the_file_does_not_depend_on_the_size_of_its_pieces_or_the_order_of_names(chunk_bytes: int) -> None:
    state = {"b": np.arange(10.0), "a": np.arange(3, dtype=np.int32), "c": np.arange(10.0)}
    data = whole(SafetensorsFile(dict(reversed(state.items()))), chunk_bytes)
    assert data == whole(SafetensorsFile(state))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({}, ValueError, "no tensors"),
        ({"a": [1.0]}, TypeError, r"state_dict\['a'\] is a list"),
        ({"a": np.array(["x"])}, TypeError, "element type <U1"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, TypeError, "complex64"),
        ({"__metadata__": np.zeros(1)}, ValueError, "reserves"),
    ],
)
def test_what_safetensors_cannot_hold_is_refused(state: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SafetensorsFile(state)


def test_push_weights_sends_pieces_of_at_most_1_mib_and_returns_what_was_committed(
    service: FakeService, run: Run
) -> None:
    state = {"w": np.random.default_rng(0).normal(size=300_000), "b": np.zeros(3, np.float32)}

    pushed = run.push_weights(state, step=100, rewind=True)

    [data] = service.pushes
    np.testing.assert_array_equal(safetensors.numpy.load(data)["w"], state["w"])
    assert service.push_chunk_sizes == [1 << 20, 1 << 20, len(data) - (2 << 20)]
    [header] = service.push_headers
    assert (header.run_id, header.role, header.step) == ("digits", weights_pb2.WEIGHTS_ROLE_LEARNER, 100)
    assert (header.total_bytes, header.rewind) == (len(data), True)
    assert (pushed.version, pushed.step, pushed.replicas_loaded, pushed.replicas_asked) == (1, 100, 1, 2)
    assert pushed.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_push_reference_names_its_role(service: FakeService, run: Run) -> None:
    run.push_reference({"w": torch.zeros(2)})
    [header] = service.push_headers
    assert (header.role, header.step, header.rewind) == (weights_pb2.WEIGHTS_ROLE_REFERENCE, 0, False)


def test_a_push_is_repeated_while_the_service_is_unavailable(service: FakeService, run: Run) -> None:
    service.first_aborts["PushWeights"] = [Abort("UNAVAILABLE", "GATEWAY_DRAINING"), Abort("UNAVAILABLE")]
    assert run.push_weights({"w": np.zeros(2)}, step=1).version == 1
    assert service.calls["PushWeights"] == 3


def test_a_push_that_is_refused_is_not_repeated(service: FakeService, run: Run) -> None:
    service.aborts["PushWeights"] = Abort("INVALID_ARGUMENT", "WEIGHTS_INVALID", "tensor 'w' is not finite")
    with pytest.raises(InvalidWeightsError, match="tensor 'w' is not finite"):
        run.push_weights({"w": np.zeros(2)}, step=1)
    assert service.calls["PushWeights"] == 1


def test_a_push_names_the_last_failure_when_the_service_stays_unavailable(service: FakeService, run: Run) -> None:
    service.aborts["PushWeights"] = Abort("UNAVAILABLE", "GATEWAY_DRAINING", "gateway 3 is draining")
    with pytest.raises(UnavailableError, match=r"step 7 .*'digits'.* within 0\.2 s; last: gateway 3 is draining"):
        run.push_weights({"w": np.zeros(2)}, step=7, timeout_s=0.2)


@pytest.mark.parametrize("given", [torch.nn.Linear(2, 1), [torch.zeros(2)], None], ids=["module", "list", "none"])
def test_what_is_no_state_dict_is_refused_by_name(run: Run, given: Any) -> None:
    with pytest.raises(TypeError, match=rf"is a {type(given).__name__}; .*model\.state_dict\(\)"):
        run.push_weights(given, step=0)
