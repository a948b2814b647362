"""Dual encoders and language models: built from settings alone, equal to the bare model, indifferent to padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from preceptor.errors import InvalidRunError
from preceptor_service.columns import ColumnSpec
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.models.manifest import check_weights
from preceptor_service.tasks import GradientTask, run_columns, task_named
from tests.naive.text import dual_encoder_losses, language_losses, pair_loss, sequence_gradient_norm

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TOWERS = {prefix + name: value for prefix in ("text_", "vision_") for name, value in TOWER.items()}
OWN = {"in_channels": 1, "image_size": 16, "vocab_size": 30}
CLIP: dict[str, Any] = {
    **OWN, **TOWERS, "model_type": "clip", "vision_patch_size": 8, "projection_dim": 12, "text_eos_token_id": 3,
    "text_max_position_embeddings": 9,
}  # fmt: skip
SIGLIP: dict[str, Any] = {
    **OWN, **TOWERS, "model_type": "siglip", "vision_patch_size": 8, "text_projection_size": 16,
    "text_max_position_embeddings": 9,
}  # fmt: skip
DUAL: dict[str, Any] = {**OWN, "context_length": 9, "width": 4, "text_width": 8, "embedding_dim": 6}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
              "intermediate_size": 32, "rope_theta": 500_000.0},
    "qwen2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
              "intermediate_size": 32},
    "mixtral": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
                "intermediate_size": 32, "num_local_experts": 2},
    "gpt_neox": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
            "word_embed_proj_dim": 16},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}  # fmt: skip

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def registry() -> ArchitectureRegistry:
    return ArchitectureRegistry()


def language_model(model_type: str, context_length: int = 9) -> dict[str, Any]:
    settings = {"model_type": model_type, "vocab_size": 30, "context_length": context_length}
    return {**settings, **LANGUAGE_MODELS[model_type]}


def drawn(module: torch.nn.Module) -> State:
    """Weights that spread the losses, so that a mistake shows."""
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(value.shape, generator=generator) * 0.3 for name, value in module.state_dict().items()}


def texts(lengths: list[int], context_length: int) -> dict[str, torch.Tensor]:
    """Texts of so many tokens, the last one being 3, padded on the right."""
    tokens = torch.randint(4, 30, (len(lengths), 40), generator=torch.Generator().manual_seed(5))[:, :context_length]
    mask = torch.arange(context_length) < torch.tensor(lengths).unsqueeze(1)
    for row, length in enumerate(lengths):
        if length:
            tokens[row, length - 1] = 3
    return {"input_ids": tokens * mask, "attention_mask": mask.long()}


def images(rows: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))


def losses(task: str, module: torch.nn.Module, features: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return task_named(task).loss(module.eval(), features)


@pytest.mark.parametrize(("architecture", "settings"), [("image_text_model", CLIP), ("image_text_model", SIGLIP),
                                                        ("dual_encoder", DUAL)])  # fmt: skip
def test_columns_of_a_dual_encoder(registry: ArchitectureRegistry, architecture: str, settings: dict[str, Any]) -> None:
    assert run_columns("image_text", registry.outline(architecture, settings)) == (
        ColumnSpec("image", "uint8", (1, 16, 16)),
        ColumnSpec("input_ids", "int64", (9,), below=30),
        ColumnSpec("attention_mask", "int64", (9,), below=2),
    )


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_columns_of_a_language_model(registry: ArchitectureRegistry, model_type: str) -> None:
    assert run_columns("causal_lm", registry.outline("causal_lm", language_model(model_type))) == (
        ColumnSpec("input_ids", "int64", (9,), below=30),
        ColumnSpec("attention_mask", "int64", (9,), below=2),
    )


def test_captions_are_as_long_as_the_text_tower_unless_told_otherwise(registry: ArchitectureRegistry) -> None:
    columns = run_columns("image_text", registry.outline("image_text_model", {**CLIP, "context_length": 5}))

    assert columns[1].shape == (5,)


def bare(settings: dict[str, Any]) -> torch.nn.Module:
    """The same dual encoder as a trainer builds it, by transformers alone."""
    from transformers import AutoConfig, AutoModel

    text = {**TOWER, "vocab_size": 30, "max_position_embeddings": 9}
    vision = {**TOWER, "image_size": 16, "num_channels": 1, "patch_size": 8}
    if settings["model_type"] == "clip":
        config: Any = AutoConfig.for_model(
            "clip", text_config={**text, "eos_token_id": 3}, vision_config=vision, projection_dim=12
        )
    else:
        config = AutoConfig.for_model("siglip", text_config={**text, "projection_size": 16}, vision_config=vision)
    build: Any = AutoModel.from_config
    model: torch.nn.Module = build(config)
    return model.eval()


@pytest.mark.parametrize("settings", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_a_trainers_own_dual_encoder_fits_and_gives_its_losses(
    registry: ArchitectureRegistry, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = bare(settings)
    save_file(model.state_dict(), tmp_path / "weights")
    check_weights(tmp_path / "weights", registry.outline("image_text_model", settings))
    module = registry.build("image_text_model", settings)
    batch = {"image": images(3), **texts([4, 9, 6], 9)}

    module.load_state_dict(load_file(tmp_path / "weights"))

    with torch.inference_mode():
        output: Any = model(
            pixel_values=batch["image"].float() / 255,
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
        )
    expected = [
        pair_loss(*pair) for pair in zip(output.image_embeds.tolist(), output.text_embeds.tolist(), strict=True)
    ]
    assert losses("image_text", module, batch).tolist() == pytest.approx(expected, abs=1e-6)
    assert module.state_dict().keys() == model.state_dict().keys()


def test_a_dual_encoders_losses_are_those_of_the_naive_loop(registry: ArchitectureRegistry) -> None:
    module = registry.build("dual_encoder", DUAL)
    module.load_state_dict(drawn(module))
    batch = {"image": images(5), **texts([1, 9, 6, 2, 3], 9)}

    found = losses("image_text", module, batch)

    expected = dual_encoder_losses(module.state_dict(), {name: value.numpy() for name, value in batch.items()})
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert min(expected) < max(expected) - 0.01


@pytest.mark.parametrize(("architecture", "settings", "length"), [
    ("dual_encoder", DUAL, "context_length"), ("image_text_model", CLIP, "text_max_position_embeddings"),
])  # fmt: skip
def test_more_padding_changes_no_loss_of_a_pair(
    registry: ArchitectureRegistry, architecture: str, settings: dict[str, Any], length: str
) -> None:
    short, long = (registry.build(architecture, {**settings, length: size}) for size in (9, 14))
    weights = drawn(long)
    positions = next(
        name for name in weights if name.endswith("position_embedding.weight") and len(weights[name]) == 14
    )
    long.load_state_dict(weights)
    short.load_state_dict({**weights, positions: weights[positions][:9]})

    found, padded = (
        losses("image_text", module, {"image": images(3), **texts([2, 9, 5], size)})
        for module, size in ((short, 9), (long, 14))
    )

    torch.testing.assert_close(found, padded, atol=1e-6, rtol=0)


def test_a_caption_of_padding_alone_has_no_loss(registry: ArchitectureRegistry) -> None:
    batch = {"image": images(3), **texts([4, 0, 2], 9)}

    for architecture, settings in (("dual_encoder", DUAL), ("image_text_model", SIGLIP)):
        found = losses("image_text", registry.build(architecture, settings), batch)
        assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_a_trainers_own_language_model_fits_and_gives_its_losses(
    registry: ArchitectureRegistry, model_type: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.for_model(model_type, vocab_size=30, **LANGUAGE_MODELS[model_type])
    build: Any = AutoModelForCausalLM.from_config
    model = build(config).eval()
    weights = {name: value + 0.02 for name, value in drawn(model).items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied:
        names = [name for name, value in model.state_dict().items() if value.shape[0] == 30]
        weights.update(dict.fromkeys(names, weights[names[0]]))
    model.load_state_dict(weights)
    save_file({name: value.clone() for name, value in model.state_dict().items()}, tmp_path / "weights")
    settings = language_model(model_type)
    check_weights(tmp_path / "weights", registry.outline("causal_lm", settings))
    module = registry.build("causal_lm", settings)
    batch = texts([4, 9, 2, 1, 7, 0], 9)

    module.load_state_dict(load_file(tmp_path / "weights"))

    expected = language_losses(lambda tokens: model(input_ids=tokens, use_cache=False).logits, batch)
    found = losses("causal_lm", module, batch)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, rel=2e-6, nan_ok=True)
    assert found.isnan().tolist() == [False, False, False, True, False, True]
    assert module.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_more_padding_changes_no_loss_of_a_sequence(registry: ArchitectureRegistry, model_type: str) -> None:
    module = registry.build("causal_lm", language_model(model_type))

    torch.testing.assert_close(
        losses("causal_lm", module, texts([4, 9, 2], 9)),
        losses("causal_lm", module, texts([4, 9, 2], 14)),
        atol=0,
        rtol=2e-6,
    )


def test_gradient_norms_of_sequences_are_those_of_the_naive_loop(registry: ArchitectureRegistry) -> None:
    module = registry.build("causal_lm", language_model("gpt2")).eval()
    module.load_state_dict(drawn(module))
    batch = texts([9, 4, 1, 2, 0], context_length=9)
    task = task_named("causal_lm")
    assert isinstance(task, GradientTask)

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = module(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        return logits

    with torch.no_grad():
        norms = task.gradient_norm(module, batch)
    expected = language_losses(logits_of, batch, sequence_gradient_norm)
    assert norms.tolist() == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert norms.isfinite().tolist() == [True, True, False, True, False]


def test_a_forward_pass_of_a_language_model_gives_a_bounded_number_of_logits(
    registry: ArchitectureRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preceptor_service.tasks import causal_lm

    module = registry.build("causal_lm", language_model("gpt2"))
    whole = losses("causal_lm", module, texts([4, 9, 2, 7, 5], 9))
    rows: list[int] = []
    module.register_forward_hook(lambda _, __, logits: rows.append(len(logits)))
    monkeypatch.setattr(causal_lm, "PIECE_LOGITS", 2 * 9 * 30 + 1)

    pieces = losses("causal_lm", module, texts([4, 9, 2, 7, 5], 9))

    assert rows == [2, 2, 1]
    torch.testing.assert_close(pieces, whole, atol=0, rtol=2e-6)


@pytest.mark.parametrize(
    ("architecture", "settings", "complaint"),
    [
        ("image_text_model", {**CLIP, "model_type": "blip"}, "model_type is 'blip'"),
        ("image_text_model", {**CLIP, "context_length": 10}, "context_length is 10, the text tower has 9 positions"),
        ("image_text_model", {**CLIP, "text_eos_token_id": 30}, "text_eos_token_id is 30, vocab_size is 30"),
        ("image_text_model", {**CLIP, "text_vocab_size": 30}, "'text_vocab_size' follows from 'vocab_size'"),
        ("image_text_model", {**CLIP, "vision_image_size": 8}, "'vision_image_size' follows from 'image_size'"),
        ("image_text_model", {**CLIP, "hidden_size": 8}, "no setting 'hidden_size'; it takes .*'text_hidden_size'"),
        ("image_text_model", {**CLIP, "text_attn_implementation": "x"}, "no setting 'text_attn_implementation'"),
        ("image_text_model", {**CLIP, "text_hidden_size": 16_385}, "the limit is 16384"),
        ("image_text_model", {**CLIP, "vision_num_hidden_layers": 257}, "the limit is 256 layers"),
        ("image_text_model", {**CLIP, "vocab_size": 1}, "vocab_size is 1"),
        ("dual_encoder", {**DUAL, "context_length": 0}, "context_length is 0"),
        ("dual_encoder", {**DUAL, "vocab_size": 1_000_001}, "vocab_size is 1000001"),
        ("causal_lm", language_model("gpt2") | {"model_type": "bert"}, "'bert', which is no decoder-only"),
        ("causal_lm", language_model("gpt2") | {"model_type": "xlnet"}, "'xlnet', which is no decoder-only"),
        ("causal_lm", language_model("gpt2") | {"model_type": "bart"}, "'bart', which is no decoder-only"),
        ("causal_lm", language_model("gpt2") | {"model_type": "gemma3"}, "'gemma3', which is no decoder-only"),
        ("causal_lm", language_model("gpt2") | {"model_type": "../x"}, "'../x', which is no decoder-only"),
        ("causal_lm", language_model("gpt2") | {"n_layer": 257}, "n_layer is 257; the limit is 256 layers"),
        ("causal_lm", language_model("gpt2") | {"use_cache": True}, "no setting 'use_cache'"),
        ("causal_lm", language_model("gpt2") | {"rope_theta": 1e4}, "no setting 'rope_theta'"),
        ("causal_lm", language_model("llama") | {"rope_theta": 1e9}, "the limit is 10000000"),
        ("causal_lm", language_model("gpt2") | {"context_length": 65_537}, "context_length is 65537"),
    ],
)  # fmt: skip
def test_what_a_client_cannot_set(
    registry: ArchitectureRegistry, architecture: str, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidRunError, match=complaint):
        registry.outline(architecture, settings)


def test_sequences_longer_than_the_positions_of_a_model_are_refused(registry: ArchitectureRegistry) -> None:
    with pytest.raises(InvalidRunError, match="context_length is 33, the model has 32 positions"):
        registry.outline("causal_lm", language_model("gpt2", context_length=33))


def test_settings_that_do_not_fit_each_other_are_refused(registry: ArchitectureRegistry) -> None:
    outline = registry.outline("causal_lm", language_model("llama") | {"num_key_value_heads": 3})

    with pytest.raises(InvalidRunError, match=r"cannot take input_ids int64\[9\], attention_mask int64\[9\]"):
        run_columns("causal_lm", outline)


@pytest.mark.parametrize(
    ("task", "architecture", "settings", "complaint"),
    [
        ("image_text", "causal_lm", language_model("gpt2"), r"needs a dual encoder that reads \['image', 'input_ids'"),
        ("causal_lm", "dual_encoder", DUAL, r"reads \['image', .*; task 'causal_lm' needs a causal language model"),
        ("classification", "dual_encoder", DUAL, "DualEncoder has no num_classes"),
        ("image_text", "small_cnn", {"in_channels": 1, "image_size": 8, "num_classes": 2}, r"reads \['image'\]"),
    ],
)
def test_a_model_of_another_task_is_refused(
    registry: ArchitectureRegistry, task: str, architecture: str, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidRunError, match=complaint):
        run_columns(task, registry.outline(architecture, settings))


@pytest.mark.parametrize(
    ("task", "columns", "answer", "complaint"),
    [
        ("image_text", 3, "tensor", r"must give the tuple \(image embeddings, text embeddings\)"),
        ("image_text", 3, "unequal", r"image embeddings have shape \(2, 4\), text embeddings \(2, 5\)"),
        ("causal_lm", 2, "tensor", r"logits have shape \(2, 4\) for tokens \(2, 9\); give \[N, L, V\]"),
    ],
)
def test_a_module_that_breaks_its_tasks_contract_is_refused(
    task: str, columns: int, answer: str, complaint: str
) -> None:
    class Breaking(torch.nn.Module):
        input_columns = (
            ColumnSpec("image", "float", (1, 2, 2)),
            ColumnSpec("input_ids", "int64", (9,), below=30),
            ColumnSpec("attention_mask", "int64", (9,), below=2),
        )[-columns:]

        def forward(self, input_ids: torch.Tensor, **_: torch.Tensor) -> Any:
            rows = len(input_ids)
            four, five = (input_ids.new_zeros((rows, size)) for size in (4, 5))
            return four if answer == "tensor" else (four, five)

    with pytest.raises(InvalidRunError, match=complaint):
        run_columns(task, Breaking().to("meta"))
