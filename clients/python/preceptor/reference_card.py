"""The card of a reference, as `preceptor train-reference` writes it, for the wire. Called by `client.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preceptor.runs import model_to_proto
from preceptor.v1 import run_pb2, weights_pb2

Card = Mapping[str, Any] | str | os.PathLike[str]
"""A card, or the path of its file."""


def card_to_proto(card: Card) -> weights_pb2.ReferenceCard:
    """Returns what the service compares of a card.

    Raises:
        ValueError: it is no card.
        OSError: its file cannot be read.
    """
    where = "card" if isinstance(card, Mapping) else os.fspath(card)
    try:
        read = card if isinstance(card, Mapping) else json.loads(Path(card).read_text(encoding="utf-8"))
        reads = read["preprocessing"]
        image = reads.get("image")
        return weights_pb2.ReferenceCard(
            digest=read["weights"]["digest"],
            task=read["task"],
            model=model_to_proto(read["model"], read["model_config"]),
            columns=[
                run_pb2.Column(name=column["name"], element_type=column["element_type"], shape=column["shape"])
                for column in reads["columns"]
            ],
            image=None if image is None else weights_pb2.ImagePreprocessing(**image),
            fold=read.get("data", {}).get("fold"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where} is no card of a reference ({error!r:.200}); give card.json, as preceptor train-reference wrote it"
        ) from error
