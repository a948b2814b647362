"""An architecture that breaks scorers: their devices, or the way to their storage."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from preceptor_service.models.images import ImageInput
from preceptor_service.models.small_cnn import SmallCnn


class Breaking(SmallCnn):
    """A `small_cnn` that fails for as long as a file is there: in the first process that comes, or in all."""

    def __init__(self, file: str, what: str, **settings: Any) -> None:
        image_input = ImageInput(settings["in_channels"], settings["image_size"], "uint8", 0.0, 1.0)
        super().__init__(image_input, settings["num_classes"], settings["width"])
        self.file = Path(file)
        self.what = what

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.device.type != "meta" and self.file.exists():
            if self.what == "code":
                raise ZeroDivisionError("a secret of the operator's code")
            if broken(self.file) == os.getpid():
                if self.what == "storage":
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                torch.ones = gone  # as any further work on such a device
                gone()
        return super().forward(image)


def breaking(*, file: str, what: str, in_channels: int, image_size: int, num_classes: int, width: int) -> nn.Module:
    return Breaking(file, what, in_channels=in_channels, image_size=image_size, num_classes=num_classes, width=width)


def gone(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def broken(file: Path) -> int:
    """The process that broke: this one, if none did."""
    claim = file.with_suffix(".claimed")
    with suppress(FileExistsError):
        claim.symlink_to(str(os.getpid()))  # at once, with its content
    return int(claim.readlink().name)
