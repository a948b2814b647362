"""A run that asks for everything, half of its reference losses from a table; and the operator's table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save_file

from preceptor import MemoryBank
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference.losses_job import build_losses, score_here
from preceptor_service.reference.part_scorer import Layout, Scoring, read_reference
from tests.observability.trainers import DISTINCT, Trainer, example_ids, model_config, super_batch, weights

FASHION = Trainer(
    "fashion",
    settings={
        "ledger": True,
        "reference_losses": "known",
        "memory_bank": MemoryBank(256),
        "control_fraction": 0.1,
    },
)
"""It also keeps a ledger, has a memory bank, and holds steps back."""


def write_table(folder: Path) -> None:
    """Writes the reference losses of every other super-batch of `FASHION` into `folder`, which does not exist yet."""
    folder.mkdir()
    save_file(weights(0, FASHION.width), folder / "weights.safetensors")
    reference = read_reference(
        folder / "weights.safetensors",
        "classification",
        "small_cnn",
        model_config(FASHION.width),
        ArchitectureRegistry(),
    )
    known = [(super_batch(number, FASHION.rows), example_ids(number, FASHION.rows)) for number in range(0, DISTINCT, 2)]
    images = np.concatenate([batch["image"] for batch, _ in known])
    pq.write_table(
        pa.table(
            {
                "image": images.reshape(len(images), -1).tolist(),
                "label": np.concatenate([batch["label"] for batch, _ in known]),
                "example_id": np.concatenate([ids for _, ids in known]),
            }
        ),
        folder / "data.parquet",
    )
    build_losses(
        reference, [folder / "data.parquet"], Layout("example_id", {}), Scoring(64, "cpu", 1, {}), 64,
        folder / "known.parquet", score_here, lambda: False, lambda done, total: None,
    )  # fmt: skip
