"""What a task asks of a super-batch, and the loss that it gives."""

from __future__ import annotations

import math
import subprocess
import sys

import pyarrow as pa
import pytest
import torch

from preceptor.errors import InvalidRunError
from preceptor_service.columns import ColumnSpec
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.tasks import GradientTask, run_columns, task_named


def test_columns_of_a_classifier() -> None:
    outline = ArchitectureRegistry().outline("small_cnn", {"in_channels": 3, "image_size": 8, "num_classes": 10})

    assert run_columns("classification", outline) == (
        ColumnSpec("image", "uint8", (3, 8, 8)),
        ColumnSpec("label", "int64", below=10),
    )


def test_the_outermost_dimension_is_the_outermost_list() -> None:
    assert ColumnSpec("image", "uint8", (3, 8, 5)).arrow_type() == pa.list_(pa.list_(pa.list_(pa.uint8(), 5), 8), 3)
    assert ColumnSpec("label", "int64").arrow_type() == pa.int64()
    assert ColumnSpec("image", "float", (2,)).arrow_type() == pa.list_(pa.float32(), 2)


def test_the_gateway_can_read_the_tasks_without_torch() -> None:
    program = f"import sys; sys.path[:] = {sys.path!r}; sys.modules['torch'] = None; import preceptor_service.tasks"

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_what_a_model_asks_of_values_does_not_keep_it_from_its_trial() -> None:
    class Asking(Logits):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if image.isnan().any() or image.sum().item() > 0 or int(image.long().max()):
                return image[0]
            return image

    assert [column.name for column in run_columns("classification", Asking().to("meta"))] == ["image", "label"]


def test_an_unknown_task() -> None:
    with pytest.raises(InvalidRunError, match=r"task is 'translation'; choose one of \['causal_lm', 'classif.*'\]"):
        run_columns("translation", torch.nn.Identity())


def test_a_model_of_another_kind() -> None:
    registry = ArchitectureRegistry({"own": "tests.models.architectures:no_classifier"})

    with pytest.raises(InvalidRunError, match="Linear has no num_classes"):
        run_columns("classification", registry.outline("own", {}))


class Logits(torch.nn.Module):
    """Gives its input back as logits."""

    input_columns = (ColumnSpec("image", "float", (3,)),)
    num_classes = 3

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def test_the_loss_is_the_cross_entropy_of_each_example_in_float32() -> None:
    logits = [[0.0, 1.0, 2.0], [5.0, -5.0, 0.5]]
    labels = [2, 1]

    losses = task_named("classification").loss(
        Logits(), {"image": torch.tensor(logits, dtype=torch.bfloat16), "label": torch.tensor(labels)}
    )

    expected = [
        math.log(sum(math.exp(value) for value in row)) - row[label] for row, label in zip(logits, labels, strict=True)
    ]
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_norm_is_that_of_automatic_differentiation() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, -5.0, 0.5], [30.0, 0.0, -3.0]], requires_grad=True)
    labels = torch.tensor([2, 1, 0])
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), logits)
    task = task_named("classification")
    assert isinstance(task, GradientTask)

    norms = task.gradient_norm(Logits(), {"image": logits.detach(), "label": labels})

    assert norms.dtype == torch.float32
    assert norms.tolist() == pytest.approx(expected.norm(dim=1).tolist(), rel=1e-5)
    assert 0 < norms[2] < 1e-12


def test_pairs_have_no_gradient_norm() -> None:
    assert not isinstance(task_named("image_text"), GradientTask)


def test_a_model_whose_logits_are_not_per_example() -> None:
    class Flat(Logits):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.sum(0)

    with pytest.raises(InvalidRunError):
        run_columns("classification", Flat().to("meta"))


def test_a_model_that_asserts_what_it_is_given() -> None:
    class Asserting(Logits):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            assert image.shape[0] == 3, "three images, please"
            return super().forward(image)

    with pytest.raises(InvalidRunError, match="three images"):
        run_columns("classification", Asserting().to("meta"))
