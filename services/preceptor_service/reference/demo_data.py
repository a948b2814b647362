"""The demo's images: a pool with half of its labels wrong, a small clean part, and a test part; all disjoint."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA_SETS = ("digits", "fashion-mnist")
NUM_CLASSES = 10
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_IDX_UINT8 = 0x08


class DataMissingError(Exception):
    """A data set is not on this machine; the text says how to get it."""


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        image: uint8 `[N, 1, S, S]`.
        label: int64 `[N]`, in [0, 10).
        example_id: int64 `[N]`, the position in the source, which tells parts apart.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.int64]
    example_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    def take(self, positions: NDArray[np.int64]) -> Images:
        """Returns those at `positions`, in that order."""
        return Images(self.image[positions], self.label[positions], self.example_id[positions])


@dataclass(frozen=True)
class Parts:
    """What one comparison trains and tests on.

    Attributes:
        pool: the candidates, with wrong labels among them.
        is_corrupt: bool `[len(pool)]`, whose label is wrong; known to the demo, never sent to the service.
        clean: what the reference model is trained on.
        test: what the learner is tested on, with true labels.
    """

    pool: Images
    is_corrupt: NDArray[np.bool_]
    clean: Images
    test: Images


def load(name: str, seed: int) -> Parts:
    """Returns the parts of a data set, drawn by `seed`.

    `digits`: 400 for the test, 240 clean, the pool is the other 1,157. `fashion-mnist`: 2,000 of the test images, 5,000
    clean, a pool of 55,000.

    Raises:
        DataMissingError: Fashion-MNIST is not installed, or its files cannot be read.
        ValueError: `name` is not one of `DATA_SETS`.
    """
    rng = np.random.default_rng(seed)
    if name == "digits":
        test, clean, pool = _parts(_digits(), (400, 240), rng)
    elif name == "fashion-mnist":
        train = fashion_mnist("train", first_id=0)
        clean, pool = _parts(train, (5_000,), rng)
        test, _ = _parts(fashion_mnist("t10k", first_id=len(train)), (2_000,), rng)
    else:
        raise ValueError(f"data is {name!r}; choose one of {DATA_SETS}")
    noisy, is_corrupt = corrupted(pool, rng)
    return Parts(noisy, is_corrupt, clean, test)


def corrupted(images: Images, rng: np.random.Generator) -> tuple[Images, NDArray[np.bool_]]:
    """Returns the images with half of the labels, rounded down, each replaced by one of the nine others, and which."""
    chosen = rng.permutation(len(images))[: len(images) // 2]
    label = images.label.copy()
    label[chosen] = (label[chosen] + rng.integers(1, NUM_CLASSES, len(chosen))) % NUM_CLASSES
    is_corrupt = np.zeros(len(images), dtype=np.bool_)
    is_corrupt[chosen] = True
    return Images(images.image, label, images.example_id), is_corrupt


def _parts(images: Images, sizes: tuple[int, ...], rng: np.random.Generator) -> list[Images]:
    """Returns disjoint parts of those sizes, and the rest as the last one."""
    return [images.take(part) for part in np.split(rng.permutation(len(images)), np.cumsum(sizes))]


def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, np.newaxis]
    return Images(image, digits.target.astype(np.int64), np.arange(len(image)))


def fashion_mnist(part: str, first_id: int) -> Images:
    """Returns the images of Fashion-MNIST in the order of their file.

    Args:
        part: `"train"`, 60,000, or `"t10k"`, 10,000.
        first_id: example id of the first one.

    Raises:
        DataMissingError: it is not installed, or cannot be read.
    """
    try:
        image = read_idx(FASHION_MNIST / f"{part}-images-idx3-ubyte.gz")[:, np.newaxis]
        label = read_idx(FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
    except (OSError, EOFError, ValueError) as error:
        raise DataMissingError(
            f"Fashion-MNIST is not readable in {FASHION_MNIST} ({error}); it comes with Debian's package "
            "dataset-fashion-mnist: apt-get install dataset-fashion-mnist"
        ) from error
    return Images(image, label, np.arange(first_id, first_id + len(label)))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Returns the array of a gzipped IDX file of bytes.

    Two zero bytes, the element type, the number of dimensions, each dimension as a big-endian int32, then the values.

    Raises:
        OSError, EOFError: the file is not there, or is no gzip file, or ends early.
        ValueError: it holds something else than that many bytes.
    """
    with gzip.open(path) as file:
        content = file.read()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _IDX_UINT8:
        raise ValueError(f"{path.name} is no IDX file of bytes; it begins with {content[:4].hex()}")
    header_bytes = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:header_bytes], dtype=">i4"))
    values = np.frombuffer(content, dtype=np.uint8, offset=header_bytes)
    if len(shape) != content[3] or values.size != int(np.prod(shape)):
        raise ValueError(f"{path.name} holds {values.size} values for shape {shape}")
    return values.reshape(shape)
