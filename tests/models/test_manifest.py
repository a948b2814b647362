"""Weights that do not fit the run's architecture: which tensor, what it is, what it should be."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import save, save_file

from preceptor.errors import InvalidWeightsError, UnavailableError
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


def test_a_name_of_a_thousand_wrappers_is_told_at_once(path: Path, outline: torch.nn.Module) -> None:
    save_file({"module." * 1_000_000 + "head.weight": torch.zeros(1)}, path)

    with pytest.raises(InvalidWeightsError) as raised:
        check_weights(path, outline)
    assert len(str(raised.value)) < 1000


def test_a_shape_of_many_dimensions_is_shown_shortened(path: Path, outline: torch.nn.Module, state: State) -> None:
    header = {name: {"dtype": "F32", "shape": [0] * 100_000, "data_offsets": [0, 0]} for name in state}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)

    with pytest.raises(InvalidWeightsError, match=r"norm\.weight has shape \[0, 0, ") as raised:
        check_weights(path, outline)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files", "/srv/store/staging/1f.upload"), MemoryError("of /srv/store")],
)
def test_what_is_wrong_with_the_service_is_not_put_down_to_the_weights(
    path: Path, outline: torch.nn.Module, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr("preceptor_service.models.manifest.safe_open", failing)
    with pytest.raises(UnavailableError, match=r"^the weights cannot be checked now; push again") as raised:
        check_weights(path, outline)
    assert "/srv" not in str(raised.value)


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
