"""A service in a process of its own that a test can kill; run as a program, that process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preceptor_service.app import start_service
from preceptor_service.models.images import ImageInput
from preceptor_service.models.small_cnn import SmallCnn
from tests.service.conftest import config, target_of

_PAUSE_S = 0.01
_LONGEST_S = 60.0


class Dawdler(SmallCnn):
    """A `small_cnn` whose updates, or scores, say that they began, and wait for as long as a file is there."""

    def __init__(self, hold: str, held: str, **settings: Any) -> None:
        image_input = ImageInput(settings["in_channels"], settings["image_size"], "uint8", 0.0, 1.0)
        super().__init__(image_input, settings["num_classes"], settings["width"])
        self.hold = Path(hold)
        self.holds_training = held == "updates"

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.training is self.holds_training and image.device.type != "meta" and self.hold.exists():
            began_at(self.hold).write_text(str(os.getpid()))
            pause = threading.Event()
            for _ in range(round(_LONGEST_S / _PAUSE_S)):
                if not self.hold.exists():
                    break
                pause.wait(_PAUSE_S)
        return super().forward(image)


def dawdler(
    *, hold: str, held: str = "updates", in_channels: int, image_size: int, num_classes: int, width: int
) -> nn.Module:
    return Dawdler(hold, held, in_channels=in_channels, image_size=image_size, num_classes=num_classes, width=width)


def began_at(hold: Path) -> Path:
    """The file that what waits makes when it begins to, with its process id."""
    return hold.with_suffix(".began")


@contextmanager
def serving(store: Path, failpoint: str = "") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Such a process on a store, that dies at `failpoint`: where it listens, and what to kill.

    It has as many threads as this one: the order in which a sum is added up depends on it, and so does its last bit.
    """
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    command = [sys.executable, "-m", "tests.service.mortal_service", str(store), str(torch.get_num_threads())]
    environment = {**os.environ, "PYTHONPATH": path, "PRECEPTOR_FAILPOINT": failpoint}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def main(store: str, threads: int) -> None:
    torch.set_num_threads(threads)
    architectures = {"dawdler": "tests.service.mortal_service:dawdler"}
    service = start_service(config(Path(store), architectures=architectures))
    sys.stdout.write(f"{target_of(service)}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
