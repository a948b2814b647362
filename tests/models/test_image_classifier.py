"""Architectures of transformers: built from settings alone, equal to the bare model, closed to everything else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from preceptor.errors import InvalidRunError
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.models.manifest import check_weights
from preceptor_service.tasks import run_columns

VIT: dict[str, Any] = {
    "model_type": "vit",
    "image_size": 32,
    "num_classes": 10,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SMALL_SETTINGS: dict[str, dict[str, Any]] = {
    "vit": {name: VIT[name] for name in VIT if name not in ("model_type", "image_size", "num_classes")},
    "deit": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "siglip": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8},
    "resnet": {"embedding_size": 8, "hidden_sizes": (8, 16), "depths": (1, 1), "layer_type": "basic"},
    "convnext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "pvt_v2": {},
}


@pytest.fixture(scope="module")
def registry() -> ArchitectureRegistry:
    return ArchitectureRegistry()


def bare_vit() -> torch.nn.Module:
    """The same model as a trainer builds it, by transformers alone."""
    from transformers import AutoConfig, ViTForImageClassification

    settings = {name: value for name, value in VIT.items() if name not in ("model_type", "num_classes")}
    config: Any = AutoConfig.for_model("vit", **settings, num_labels=10)
    model: torch.nn.Module = ViTForImageClassification(config)
    return model.eval()


def test_a_trainers_own_state_dict_fits_and_gives_its_logits(registry: ArchitectureRegistry, tmp_path: Path) -> None:
    bare = bare_vit()
    save_file(bare.state_dict(), tmp_path / "weights")
    check_weights(tmp_path / "weights", registry.outline("image_classifier", VIT))
    module = registry.build("image_classifier", {**VIT, "mean": 0.5, "std": 0.25}).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)

    module.load_state_dict(load_file(tmp_path / "weights"))

    with torch.inference_mode():
        assert torch.equal(module(images), bare(pixel_values=(images.float() / 255 - 0.5) / 0.25).logits)
    assert module.state_dict().keys() == bare.state_dict().keys()


@pytest.mark.parametrize("model_type", SMALL_SETTINGS)
def test_architectures_build_and_take_images_of_the_asked_size(registry: ArchitectureRegistry, model_type: str) -> None:
    settings = {"model_type": model_type, "image_size": 64, "num_classes": 7, "in_channels": 1}

    columns = run_columns(
        "classification", registry.outline("image_classifier", {**settings, **SMALL_SETTINGS[model_type]})
    )

    assert [(column.name, column.shape) for column in columns] == [("image", (1, 64, 64)), ("label", ())]
    assert columns[-1].below == 7


def test_building_leaves_the_random_state_alone(registry: ArchitectureRegistry) -> None:
    before = torch.random.get_rng_state()
    first, second = (registry.build("image_classifier", VIT).state_dict() for _ in range(2))

    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model_type": "../../model"}, "model_type is '../../model'"),
        ({"model_type": "bert"}, "model_type is 'bert'; transformers builds these"),
        ({"model_type": "timm_wrapper"}, "model_type is 'timm_wrapper'"),
        ({"auto_map": "x"}, "'vit' has no setting 'auto_map'"),
        ({"trust_remote_code": True}, "no setting 'trust_remote_code'"),
        ({"_name_or_path": "/etc/passwd"}, "no setting '_name_or_path'"),
        ({"torch_dtype": "float16"}, "no setting 'torch_dtype'"),
        ({"dtype": "float16"}, "no setting 'dtype'"),
        ({"attn_implementation": "eager"}, "no setting 'attn_implementation'"),
        ({"_attn_implementation": "someone/kernel"}, "no setting '_attn_implementation'"),
        ({"output_hidden_states": True}, "no setting 'output_hidden_states'"),
        ({"num_labels": 3}, "'num_labels' follows from 'num_classes'"),
        ({"hidden_act": "../gelu"}, "hidden_act is '../gelu'; give one word"),
        ({"hidden_act": "no_such"}, "KeyError: 'no_such'"),
        ({"hidden_size": 16_385}, "hidden_size is 16385; the limit is 16384"),
        ({"hidden_size": True}, "hidden_size is True, a truth value; give a number, like 768"),
        ({"hidden_size": [1, 2]}, "a list of numbers; give a number"),
        ({"num_hidden_layers": 257}, "num_hidden_layers is 257; the limit is 256 layers"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"image_size": 4097}, "image_size is 4097"),
    ],
)
def test_what_a_client_cannot_set(registry: ArchitectureRegistry, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRunError, match=complaint):
        registry.outline("image_classifier", {**VIT, **settings})


@pytest.mark.parametrize(
    ("model_type", "settings", "complaint"),
    [
        ("resnet", {"depths": [200, 100]}, "the limit is 256 layers"),
        ("resnet", {"hidden_sizes": [1] * 65}, "has 65 values; the limit is 64"),
        ("resnet", {"out_features": "stage1"}, "has no setting 'out_features'"),
        ("efficientnet", {"depth_coefficient": 1e9}, "the limit is 16384"),
        ("swinv2", {"pretrained_window_sizes": [1]}, "has no setting 'pretrained_window_sizes'"),
    ],
)
def test_limits_of_other_architectures(
    registry: ArchitectureRegistry, model_type: str, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidRunError, match=complaint):
        registry.outline(
            "image_classifier", {"model_type": model_type, "image_size": 32, "num_classes": 10, **settings}
        )


def test_settings_that_cannot_take_the_images_are_refused(registry: ArchitectureRegistry) -> None:
    outline = registry.outline("image_classifier", {**VIT, "patch_size": 64})

    with pytest.raises(InvalidRunError, match=r"cannot take image uint8\[3, 32, 32\]"):
        run_columns("classification", outline)


def test_without_transformers_the_extra_is_named(
    registry: ArchitectureRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(InvalidRunError, match=r"install preceptor\[transformers\]"):
        registry.outline("image_classifier", VIT)
