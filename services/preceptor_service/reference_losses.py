"""Tables of reference losses in a gateway: found by name, looked up by `example_id`. No torch, no Ray."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from preceptor.errors import InvalidRunError, InvalidSuperBatchError, InvalidWeightsError, UnavailableError
from preceptor.quoting import brief, quoted
from preceptor_service.config import ReferenceLossesConfig
from preceptor_service.losses_file import read_losses

logger = logging.getLogger(__name__)


class ReferenceLosses:
    """One table in memory. Immutable, so threads may share it.

    Args:
        name: as runs call it.
        path: of the table.
        max_bytes: bound on ids, losses and digests in memory.

    Raises:
        ValueError: it is no table of ours, not as it was written, or larger than `max_bytes`.
    """

    def __init__(self, name: str, path: Path, max_bytes: int) -> None:
        self.name = name
        metadata, ids, self._losses, self._contents = read_losses(path)
        self.digest: str = metadata["digest"]
        self.weights_digest: str = metadata["identity"]["weights"]
        self.has_text_ids = pa.types.is_string(ids.type)
        # Texts as bytes of one width, whose order is that of UTF-8, and so the table's.
        if self.has_text_ids and any(text.endswith("\0") for text in ids.to_pylist()):
            raise ValueError(f"{path} has ids that end in a zero byte; name the examples otherwise")
        found = [text.encode() for text in ids.to_pylist()] if self.has_text_ids else ids.to_numpy()
        self._ids: NDArray[Any] = np.asarray(found, np.bytes_ if self.has_text_ids else np.int64)
        contents_bytes = 0 if self._contents is None else self._contents.nbytes
        if (total_bytes := self._ids.nbytes + self._losses.nbytes + contents_bytes) > max_bytes:
            raise ValueError(
                f"{path} takes {total_bytes:,} bytes in memory, the limit is {max_bytes:,} (reference_losses.max_bytes)"
            )

    @property
    def keeps_contents(self) -> bool:
        """Whether it knows the content of its examples, so that `find` can tell other content under the same id."""
        return self._contents is not None

    def find(
        self, example_id: Any, contents: NDArray[np.uint64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns losses, float32 `[B]`, and which ids the table has, bool `[B]`; the loss of others is NaN.

        Args:
            example_id: Arrow array `[B]` of int64 or string, without nulls.
            contents: `SuperBatch.contents` of the candidates, uint64 `[B]`; None does without comparing them.

        Raises:
            InvalidSuperBatchError: the table's ids are of the other type, or a candidate has other content than the
                table's example of that id.
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
        if contents is not None and self._contents is not None:
            self._refuse_other_contents(example_id, np.flatnonzero(found & (self._contents[places] != contents)))
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

    def _refuse_other_contents(self, example_id: Any, rows: NDArray[np.int64]) -> None:
        if len(rows):
            more = f", and so {len(rows) - 1} more rows" if len(rows) > 1 else ""
            raise InvalidSuperBatchError(
                f"example_id {quoted(example_id[rows[0]].as_py())} in row {rows[0]} has other content than the example "
                f"of that id in the table of reference losses {self.name!r}{more}; offer examples as the table was "
                "built from them, give others ids of their own, or build a table of these"
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
            UnavailableError: it cannot be read now.
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
            except ValueError as error:
                raise InvalidRunError(f"reference_losses is {name!r}, which cannot be used: {brief(error)}") from error
            except OSError as error:
                logger.warning("the table of reference losses %s cannot be read: %s", name, error)
                raise UnavailableError(
                    f"reference_losses is {name!r}, which cannot be read now; try again, the service's log says why"
                ) from error
            return found
