"""Architectures that a test holds up, counts or breaks; the service of the tests allows them by config."""

from __future__ import annotations

import threading
from collections import defaultdict

import torch
from torch import nn

from preceptor_service.columns import ColumnSpec

_GATE_TIMEOUT_S = 30.0


class Gate:
    """What forward passes of one name wait for; counts those that began."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_open = True
        self._arrived = 0

    @property
    def arrived(self) -> int:
        with self._changed:
            return self._arrived

    def close(self) -> None:
        with self._changed:
            self._is_open = False

    def open(self) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def wait_for(self, arrived: int) -> None:
        """Waits until so many forward passes began."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._arrived >= arrived, _GATE_TIMEOUT_S):
                raise TimeoutError(f"{self._arrived} forward passes began, {arrived} were expected")

    def pass_through(self) -> None:
        with self._changed:
            self._arrived += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_open, _GATE_TIMEOUT_S)


GATES: defaultdict[str, Gate] = defaultdict(Gate)


class GatedLinear(nn.Module):
    """A linear classifier of two numbers that passes a gate first."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self.input_columns = (ColumnSpec("image", "float", (2,)),)
        self.num_classes = 4
        self.gate = gate
        self.head = nn.Linear(2, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.device.type != "meta":  # the gateway only looks at shapes there
            GATES[self.gate].pass_through()
        logits: torch.Tensor = self.head(image)
        return logits


def gated(*, gate: str) -> nn.Module:
    return GatedLinear(gate)


class Paced(nn.Module):
    """A linear classifier of two numbers whose forward pass takes `pace_s`: a scorer of known speed."""

    def __init__(self, pace_s: float) -> None:
        super().__init__()
        self.input_columns = (ColumnSpec("image", "float", (2,)),)
        self.num_classes = 4
        self.pace_s = pace_s
        self.head = nn.Linear(2, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.device.type != "meta":
            threading.Event().wait(self.pace_s)
        logits: torch.Tensor = self.head(image)
        return logits


def paced(*, pace_s: float) -> nn.Module:
    return Paced(pace_s)


class Failing(GatedLinear):
    """Fails in its forward pass, the way somebody's code may."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.device.type != "meta":
            raise ZeroDivisionError("a secret of the operator's code")
        return super().forward(image)


def failing() -> nn.Module:
    return Failing("never")
