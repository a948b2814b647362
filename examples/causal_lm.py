"""Text, half of it garbled: train a small language model with and without selection, through a local service.

    python examples/causal_lm.py

The text is the manual that ships inside Python (`pydoc_data.topics`), cut into pieces and read letter by letter. In
half of the pool the letters of each piece are shuffled. A reference is trained on a small clean part. Both arms see the
same candidates and make the same number of updates. Takes less than a minute on a CPU and needs
`preceptor[service,transformers]`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from preceptor import RunSpec, SelectionClient
from preceptor.torch import SelectingLoader
from preceptor_service.app import start_service
from preceptor_service.config import parse_config

CONTEXT_LENGTH = 48
LETTERS = 128
MODEL: dict[str, Any] = {
    "vocab_size": LETTERS, "n_positions": CONTEXT_LENGTH, "n_embd": 48, "n_layer": 2, "n_head": 2,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
CLEAN, POOL, TEST = 1000, 8000, 500
SUPER_BATCH, SUB_BATCH = 64, 16
PUSH_EVERY = 10
REFERENCE_UPDATES = 150

Batch = dict[str, torch.Tensor]


def pieces(random: np.random.Generator) -> list[bytes]:
    """Returns pieces of the manual of up to `CONTEXT_LENGTH` letters, some shorter, in random order."""
    text = " ".join(" ".join(topics.values()).split()).encode("ascii", "replace")
    found = []
    while text:
        length = int(random.integers(CONTEXT_LENGTH // 2, CONTEXT_LENGTH + 1))
        found.append(text[:length])
        text = text[length:]
    return [found[position] for position in random.permutation(len(found))]


def columns(texts: list[bytes], garbled_share: float, random: np.random.Generator) -> Batch:
    """Returns the texts as a tokenizer would; `is_garbled` tells which were shuffled, and is never sent."""
    ids = np.zeros((len(texts), CONTEXT_LENGTH), np.int64)
    mask = np.zeros_like(ids)
    is_garbled = random.permutation(len(texts)) < garbled_share * len(texts)
    for row, text in enumerate(texts):
        letters = np.frombuffer(text, np.uint8)
        ids[row, : len(text)] = random.permutation(letters) if is_garbled[row] else letters
        mask[row, : len(text)] = 1
    arrays = {"input_ids": ids, "attention_mask": mask, "is_garbled": is_garbled}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def batches(texts: Batch, size: int, count: int, seed: int) -> Iterator[Batch]:
    """Yields `count` batches drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        rows = torch.randint(len(texts["input_ids"]), (size,), generator=generator)
        yield {name: column[rows] for name, column in texts.items()}


class Training:
    """A learner and how it is updated: next-token loss, AdamW, the learning rate decayed to 0 over `updates`."""

    def __init__(self, updates: int) -> None:
        torch.manual_seed(0)
        self.model: Any = GPT2LMHeadModel(GPT2Config(**MODEL, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, updates)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Returns the mean next-token loss over all tokens of the batch that are not padding."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = self.model(ids, attention_mask=mask).logits
        return cross_entropy(logits[:, :-1][mask[:, 1:] == 1], ids[:, 1:][mask[:, 1:] == 1])

    def update(self, batch: Batch) -> None:
        """Makes one update."""
        self.optimizer.zero_grad()
        self.loss(batch).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()

    @torch.no_grad()
    def test_loss(self, test: Batch) -> float:
        """Returns the loss on held-out clean text, in nats per letter."""
        return float(self.loss(test))


def train(client: SelectionClient, score: str, pool: Batch, reference: Any, updates: int) -> tuple[Training, float]:
    """Trains one arm; returns it and the share of garbled texts among what it trained on."""
    spec = RunSpec(
        run_id=f"manual-{score.replace('_', '-')}",
        task="causal_lm",
        model="causal_lm",
        model_config={**MODEL, "model_type": "gpt2", "context_length": CONTEXT_LENGTH},
        score=score,
        selector="uniform" if score == "uniform" else "softmax",
        temperature=0.1,  # mean losses per letter differ by tenths
    )
    training = Training(updates)
    run = client.create_run(spec)
    if score != "uniform":
        run.push_reference(reference.state_dict())
        run.push_weights(training.model.state_dict(), step=0)
    garbled = []
    loader = SelectingLoader(list(batches(pool, SUPER_BATCH, updates, seed=1)), run, SUB_BATCH)
    for step, batch in enumerate(loader, start=1):
        training.update(batch)
        garbled.append(float(batch["is_garbled"].float().mean()))
        if score != "uniform" and step % PUSH_EVERY == 0:
            run.push_weights(training.model.state_dict(), step=step)
    return training, float(np.mean(garbled))


def main() -> None:
    """Trains the reference and every arm, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=150, help="of each arm")
    updates = parser.parse_args().updates

    random = np.random.default_rng(0)
    texts = pieces(random)
    clean = columns(texts[:CLEAN], 0.0, random)
    test = columns(texts[CLEAN : CLEAN + TEST], 0.0, random)
    pool = columns(texts[CLEAN + TEST :][:POOL], 0.5, random)

    reference = Training(REFERENCE_UPDATES)
    for batch in batches(clean, SUB_BATCH, REFERENCE_UPDATES, seed=2):
        reference.update(batch)
    print(f"reference, trained on {CLEAN} clean texts: loss {reference.test_loss(test):.3f} nats per letter\n")

    print(f"{'score':16}{'updates':>8}{'garbled texts trained on':>28}{'held-out loss':>16}")
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
                for score in ("uniform", "learnability", "hard_learner"):
                    training, garbled = train(client, score, pool, reference.model, updates)
                    print(f"{score:16}{updates:8}{garbled:28.2f}{training.test_loss(test):16.3f}", flush=True)
        finally:
            service.stop()


if __name__ == "__main__":
    main()
