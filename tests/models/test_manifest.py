"""Weights that do not fit the run's architecture: which tensor, what it is, what it should be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from preceptor.errors import InvalidWeightsError
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.models.manifest import check_weights

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def outline() -> torch.nn.Module:
    registry = ArchitectureRegistry({"own": "tests.models.architectures:norm_dropout"})
    return registry.outline("own", {})


@pytest.fixture
def state() -> State:
    registry = ArchitectureRegistry({"own": "tests.models.architectures:norm_dropout"})
    return registry.build("own", {}).state_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_the_model_fit(path: Path, outline: torch.nn.Module, state: State, dtype: torch.dtype) -> None:
    save_file(
        {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}, path
    )

    check_weights(path, outline)


NAN, INFINITY = float("nan"), float("inf")
FEW = dict.fromkeys(("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "head.weight"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"head.bias": None}, "1 tensor missing: head.bias;"),
        (FEW, "5 tensors missing: head.weight, norm.bias, norm.running_mean and 2 more;"),
        (
            {"head.bias": None, "noise": torch.zeros(4)},
            "1 tensor missing: head.bias, and 1 tensor not in the run's model: noise;",
        ),
        ({"noise": torch.zeros(4)}, "1 tensor not in the run's model: noise;"),
        ({"../../etc/passwd": torch.zeros(4)}, "not in the run's model: ../../etc/passwd;"),
        ({"head.bias": torch.zeros(2)}, "head.bias has shape [2], expected [3]"),
        ({"head.bias": torch.zeros(3, 1)}, "head.bias has shape [3, 1], expected [3]"),
        ({"head.bias": torch.zeros(3).double()}, "head.bias has type F64, expected F32 or BF16 or F16"),
        ({"head.bias": torch.zeros(3).long()}, "head.bias has type I64, expected F32"),
        ({"norm.num_batches_tracked": torch.tensor(1.0)}, "num_batches_tracked has type F32, expected I64"),
        ({"norm.num_batches_tracked": torch.tensor(1).int()}, "num_batches_tracked has type I32, expected I64"),
        ({"head.bias": torch.tensor([NAN, 1, NAN])}, "1 tensor with NaN or infinity: head.bias (2 of 3 values);"),
        ({"norm.running_var": torch.tensor([-INFINITY, 1, 1, 1])}, "norm.running_var (1 of 4 values);"),
        ({"head.bias": torch.full((3,), 1e6).half()}, "head.bias (3 of 3 values);"),
    ],
)
def test_a_misfit_is_named(
    path: Path, outline: torch.nn.Module, state: State, changes: dict[str, torch.Tensor | None], complaint: str
) -> None:
    changed = {**state, **changes}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)

    with pytest.raises(InvalidWeightsError, match=re.escape(complaint)):
        check_weights(path, outline)


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        ("module.", "DistributedDataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("module._orig_mod.", "DistributedDataParallel and torch.compile"),
    ],
)
def test_the_state_of_a_wrapped_model_is_recognised(
    path: Path, outline: torch.nn.Module, state: State, prefix: str, wrapper: str
) -> None:
    save_file({prefix + name: tensor for name, tensor in state.items()}, path)

    complaint = f"'{prefix}', which comes from {wrapper}; push model.{prefix}state_dict()"
    with pytest.raises(InvalidWeightsError, match=re.escape(complaint)):
        check_weights(path, outline)


def test_a_model_with_a_part_named_like_a_wrapper_is_not_taken_for_wrapped(path: Path) -> None:
    inner = torch.nn.Module()
    inner.module = torch.nn.Linear(2, 3)
    save_file(inner.state_dict(), path)
    check_weights(path, inner)

    save_file({f"module.{name}": tensor for name, tensor in inner.state_dict().items()}, path)
    with pytest.raises(InvalidWeightsError, match=re.escape("push model.module.state_dict()")):
        check_weights(path, inner)

    save_file({"module.kernel": torch.zeros(3, 2)}, path)
    with pytest.raises(InvalidWeightsError, match=r"1 tensor not in the run's model: module\.kernel; push the whole"):
        check_weights(path, inner)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"garbage",
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: data + b"\0",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data.replace(b'"F32"', b'"F99"', 1),
        lambda data: data.replace(b"data_offsets", b"data_offsetz", 1),
    ],
)
def test_a_malformed_file(path: Path, outline: torch.nn.Module, state: State, spoil: Callable[[bytes], bytes]) -> None:
    path.write_bytes(spoil(save(state)))

    with pytest.raises(InvalidWeightsError, match="not a safetensors file"):
        check_weights(path, outline)
