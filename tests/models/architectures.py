"""Architectures that an operator might add, for tests."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from preceptor_service.columns import ColumnSpec


class UnheardOfError(Exception):
    """Of a library that nobody knows."""


class NormDropout(nn.Module):
    """Batch-norm and dropout: in train mode, both would show that candidates were scored."""

    def __init__(self, pixels: int, num_classes: int) -> None:
        super().__init__()
        self.input_columns = (ColumnSpec("image", "float", (pixels,)),)
        self.num_classes = num_classes
        self.norm = nn.BatchNorm1d(pixels)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(pixels, num_classes)
        self.register_buffer("noise", torch.rand(pixels), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.dropout(self.norm(image + self.get_buffer("noise"))))
        return logits


def norm_dropout(*, pixels: Annotated[int, Field(ge=1, le=100)] = 4, num_classes: int = 3) -> nn.Module:
    return NormDropout(pixels, num_classes)


def broken(*, num_classes: int) -> nn.Module:
    raise KeyError(num_classes)


FAULTS: dict[str, Exception] = {
    "argument": TypeError("depth must divide width\n  File /opt/venv/lib/own.py"),
    "path": ValueError("/opt/venv/lib/own.py: depth must divide width"),
    "length": ValueError("x" * 100_000),
    "files": OSError(24, "Too many open files", "/opt/venv/lib/own.py"),
    "memory": MemoryError("/opt/venv"),
    "other": UnheardOfError("/opt/venv"),
}


def faulty(*, fault: str) -> nn.Module:
    raise FAULTS[fault]


def no_classifier() -> nn.Module:
    return nn.Linear(2, 2)


NOT_A_FUNCTION = 3
