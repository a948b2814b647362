"""Tables of reference losses in a gateway: found by name, looked up by `example_id`. No torch, no Ray."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from preceptor.errors import InvalidRunError, InvalidSuperBatchError, InvalidWeightsError
from preceptor_service.config import ReferenceLossesConfig

METADATA = b"preceptor.reference_losses"
"""Key of the schema's metadata under which a table says, as JSON, what it was made from."""
_COLUMNS = ["example_id", "reference_loss"]


def metadata_of(path: Path) -> dict[str, Any]:
    """Returns what a table says that it was made from; its `digest` is that of what its losses depend on.

    Raises:
        ValueError: it is no table of ours.
    """
    try:
        with pq.ParquetFile(path) as file:
            found = json.loads((file.schema_arrow.metadata or {})[METADATA])
        _ = found["digest"], found["identity"]["weights"]
        if found["rows"] < 1:
            raise ValueError("it has 0 rows")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no table of reference losses: {error!r:.200}") from error
    return dict(found)


class ReferenceLosses:
    """One table in memory. Immutable, so threads may share it.

    Args:
        name: as runs call it.
        path: of the table.
        max_bytes: bound on ids and losses in memory.

    Raises:
        ValueError: it is no table of ours, or larger than `max_bytes`.
    """

    def __init__(self, name: str, path: Path, max_bytes: int) -> None:
        self.name = name
        metadata = metadata_of(path)
        self.digest: str = metadata["digest"]
        self.weights_digest: str = metadata["identity"]["weights"]
        table = pq.read_table(path, columns=_COLUMNS)
        ids = table.column(0)
        self.has_text_ids = pa.types.is_string(ids.type)
        # Texts as bytes of one width, whose order is that of UTF-8, and so the table's.
        if self.has_text_ids and any(text.endswith("\0") for text in ids.to_pylist()):
            raise ValueError(f"{path} has ids that end in a zero byte; name the examples otherwise")
        found = [text.encode() for text in ids.to_pylist()] if self.has_text_ids else ids.to_numpy()
        self._ids: NDArray[Any] = np.asarray(found, np.bytes_ if self.has_text_ids else np.int64)
        self._losses: NDArray[np.float32] = table.column(1).to_numpy().astype(np.float32)
        if (total_bytes := self._ids.nbytes + self._losses.nbytes) > max_bytes:
            raise ValueError(
                f"{path} takes {total_bytes:,} bytes in memory, the limit is {max_bytes:,} (reference_losses.max_bytes)"
            )

    def find(self, example_id: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns losses, float32 `[B]`, and which ids the table has, bool `[B]`; the loss of others is NaN.

        Args:
            example_id: Arrow array `[B]` of int64 or string, without nulls.

        Raises:
            InvalidSuperBatchError: the table's ids are of the other type.
        """
        if pa.types.is_string(example_id.type) != self.has_text_ids:
            kind = "texts" if self.has_text_ids else "whole numbers"
            raise InvalidSuperBatchError(
                f"column 'example_id' is {example_id.type}; the ids of table {self.name!r} are {kind}: send those"
            )
        wanted: NDArray[Any] = example_id.to_numpy(zero_copy_only=False)
        if self.has_text_ids:
            width = self._ids.dtype.itemsize
            encoded = [text.encode() for text in wanted]
            # NumPy cuts texts to its width, and zero bytes off their ends, without a word: such are not in the table.
            wanted = np.array([text if len(text) <= width else b"" for text in encoded], self._ids.dtype)
            is_whole = np.array([given == kept for given, kept in zip(encoded, wanted, strict=True)], np.bool_)
        else:
            is_whole = np.ones(len(wanted), np.bool_)
        places = np.minimum(np.searchsorted(self._ids, wanted), max(0, len(self._ids) - 1))
        found = is_whole & (self._ids[places] == wanted)
        return np.where(found, self._losses[places], np.float32(np.nan)), found

    def check_reference(self, digest: str, weights_digest: str) -> None:
        """Checks that a reference is the one that the table was made with.

        Args:
            digest: of what its losses depend on, `loss_identity.digest_of`.
            weights_digest: of its weights alone, for the error.

        Raises:
            InvalidWeightsError: it is another one.
        """
        if digest == self.digest:
            return
        what = (
            f"its weights are {weights_digest}, the table's {self.weights_digest}"
            if weights_digest != self.weights_digest
            else "its weights are the table's; task, model, settings or preprocessing are not"
        )
        raise InvalidWeightsError(
            f"this is not the reference that the table of reference losses {self.name!r} was made with: {what}; push "
            "that one, or name a table of this one"
        )


class ReferenceLossTables:
    """The operator's tables. One that a run uses is in memory once, and gone with its last run. Thread-safe."""

    def __init__(self, settings: ReferenceLossesConfig) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # held while one table is read
        self._open: WeakValueDictionary[tuple[str, int, int], ReferenceLosses] = WeakValueDictionary()

    def table(self, name: str) -> ReferenceLosses:
        """Returns a table. Blocking; reads it where no run uses it yet. `name` is known to be a plain word.

        Raises:
            InvalidRunError: there is none of that name, or it cannot be used.
        """
        directory = self._settings.directory
        if directory is None:
            raise InvalidRunError(
                f"reference_losses is {name!r}; this service has no tables (reference_losses.directory)"
            )
        path = directory / f"{name}.parquet"
        with self._lock:
            try:
                state = path.stat()
                key = (name, state.st_mtime_ns, state.st_size)
                found = self._open.get(key)
                if found is None:
                    found = self._open[key] = ReferenceLosses(name, path, self._settings.max_bytes)
            except FileNotFoundError as error:
                raise InvalidRunError(
                    f"reference_losses is {name!r}; this service has no table of that name, ask its operator"
                ) from error
            except (OSError, ValueError) as error:
                raise InvalidRunError(f"reference_losses is {name!r}, which cannot be used: {error}") from error
            return found
