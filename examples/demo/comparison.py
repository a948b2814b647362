"""The demo's story: start the service, train a reference, train both arms through the service, show what came of it."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from examples.demo import picture, report, table
from examples.demo.progress import progress
from examples.demo.training import (
    ARCHITECTURE,
    RECIPES,
    History,
    Recipe,
    Watcher,
    accuracy_of,
    image_flops,
    model_config,
    train_learner,
    train_reference,
)
from preceptor import CoTraining, RunSpec, SelectionClient
from preceptor_service.app import start_service
from preceptor_service.config import parse_config
from preceptor_service.reference.demo_data import Parts, load

ARMS = {"uniform": ("uniform", "uniform"), "learnability": ("learnability", "softmax")}
"""Name → score and selector."""

_SCORERS = 2


@dataclass(frozen=True)
class Comparison:
    """What both arms did, and what the comparison needs to be read.

    Attributes:
        data: the data set.
        seed: of the parts, the wrong labels, the initial weights, the order, and the selection.
        recipe: how both trained.
        reference_accuracy: of the reference model on the test part.
        online_flops_share: FLOPs of the online and of the reference model's forward pass over the learner's.
        histories: arm → what it did.
    """

    data: str
    seed: int
    recipe: Recipe
    reference_accuracy: float
    online_flops_share: float
    histories: dict[str, History]


def run(data: str, seed: int, updates: int | None, pool: str, pushes: bool, out: Path, console: Console) -> None:
    """Runs the demo and shows its results on `console` and in a picture below `out`.

    The service trains the online model itself; where the trainer `pushes`, it does.
    """
    began = time.monotonic()
    recipe = RECIPES[data]
    if updates is not None:
        recipe = replace(recipe, updates=updates)
    parts = load(data, seed)
    console.print(
        f"{data}: a pool of {len(parts.pool):,} images, {parts.is_corrupt.sum():,} of them with a wrong label; "
        f"{len(parts.clean):,} clean ones for the reference; {len(parts.test):,} to test on"
    )
    with _service(pool, recipe, console) as target:
        found = compare(data, parts, recipe, seed, pushes, target, console)
        with SelectionClient(target) as client:
            page = report.save(client, _run_id("learnability"), _run_id("uniform"), parts, out / f"{data}.html")
    console.print(table.table(found), table.footnotes(found), sep="\n")
    path = picture.save(found, out / f"{data}.png")
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    console.print(f"picture: {path}   ({time.monotonic() - began:.0f} s in all)", highlight=False, soft_wrap=True)


def compare(
    data: str, parts: Parts, recipe: Recipe, seed: int, pushes: bool, target: str, console: Console
) -> Comparison:
    """Trains the reference and both arms through the service at `target`."""
    torch.set_num_threads(1)  # the scorers need the other cores
    image_size = parts.test.image.shape[-1]
    online = model_config(image_size, recipe.online_width)
    with console.status("training the reference on the clean images …"):
        reference = train_reference(parts.clean, online, recipe, seed + 2)
    histories = {}
    with SelectionClient(target) as client, progress(console, recipe.updates, ARMS) as watchers:
        for name in ARMS:
            co_training = None if pushes else recipe.co_training(seed + 1)
            histories[name] = _train_arm(client, name, co_training, reference, parts, recipe, seed, watchers[name])
    return Comparison(
        data=data,
        seed=seed,
        recipe=recipe,
        reference_accuracy=accuracy_of(reference, parts.test),
        online_flops_share=image_flops(online) / image_flops(model_config(image_size, recipe.learner_width)),
        histories=histories,
    )


def _train_arm(
    client: SelectionClient,
    name: str,
    co_training: CoTraining | None,
    reference: nn.Module,
    parts: Parts,
    recipe: Recipe,
    seed: int,
    watch: Watcher,
) -> History:
    score, selector = ARMS[name]
    image_size = parts.test.image.shape[-1]
    online = model_config(image_size, recipe.online_width)
    learner_flops = image_flops(model_config(image_size, recipe.learner_width))
    run = client.create_run(
        RunSpec(
            run_id=_run_id(name),
            model=ARCHITECTURE,
            model_config=online,
            score=score,
            selector=selector,
            seed=seed,
            learner_flops=learner_flops,
            reference_training_share=image_flops(online) / learner_flops * recipe.reference_updates / recipe.updates,
            co_training=None if score == "uniform" else co_training,
            ledger=True,
        )
    )
    if score != "uniform":
        run.push_reference(reference.state_dict())
    return train_learner(run, parts, recipe, seed, report.reporting(run, watch))


def _run_id(arm: str) -> str:
    return f"demo-{arm}"


@contextmanager
def _service(pool: str, recipe: Recipe, console: Console) -> Iterator[str]:
    """Runs the service on this machine for a while, with a store of its own; yields its address."""
    scorers = _SCORERS if pool == "ray" else 1
    with tempfile.TemporaryDirectory(prefix="preceptor-demo-") as store:
        settings: dict[str, Any] = {
            "pool": pool,
            "gateway": {"host": "127.0.0.1", "port": 0},
            "metrics": {"enabled": False},
            "scorer": {
                "replicas": scorers,
                "num_cpus": 0.5,
                "threads": 1,
                "device": "cpu",
                "num_gpus": 0,
                # Each scorer has its part of a super-batch.
                "micro_batch_rows": -(-recipe.super_batch_size // scorers),
            },
            "weights": {"path": store},
        }
        with console.status(f"starting the service: {pool} pool, 1 gateway, {scorers} scorer(s) …"):
            service = start_service(parse_config(settings))
        try:
            yield f"127.0.0.1:{service.ports.grpc}"
        finally:
            with _uninterrupted(), console.status("stopping the service …"):
                service.stop()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets no second Ctrl-C break off what the first one asked for."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
