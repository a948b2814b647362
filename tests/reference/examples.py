"""Small data sets of every task, in memory and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from preceptor_service.reference.train_job import Model

Arrays = dict[str, NDArray[Any]]

IMAGES = Model("classification", "small_cnn", {"in_channels": 1, "image_size": 8, "num_classes": 4, "width": 2})
PAIRS = Model(
    "image_text",
    "dual_encoder",
    {"in_channels": 1, "image_size": 8, "vocab_size": 6, "context_length": 4, "width": 2, "text_width": 4},
)
TEXTS = Model(
    "causal_lm",
    "causal_lm",
    {
        "model_type": "gpt2", "vocab_size": 6, "context_length": 4, "n_positions": 4, "n_embd": 8, "n_layer": 1,
        "n_head": 2, "bos_token_id": 0, "eos_token_id": 0,
    },
)  # fmt: skip


def arrays(model: Model, rows: int, seed: int = 0) -> Arrays:
    """Learnable examples: the label, or every token, says how bright the image is, or how the text goes on."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, rows)
    image = (rng.integers(0, 40, (rows, 1, 8, 8)) + 60 * label[:, None, None, None]).astype(np.uint8)
    tokens = (label[:, None] + np.arange(4)) % 4 + 1
    mask = (np.arange(4) < rng.integers(2, 5, rows)[:, None]).astype(np.int64)
    texts = {"input_ids": tokens * mask, "attention_mask": mask}
    if model.task == "classification":
        return {"image": image, "label": label}
    return {"image": image, **texts} if model.task == "image_text" else texts


def table(columns: Arrays, **more: Any) -> pa.Table:
    """Arrays as nested lists, as pandas or datasets would write them."""
    return pa.table({**{name: pa.array(values.tolist()) for name, values in columns.items()}, **more})


def write(path: Path, columns: Arrays, **more: Any) -> Path:
    pq.write_table(table(columns, **more), path, row_group_size=7)
    return path
