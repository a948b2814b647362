"""Images with captions, half of them wrong: train a dual encoder with and without selection, through a local service.

    python examples/image_text.py

The images are scikit-learn's handwritten digits. A reference is trained on a small part whose captions are right; the
pool's captions are wrong in half of the cases. Both arms see the same candidates and make the same number of updates.
Takes less than a minute on a CPU and needs `preceptor[demo]`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import normalize

from preceptor import RunSpec, SelectionClient
from preceptor.torch import SelectingLoader
from preceptor_service.app import start_service
from preceptor_service.config import parse_config
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.models.contrastive import softmax_contrastive_loss

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = ["a handwritten {}", "the digit {} in ink", "somebody wrote {} here", "{}"]
WORDS = ["", *DIGITS, *sorted({word for text in TEMPLATES for word in text.split() if word != "{}"})]
CONTEXT_LENGTH = 5
MODEL: dict[str, Any] = {
    "in_channels": 1, "image_size": 8, "vocab_size": len(WORDS), "context_length": CONTEXT_LENGTH,
    "width": 16, "text_width": 32, "embedding_dim": 32,
}  # fmt: skip
CLEAN, POOL = 200, 1200  # the rest is for testing
SUPER_BATCH, SUB_BATCH = 160, 32
PUSH_EVERY = 10
REFERENCE_UPDATES = 300

Batch = dict[str, torch.Tensor]


def captioned(images: torch.Tensor, labels: torch.Tensor, wrong_share: float, random: np.random.Generator) -> Batch:
    """Returns the pairs as columns; `is_wrong` tells which captions name another digit, and is never sent."""
    is_wrong = random.permutation(len(labels)) < wrong_share * len(labels)
    told = np.where(is_wrong, (labels.numpy() + random.integers(1, 10, len(labels))) % 10, labels.numpy())
    texts = [TEMPLATES[random.integers(len(TEMPLATES))].format(DIGITS[digit]) for digit in told]
    return {"image": images, **tokens(texts), "is_wrong": torch.from_numpy(is_wrong)}


def tokens(texts: list[str]) -> Batch:
    """Returns texts as a tokenizer of transformers would: `input_ids` and `attention_mask`."""
    ids = [[WORDS.index(word) for word in text.split()] for text in texts]
    padded = torch.tensor([row + [0] * (CONTEXT_LENGTH - len(row)) for row in ids])
    return {"input_ids": padded, "attention_mask": (padded > 0).long()}


def batches(pairs: Batch, size: int, count: int, seed: int) -> Iterator[Batch]:
    """Yields `count` batches drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        rows = torch.randint(len(pairs["image"]), (size,), generator=generator)
        yield {name: column[rows] for name, column in pairs.items()}


class Training:
    """A learner and how it is updated: CLIP's loss, Adam, the learning rate decayed to 0 over `updates`."""

    def __init__(self, updates: int) -> None:
        self.model = ArchitectureRegistry().build("dual_encoder", MODEL)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.optimizer = torch.optim.Adam([*self.model.parameters(), self.log_scale], lr=3e-3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, updates)

    def update(self, batch: Batch) -> None:
        """Makes one update."""
        images, captions = self.model(batch["image"], batch["input_ids"], batch["attention_mask"])
        self.optimizer.zero_grad()
        softmax_contrastive_loss(images, captions, self.log_scale).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()

    @torch.no_grad()
    def accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Returns how often an image is nearest to the caption of its own digit (zero-shot classification)."""
        prompts = tokens([TEMPLATES[0].format(digit) for digit in DIGITS])
        prompts = {name: column.repeat(len(images) // 10 + 1, 1)[: len(images)] for name, column in prompts.items()}
        pictures, captions = self.model(images, prompts["input_ids"], prompts["attention_mask"])
        nearest = (normalize(pictures, dim=1) @ normalize(captions[:10], dim=1).T).argmax(1)
        return float((nearest == labels).float().mean())


def train(
    client: SelectionClient, score: str, pool: Batch, reference: nn.Module, updates: int
) -> tuple[Training, float]:
    """Trains one arm; returns it and the share of wrong captions among what it trained on."""
    spec = RunSpec(
        run_id=f"digits-{score.replace('_', '-')}",
        task="image_text",
        model="dual_encoder",
        model_config=MODEL,
        score=score,
        selector="uniform" if score == "uniform" else "softmax",
        temperature=0.1,  # losses are cosines, from -1 to 1: at 1 the draw would be nearly uniform
    )
    training = Training(updates)
    run = client.create_run(spec)
    if score != "uniform":
        run.push_reference(reference.state_dict())
        run.push_weights(training.model.state_dict(), step=0)
    wrong = []
    loader = SelectingLoader(list(batches(pool, SUPER_BATCH, updates, seed=1)), run, SUB_BATCH)
    for step, batch in enumerate(loader, start=1):
        training.update(batch)
        wrong.append(float(batch["is_wrong"].float().mean()))
        if score != "uniform" and step % PUSH_EVERY == 0:
            run.push_weights(training.model.state_dict(), step=step)
    return training, float(np.mean(wrong))


def main() -> None:
    """Trains the reference and every arm, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=300, help="of each arm")
    updates = parser.parse_args().updates
    torch.manual_seed(0)

    digits = load_digits()
    random = np.random.default_rng(0)
    order = torch.from_numpy(random.permutation(len(digits.target)))
    images = torch.from_numpy((digits.images * 15).astype(np.uint8)).unsqueeze(1)[order]
    labels = torch.from_numpy(digits.target)[order]
    pool = captioned(images[CLEAN : CLEAN + POOL], labels[CLEAN : CLEAN + POOL], 0.5, random)
    test = images[CLEAN + POOL :], labels[CLEAN + POOL :]

    reference = Training(REFERENCE_UPDATES)
    for batch in batches(captioned(images[:CLEAN], labels[:CLEAN], 0.0, random), SUB_BATCH, REFERENCE_UPDATES, seed=2):
        reference.update(batch)
    print(f"reference, trained on {CLEAN} clean pairs: accuracy {reference.accuracy(*test):.3f}\n")

    print(f"{'score':16}{'updates':>8}{'wrong captions trained on':>28}{'zero-shot accuracy':>20}")
    with tempfile.TemporaryDirectory() as store:
        config = {
            "pool": "in-process",
            "gateway": {"host": "127.0.0.1", "port": 0},
            "metrics": {"enabled": False},
            "weights": {"path": store},
        }
        service = start_service(parse_config(config))
        try:
            with SelectionClient(f"127.0.0.1:{service.ports.grpc}") as client:
                for score in ("uniform", "learnability", "easy_reference"):
                    training, wrong = train(client, score, pool, reference.model, updates)
                    print(f"{score:16}{updates:8}{wrong:28.2f}{training.accuracy(*test):20.3f}", flush=True)
        finally:
            service.stop()


if __name__ == "__main__":
    main()
