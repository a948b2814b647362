"""Training, as a user of Preceptor writes it: a reference on clean images, and the learner on what the run selects."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from preceptor import CoTraining, Run
from preceptor.torch import SelectingLoader, forward_flops
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference.demo_data import NUM_CLASSES, Images, Parts

ARCHITECTURE = "small_cnn"

Watcher = Callable[[int, float | None], None]
"""Told after each update how many there were, and the test accuracy where it was measured."""


@dataclass(frozen=True)
class Recipe:
    """How both arms train.

    Attributes:
        updates: optimiser steps of each arm; the learning rate decays to 0 over them by a half cosine.
        reference_updates: the same for the reference.
        super_batch_size: B, candidates offered per update.
        sub_batch_size: b, examples trained on per update.
        learner_width: channels of the learner's first convolution.
        online_width: the same for the online and the reference model.
        learning_rate: AdamW's, at the start.
        reference_learning_rate: the same for the reference.
        push_every: updates between two pushes of the online model, where the trainer trains it.
        evaluate_every: updates between two tests of the learner.
    """

    updates: int
    reference_updates: int
    super_batch_size: int
    sub_batch_size: int
    learner_width: int
    online_width: int
    learning_rate: float
    reference_learning_rate: float
    push_every: int
    evaluate_every: int

    @property
    def ratio(self) -> float:
        """ρ = B / b."""
        return self.super_batch_size / self.sub_batch_size

    def co_training(self, seed: int) -> CoTraining:
        """Returns how the service trains the online model: as the learner is trained, a block behind."""
        # Blocks of half the steps: with one of lag the model is about as old as one that is pushed.
        return CoTraining(
            self.learning_rate, total_steps=self.updates, publish_every=self.push_every // 2, lag=1, seed=seed
        )


RECIPES = {
    "digits": Recipe(
        updates=400, reference_updates=400, super_batch_size=192, sub_batch_size=64, learner_width=64, online_width=16,
        learning_rate=1e-3, reference_learning_rate=3e-3, push_every=10, evaluate_every=10,
    ),
    "fashion-mnist": Recipe(
        updates=800, reference_updates=800, super_batch_size=320, sub_batch_size=64, learner_width=64, online_width=16,
        learning_rate=1e-3, reference_learning_rate=3e-3, push_every=10, evaluate_every=40,
    ),
}  # fmt: skip


@dataclass
class History:
    """What one arm did.

    Attributes:
        evaluated_at: updates after which the learner was tested.
        accuracy: its accuracy then, in [0, 1].
        corrupt_share: of each update, the share of wrong labels among what was trained on.
        selection_wait_s: time that training waited for selections, in total.
        push_wait_s: time that training waited for pushes, in total.
        training_s: time of all updates, waits included, tests excluded.
        candidates: examples offered.
        fallbacks: updates on which selection fell back to uniform.
    """

    evaluated_at: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    corrupt_share: list[float] = field(default_factory=list)
    selection_wait_s: float = 0.0
    push_wait_s: float = 0.0
    training_s: float = 0.0
    candidates: int = 0
    fallbacks: int = 0

    @property
    def best_accuracy(self) -> float:
        """The highest accuracy of any test."""
        return max(self.accuracy)

    def updates_to(self, accuracy: float) -> int | None:
        """Returns after how many updates a test first gave `accuracy`, or None where none did."""
        for updates, reached in zip(self.evaluated_at, self.accuracy, strict=True):
            if reached >= accuracy:
                return updates
        return None


class Trainee:
    """A model with its optimiser and a learning rate that decays to 0 over `updates`."""

    def __init__(self, model: nn.Module, updates: int, learning_rate: float) -> None:
        self.model = model
        self._optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimiser, updates)

    def update(self, image: torch.Tensor, label: torch.Tensor) -> None:
        """Takes one step on the mean cross-entropy."""
        self._optimiser.zero_grad()
        cross_entropy(self.model(image), label).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._schedule.step()


def model_config(image_size: int, width: int) -> dict[str, int]:
    """Returns the settings of a `small_cnn`, for the run and for the trainer alike."""
    return {"in_channels": 1, "image_size": image_size, "num_classes": NUM_CLASSES, "width": width}


def build_model(config: dict[str, int], seed: int) -> nn.Module:
    """Returns an untrained model whose initial weights come from `seed`."""
    model = ArchitectureRegistry().build(ARCHITECTURE, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
    return model


def train_reference(clean: Images, config: dict[str, int], recipe: Recipe, seed: int) -> nn.Module:
    """Returns the reference model, trained on clean images alone; the service has no part in it."""
    trainee = Trainee(build_model(config, seed), recipe.reference_updates, recipe.reference_learning_rate)
    data = TensorDataset(torch.from_numpy(clean.image), torch.from_numpy(clean.label))
    for image, label in _batches(data, recipe.sub_batch_size, recipe.reference_updates, seed):
        trainee.update(image, label)
    return trainee.model


def train_learner(run: Run, parts: Parts, recipe: Recipe, seed: int, watch: Watcher) -> History:
    """Trains the learner on what `run` selects, and returns what happened.

    Algorithm 1 of arXiv 2312.05328: learner and small online model take one step on the same sub-batch, and the online
    model scores the candidates. The service trains it; where the run says nothing of that, it is trained here and its
    weights are pushed every few updates. A uniform run has no online model.
    """
    learner_config = model_config(parts.test.image.shape[-1], recipe.learner_width)
    learner = Trainee(build_model(learner_config, seed), recipe.updates, recipe.learning_rate)
    trainees = [learner]
    if run.spec.score != "uniform" and run.spec.co_training is None:
        online_config = model_config(parts.test.image.shape[-1], recipe.online_width)
        trainees.append(Trainee(build_model(online_config, seed + 1), recipe.updates, recipe.learning_rate))
        run.push_weights(trainees[1].model.state_dict(), step=0)

    pool = TensorDataset(
        *map(torch.from_numpy, (parts.pool.image, parts.pool.label, parts.pool.example_id, parts.is_corrupt))
    )
    super_batches = _batches(pool, recipe.super_batch_size, recipe.updates, seed)
    # The fourth tensor, is_corrupt, has no name: it is carried along for the picture, and not sent.
    loader = SelectingLoader(super_batches, run, recipe.sub_batch_size, names=("image", "label", "example_id"))

    history = History()
    started = time.perf_counter()
    for update, (image, label, _, is_corrupt) in enumerate(loader, start=1):
        for trainee in trainees:
            trainee.update(image, label)
        if len(trainees) > 1 and update % recipe.push_every == 0:
            history.push_wait_s += _push(run, trainees[1].model, update)
        history.corrupt_share.append(float(is_corrupt.float().mean()))
        if loader.last_selection is not None:
            history.fallbacks += loader.last_selection.is_fallback
        accuracy = None
        if update % recipe.evaluate_every == 0 or update == recipe.updates:
            history.training_s += time.perf_counter() - started
            accuracy = accuracy_of(learner.model, parts.test)
            history.evaluated_at.append(update)
            history.accuracy.append(accuracy)
            started = time.perf_counter()
        watch(update, accuracy)
    history.selection_wait_s = loader.total_exposed_wait_s
    history.candidates = recipe.super_batch_size * len(history.corrupt_share)
    return history


def accuracy_of(model: nn.Module, images: Images) -> float:
    """Returns the share of images whose label the model gives, in [0, 1]."""
    with torch.inference_mode():
        parts = DataLoader(TensorDataset(torch.from_numpy(images.image)), batch_size=500)
        guesses = torch.cat([model(image).argmax(1) for (image,) in parts])
    return float(np.mean(guesses.numpy() == images.label))


def image_flops(config: dict[str, int]) -> float:
    """Returns the floating-point operations of one forward pass of one image."""
    image = torch.zeros(1, config["in_channels"], config["image_size"], config["image_size"], dtype=torch.uint8)
    return forward_flops(build_model(config, seed=0), image)


def _push(run: Run, model: nn.Module, step: int) -> float:
    started = time.perf_counter()
    run.push_weights(model.state_dict(), step=step)
    return time.perf_counter() - started


def _batches(data: TensorDataset, size: int, count: int, seed: int) -> DataLoader[Any]:
    """Returns `count` shuffled batches of `size`, one epoch after the other without a gap."""
    order = RandomSampler(data, num_samples=size * count, generator=torch.Generator().manual_seed(seed))
    # A sampler of whole batches: the data set is indexed once per batch, not once per example.
    return DataLoader(data, sampler=BatchSampler(order, size, drop_last=True), batch_size=None)
