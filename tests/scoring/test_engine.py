"""Losses as a naive loop computes them, whatever was scored before, with weights as they were pushed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from preceptor.errors import InternalError, InvalidRunError, ResourceExhaustedError, TooLargeError, WeightsNotFoundError
from preceptor_service.scoring.engine import ScoringEngine
from preceptor_service.scoring.pool import MicroBatch, ModelRef
from tests.naive.losses import small_cnn_losses
from tests.scoring.engines import SMALL, Bench, digits, models

PATIENCE_S = 20.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def trained_state() -> dict[str, torch.Tensor]:
    """Weights of `norm_dropout`, as after some training."""
    generator = torch.Generator().manual_seed(3)
    return {
        "norm.weight": torch.rand(4, generator=generator) + 0.5,
        "norm.bias": torch.randn(4, generator=generator),
        "norm.running_mean": torch.randn(4, generator=generator),
        "norm.running_var": torch.rand(4, generator=generator) + 0.5,
        "norm.num_batches_tracked": torch.tensor(17),
        "head.weight": torch.randn(3, 4, generator=generator),
        "head.bias": torch.randn(3, generator=generator),
    }


def test_losses_equal_a_naive_model(bench: Bench) -> None:
    learner, learner_state = bench.small_cnn(1)
    reference, reference_state = bench.small_cnn(2)
    batch = digits(0)

    losses = bench.engine.losses(models(learner, reference), batch)

    images, labels = np.asarray(batch.columns["image"]), np.asarray(batch.columns["label"])
    assert losses.learner is not None
    assert losses.reference is not None
    assert losses.learner.tolist() == pytest.approx(small_cnn_losses(learner_state, images, labels), rel=1e-4)
    assert losses.reference.tolist() == pytest.approx(small_cnn_losses(reference_state, images, labels), rel=1e-4)


def test_losses_equal_a_plain_torch_loop_bit_for_bit(bench: Bench) -> None:
    ref, state = bench.small_cnn(1)
    batch = digits(0)
    module = bench.registry.build("small_cnn", SMALL)
    module.load_state_dict(state)

    losses = bench.engine.losses(models(ref, None), batch)

    with torch.no_grad():
        logits = module(torch.tensor(batch.columns["image"]))
        expected = functional.cross_entropy(logits, torch.tensor(batch.columns["label"]), reduction="none")
    assert losses.learner is not None
    assert losses.learner.dtype == np.float32
    assert losses.learner.tobytes() == expected.numpy().tobytes()
    assert losses.reference is None


def test_padding_rows_are_cut_off(bench: Bench) -> None:
    ref, _ = bench.small_cnn(1)

    whole = bench.engine.losses(models(None, ref), digits(0)).reference
    part = bench.engine.losses(models(None, ref), digits(0, row_count=5)).reference

    assert whole is not None
    assert part is not None
    assert part.tobytes() == whole[:5].tobytes()


def test_candidates_leave_no_trace_in_batch_norm_and_dropout_is_off(bench: Bench) -> None:
    state = trained_state()
    ref = bench.pushed("own", {}, state)
    noise = dict(bench.registry.build("own", {}).named_buffers())["noise"]
    images = np.random.default_rng(0).normal(5, 3, (8, 4)).astype(np.float32)
    labels = np.arange(8) % 3
    batch = MicroBatch({"image": images, "label": labels}, 8)

    answers = [bench.engine.losses(models(ref, None), batch).learner for _ in range(3)]

    expected = []
    for image, label in zip(images, labels, strict=True):
        centred = (torch.tensor(image) + noise - state["norm.running_mean"]) / (state["norm.running_var"] + 1e-5).sqrt()
        logits = state["head.weight"] @ (centred * state["norm.weight"] + state["norm.bias"]) + state["head.bias"]
        expected.append(float(logits.logsumexp(0) - logits[int(label)]))
    for answer in answers:
        assert answer is not None
        assert answer.tolist() == pytest.approx(expected, rel=1e-4)


def test_scoring_leaves_torchs_random_state_alone(bench: Bench) -> None:
    ref = bench.pushed("own", {}, trained_state())
    before = torch.random.get_rng_state()

    bench.engine.losses(
        models(ref, None), MicroBatch({"image": np.ones((2, 4), np.float32), "label": np.zeros(2, int)}, 2)
    )

    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_scored_in_float32(bench: Bench, dtype: torch.dtype) -> None:
    _, state = bench.small_cnn(1)
    halved = {name: tensor.to(dtype) for name, tensor in state.items()}
    batch = digits(0)

    half = bench.engine.losses(models(bench.pushed("small_cnn", SMALL, halved), None), batch).learner

    widened = {name: tensor.float() for name, tensor in halved.items()}
    full = bench.engine.losses(models(bench.pushed("small_cnn", SMALL, widened), None), batch).learner
    assert half is not None
    assert full is not None
    assert half.tobytes() == full.tobytes()


def test_a_vit_scores_as_transformers_itself_does(bench: Bench) -> None:
    from transformers import AutoConfig, ViTForImageClassification

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 4,
    }
    config = {"model_type": "vit", "image_size": 8, "in_channels": 1, "num_classes": 10, **sizes}
    bare_config: Any = AutoConfig.for_model("vit", image_size=8, num_channels=1, num_labels=10, **sizes)
    bare: torch.nn.Module = ViTForImageClassification(bare_config)
    bare.eval()
    batch = digits(0)

    losses = bench.engine.losses(models(bench.pushed("image_classifier", config, bare.state_dict()), None), batch)

    with torch.inference_mode():
        logits = bare(pixel_values=torch.tensor(batch.columns["image"]).float() / 255).logits
        expected = functional.cross_entropy(logits, torch.tensor(batch.columns["label"]), reduction="none")
    assert losses.learner is not None
    assert losses.learner.tobytes() == expected.numpy().tobytes()


def test_models_are_held_once_loaded(bench: Bench) -> None:
    learner, _ = bench.small_cnn(1)
    reference, _ = bench.small_cnn(2)

    bench.engine.load(models(learner, reference))
    bench.store.delete_run("run")
    bench.store.collect()

    assert set(bench.engine.loaded()) == {learner, reference}
    assert bench.engine.losses(models(learner, reference), digits(0)).load_s < PATIENCE_S


def test_scoring_goes_on_while_weights_load(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    old, _ = bench.small_cnn(1)
    new, _ = bench.small_cnn(2)
    bench.engine.load(models(old, None))
    verify = bench.store.verify
    begun, go_on = threading.Event(), threading.Event()

    def slow(digest: str) -> Path:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return verify(digest)

    monkeypatch.setattr(bench.store, "verify", slow)
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(bench.engine.load, models(new, None))
        assert begun.wait(PATIENCE_S)

        scored = threads.submit(bench.engine.losses, models(old, None), digits(0))

        assert scored.result(PATIENCE_S).learner is not None
        assert not loading.done()
        go_on.set()
        loading.result(PATIENCE_S)
    assert set(bench.engine.loaded()) == {old, new}


def test_many_threads_with_models_coming_and_going_get_the_right_losses(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    refs = [bench.small_cnn(seed)[0] for seed in range(4)]
    batches = [digits(seed) for seed in range(4)]
    alone = {}
    for ref in refs:
        for number, batch in enumerate(batches):
            losses = bench.engine.losses(models(ref, None), batch).learner
            assert losses is not None
            alone[ref, number] = losses.tobytes()
    one_model_bytes = sum(tensor.nbytes for tensor in bench.small_cnn(0)[1].values()) + 8
    crowded = ScoringEngine(bench.store, bench.registry, "cpu", model_bytes=2 * one_model_bytes)

    def score(order: int) -> None:
        for turn in range(8):
            ref, number = refs[(order + turn) % 4], (order * turn) % 4
            losses = crowded.losses(models(ref, None, run_id=ref.digest), batches[number]).learner
            assert losses is not None
            assert losses.tobytes() == alone[ref, number]

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(score, order) for order in range(4)]:
            done.result(PATIENCE_S)
    assert 1 <= len(crowded.loaded()) <= 2


class TestRefusals:
    def test_weights_that_the_store_does_not_have(self, bench: Bench) -> None:
        missing = ModelRef(
            "small_cnn", '{"image_size": 8, "in_channels": 1, "num_classes": 2}', "sha256:" + "0" * 64, 9
        )

        with pytest.raises(WeightsNotFoundError):
            bench.engine.losses(models(missing, None), digits(0))

    def test_damaged_weights(self, bench: Bench) -> None:
        ref, _ = bench.small_cnn(1)
        path = bench.store.blob_path(ref.digest)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

        with pytest.raises(InternalError, match="damaged"):
            bench.engine.load(models(ref, None))
        assert bench.engine.loaded() == ()

    def test_weights_of_another_architecture(self, bench: Bench) -> None:
        ref, _ = bench.small_cnn(1)
        other = ModelRef("own", "{}", ref.digest, ref.total_bytes)

        with pytest.raises(InternalError, match=r"cannot be loaded into 'own'; the scorer's log says why$"):
            bench.engine.load(models(other, None))

    def test_an_architecture_that_this_scorer_does_not_know(self, bench: Bench) -> None:
        ref, _ = bench.small_cnn(1)

        with pytest.raises(InvalidRunError, match="'missing'"):
            bench.engine.load(models(ModelRef("missing", "{}", ref.digest, ref.total_bytes), None))

    def test_a_model_above_the_bound(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, model_bytes=1000)
        ref, _ = bench.small_cnn(1)

        with pytest.raises(TooLargeError, match="a scorer may hold 1000"):
            bench.engine.load(models(ref, None))

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
            torch.OutOfMemoryError("CUDA out of memory."),
            RuntimeError("CUDA error: out of memory"),
        ],
        ids=["CPU", "torch", "CUDA"],
    )
    def test_a_forward_pass_without_memory(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
    ) -> None:
        ref, _ = bench.small_cnn(1)

        def full(*_: object, **__: object) -> torch.Tensor:
            raise error

        monkeypatch.setattr("preceptor_service.models.small_cnn.SmallCnn.forward", full)
        with pytest.raises(ResourceExhaustedError, match=r"16 rows.*micro_batch_rows"):
            bench.engine.losses(models(ref, None), digits(0))

    def test_weights_without_memory(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        ref, _ = bench.small_cnn(1)

        def full(*_: object, **__: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr("preceptor_service.scoring.loading.ModelLoader._placed", full)
        with pytest.raises(ResourceExhaustedError, match=r"scorer\.model_bytes"):
            bench.engine.load(models(ref, None))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_a_gpu_that_is_not_there(self, bench: Bench) -> None:
        with pytest.raises(ValueError, match="torch finds no GPU"):
            ScoringEngine(bench.store, bench.registry, "cuda")


@pytest.mark.parametrize(
    ("error", "works"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
    ],
    ids=["gone", "full"],
)
def test_a_device_that_computes_nothing_is_told_from_one_that_is_full(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, works: bool
) -> None:
    assert bench.engine.device_works()

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(torch, "ones", fail)
    assert bench.engine.device_works() is works


def test_auto_takes_what_there_is(bench: Bench) -> None:
    engine = ScoringEngine(bench.store, bench.registry)

    assert engine.device == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_losses_of_the_cpu_and_repeats_itself(bench: Bench) -> None:
    ref, _ = bench.small_cnn(1)
    on_cpu = bench.engine.losses(models(ref, ref), digits(0)).learner
    engine = ScoringEngine(bench.store, bench.registry, "cuda")

    first, second = (engine.losses(models(ref, ref), digits(0)).learner for _ in range(2))

    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes()
    assert on_cpu is not None
    assert first.tolist() == pytest.approx(on_cpu.tolist(), rel=1e-4)
