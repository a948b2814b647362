"""Architectures by name, their settings, and what clients cannot make of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from preceptor.errors import InvalidRunError, PreceptorError, ResourceExhaustedError, UnavailableError
from preceptor_service.models import ArchitectureRegistry
from tests.naive.losses import small_cnn_losses

SMALL = {"in_channels": 1, "image_size": 8, "num_classes": 10}
OWN = "tests.models.architectures"


@pytest.fixture(scope="module")
def registry() -> ArchitectureRegistry:
    return ArchitectureRegistry()


def test_the_built_in_names(registry: ArchitectureRegistry) -> None:
    assert registry.names() == ("causal_lm", "dual_encoder", "image_classifier", "image_text_model", "small_cnn")


def test_an_unknown_architecture(registry: ArchitectureRegistry) -> None:
    with pytest.raises(InvalidRunError, match=r"model is 'os\.system'; this service knows .*'small_cnn'"):
        registry.outline("os.system", {})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"depth": 3}, "no setting 'depth'; it takes .*'width'"),
        ({"num_classes": 0}, "num_classes is 0: .*greater than or equal to 1"),
        ({"num_classes": True}, "num_classes is True: .*integer"),
        ({"num_classes": "10"}, "num_classes is '10': .*integer"),
        ({"num_classes": 10.0}, "num_classes is 10.0: .*integer"),
        ({"width": 4097}, "width is 4097: .*less than or equal to 4096"),
        ({"image_size": 3}, "image_size is 3: .*greater than or equal to 4"),
        ({"image_size": 5000}, "image_size is 5000: .*4096"),
        ({"in_channels": 65}, "in_channels is 65: .*64"),
        ({"input_dtype": "float64"}, "input_dtype is 'float64': .*'uint8' or 'float32'"),
        ({"mean": float("nan")}, "mean is nan: .*finite"),
        ({"mean": (0.1, 0.2)}, "mean has 2 values for 1 channels"),
        ({"std": 0.0}, "std is 0.0; every channel needs a value above 0"),
        ({"std": "x" * 500}, "std is 'x{37}…x{38}': "),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(
    registry: ArchitectureRegistry, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidRunError, match=f"model 'small_cnn': {complaint}"):
        registry.outline("small_cnn", {**SMALL, **settings})


def test_every_wrong_setting_is_named(registry: ArchitectureRegistry) -> None:
    with pytest.raises(InvalidRunError, match=r"image_size is missing.*num_classes is 0"):
        registry.outline("small_cnn", {"in_channels": 1, "num_classes": 0})


@pytest.mark.parametrize("image_size", [4, 8, 28, 64])
def test_small_cnn_equals_a_naive_one(registry: ArchitectureRegistry, image_size: int) -> None:
    module = registry.build("small_cnn", {**SMALL, "image_size": image_size, "width": 4})
    images = torch.randint(0, 256, (5, 1, image_size, image_size), dtype=torch.uint8)
    labels = torch.arange(5)

    losses = torch.nn.functional.cross_entropy(module(images), labels, reduction="none")

    expected = small_cnn_losses(module.state_dict(), images.numpy(), labels.numpy())
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("width", "parameters"), [(24, 53_194), (96, 834_826)])
def test_small_cnn_is_as_small_as_it_says(registry: ArchitectureRegistry, width: int, parameters: int) -> None:
    module = registry.outline("small_cnn", {**SMALL, "width": width})

    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def test_uint8_images_are_scaled_and_normalised_per_channel(registry: ArchitectureRegistry) -> None:
    colour = {"in_channels": 2, "image_size": 4, "num_classes": 3}
    on_bytes = registry.build("small_cnn", {**colour, "mean": (0.5, 0.25), "std": [0.5, 2.0]})
    on_floats = registry.build("small_cnn", {**colour, "input_dtype": "float32"})
    images = torch.randint(0, 256, (3, 2, 4, 4), dtype=torch.uint8)

    normalised = torch.stack([(images[:, 0] / 255 - 0.5) / 0.5, (images[:, 1] / 255 - 0.25) / 2.0], 1)

    assert torch.allclose(on_bytes(images), on_floats(normalised), atol=1e-6)


def test_the_state_dict_holds_the_network_and_nothing_of_ours(registry: ArchitectureRegistry) -> None:
    names = registry.outline("small_cnn", SMALL).state_dict().keys()

    assert names == {f"{layer}.{part}" for layer in ("conv1", "conv2", "conv3", "head") for part in ("weight", "bias")}


@pytest.mark.parametrize("architecture", ["small_cnn", "own"])
def test_building_is_repeatable_and_leaves_the_random_state_alone(architecture: str) -> None:
    registry = ArchitectureRegistry({"own": f"{OWN}:norm_dropout"})
    settings = SMALL if architecture == "small_cnn" else {}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = registry.build(architecture, settings)
    registry.outline(architecture, settings)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = registry.build(architecture, settings)

    pairs = zip([*first.parameters(), *first.buffers()], [*second.parameters(), *second.buffers()], strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_an_outline_takes_no_memory(registry: ArchitectureRegistry) -> None:
    outline = registry.outline("small_cnn", {**SMALL, "width": 4096})

    assert {tensor.device.type for tensor in (*outline.parameters(), *outline.buffers())} == {"meta"}


class TestOperatorsOwn:
    def test_it_can_be_named_and_its_settings_are_checked(self) -> None:
        registry = ArchitectureRegistry({"own": f"{OWN}:norm_dropout"})

        assert "own" in registry.names()
        assert registry.build("own", {"pixels": 7}).num_classes == 3
        with pytest.raises(InvalidRunError, match="model 'own': pixels is 101"):
            registry.build("own", {"pixels": 101})

    def test_whatever_it_raises_names_it_and_its_settings(self) -> None:
        registry = ArchitectureRegistry({"own": f"{OWN}:broken"})

        with pytest.raises(InvalidRunError, match=r"'own' cannot be built from {'num_classes': 3}: KeyError: 3"):
            registry.build("own", {"num_classes": 3})

    @pytest.mark.parametrize(
        ("fault", "error", "said"),
        [
            ("argument", InvalidRunError, "TypeError: depth must divide width"),
            ("path", InvalidRunError, "ValueError: own.py: depth must divide width"),
            ("length", InvalidRunError, "ValueError: " + "x" * 299 + "…"),
            ("files", UnavailableError, None),
            ("memory", ResourceExhaustedError, "the service has no memory for it; use a smaller model"),
            ("other", InvalidRunError, "it raises UnheardOfError; the service's log says why"),
        ],
    )
    def test_what_it_says_of_its_settings_is_told_and_nothing_of_this_machine(
        self, fault: str, error: type[PreceptorError], said: str | None
    ) -> None:
        registry = ArchitectureRegistry({"own": f"{OWN}:faulty"})

        with pytest.raises(error) as raised:
            registry.build("own", {"fault": fault})
        what = f"model 'own' cannot be built from {{'fault': '{fault}'}}"
        assert str(raised.value) == (
            f"{what} now; try again, the service's log says why" if said is None else f"{what}: {said}"
        )

    @pytest.mark.parametrize(
        ("name", "path", "complaint"),
        [
            ("small_cnn", f"{OWN}:norm_dropout", "taken by a built-in"),
            ("own", f"{OWN}:missing", "cannot be imported"),
            ("own", "no.such.module:f", "cannot be imported"),
            ("own", "json", "cannot be imported"),
            ("own", "", "cannot be imported"),
            ("own", f"{OWN}:NOT_A_FUNCTION", "a int; it must be a function"),
        ],
    )
    def test_a_wrong_entry_is_refused_at_the_start(self, name: str, path: str, complaint: str) -> None:
        with pytest.raises(ValueError, match=rf"architectures\.{name}.*{complaint}"):
            ArchitectureRegistry({name: path})
