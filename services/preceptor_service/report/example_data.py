"""The user's own data beside the ids of a ledger: pictures, captions and groups of examples. Nothing of it leaves.

The service keeps no payloads, so a report shows examples only where whoever makes it has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from preceptor_service.reference.dataset import ARROW_SUFFIXES, PARQUET_SUFFIXES, example_ids, files_of, tables
from preceptor_service.report.selections import Examples
from preceptor_service.report.thumbnails import data_uri

_MAX_CAPTION = 280
_HINT = "name yours with --id-column, --image-column, --caption-column or --class-column"


@dataclass(frozen=True)
class DataFiles:
    """Where the user's examples are.

    Attributes:
        paths: Parquet and Arrow files, or directories of them.
        id_column: of whole numbers or texts, as the trainer offered them.
        image_column, caption_column: None where there are none.
        group_columns: by which the selected share is shown: class, source, …
        image_shape: of images that lie in the files as flat lists; None: nested lists, or encoded files.
    """

    paths: Sequence[Path]
    id_column: str = "example_id"
    image_column: str | None = None
    caption_column: str | None = None
    group_columns: Sequence[str] = ()
    image_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Group:
    """Examples of one class or source.

    Attributes:
        name: the value in its column.
        examples: how many of them were offered at least once.
        offered, selected: how often, all of them together.
        expected: how often uniform draws would have selected them, on average.
    """

    name: str
    examples: int
    offered: int
    selected: int
    expected: float

    @property
    def over_uniform(self) -> float:
        """How often they were selected, over how often uniform draws would have; 1 is no preference."""
        return self.selected / self.expected if self.expected else 0.0


@dataclass(frozen=True)
class Shown:
    """What can be shown of one example. `image` is a data URI."""

    image: str | None = None
    caption: str | None = None
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExampleData:
    """What the data said.

    Attributes:
        shown: by id, of those that were asked for and are in the data.
        groups: by column, most selected over uniform first.
        found: examples of the ledger that are in the data.
    """

    shown: dict[str, Shown]
    groups: dict[str, tuple[Group, ...]]
    found: int


def read_examples(files: DataFiles, examples: Examples, shown: Sequence[str]) -> ExampleData:
    """Reads what `files` know of `examples`, a row group at a time; of an id that is there twice the first row.

    Raises:
        JobError: no such file, a column is missing or of another type, or an image cannot be shown.
    """
    columns = [files.id_column, *(name for name in (files.image_column, files.caption_column) if name)]
    columns += [name for name in files.group_columns if name not in columns]
    seen = np.zeros(len(examples), np.bool_)
    wanted, found = set(shown), dict[str, Shown]()
    codes = {name: _Codes(len(examples)) for name in files.group_columns}
    for where, table in _tables(files, columns):
        ids = pc.cast(
            example_ids(table.column(files.id_column), f"{where}: column {files.id_column!r}", 0), pa.string()
        )
        places = pc.index_in(ids, value_set=examples.ids)
        is_first = _first_of_each(places, seen)
        rows, at = np.flatnonzero(is_first), places.fill_null(-1).to_numpy()[is_first]
        seen[at] = True
        for name, code in codes.items():
            code.put(at, _texts(table.column(name)).take(pa.array(rows)))
        for row in rows[np.isin(at, _places(examples.ids, wanted))]:
            found[ids[row].as_py()] = _shown(files, table, int(row), where)
    groups = {name: code.groups(examples) for name, code in codes.items()}
    return ExampleData(found, groups, int(seen.sum()))


class _Codes:
    """The group of each example, as a number; −1 where it is not known."""

    def __init__(self, count: int) -> None:
        self._of = np.full(count, -1)
        self._names: dict[str, int] = {}

    def put(self, at: NDArray[np.int64], names: Any) -> None:
        encoded = names.dictionary_encode()
        numbers = np.array(
            [self._names.setdefault(name, len(self._names)) for name in encoded.dictionary.to_pylist()], np.int64
        )
        self._of[at] = numbers[encoded.indices.to_numpy()] if len(numbers) else self._of[at]

    def groups(self, examples: Examples) -> tuple[Group, ...]:
        known = self._of >= 0
        of, count = self._of[known], len(self._names)
        rows, offered, selected, expected = (
            np.bincount(of, weights=values[known], minlength=count)
            for values in (np.ones(len(examples)), examples.offered, examples.selected, examples.expected)
        )
        found = [
            Group(name, int(rows[number]), int(offered[number]), int(selected[number]), float(expected[number]))
            for name, number in self._names.items()
        ]
        return tuple(sorted(found, key=lambda group: (-group.over_uniform, group.name)))


def _tables(files: DataFiles, columns: list[str]) -> Iterator[tuple[Path, Any]]:
    for path in files_of(files.paths, PARQUET_SUFFIXES | ARROW_SUFFIXES):
        for table in tables(path, columns, _HINT):
            yield path, table.combine_chunks()


def _first_of_each(places: Any, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns which rows are the first of an example that was offered and not yet read."""
    at = places.fill_null(-1).to_numpy()
    is_new = (at >= 0) & ~seen[at]
    _, first = np.unique(at, return_index=True)
    is_first = np.zeros(len(at), np.bool_)
    is_first[first] = True
    both: NDArray[np.bool_] = is_new & is_first
    return both


def _places(ids: Any, wanted: set[str]) -> NDArray[np.int64]:
    places = pc.index_in(pa.array(sorted(wanted), pa.string()), value_set=ids)
    known: NDArray[np.int64] = places.drop_null().to_numpy()
    return known


def _shown(files: DataFiles, table: Any, row: int, where: Path) -> Shown:
    caption = None
    if files.caption_column is not None:
        caption = _texts(table.column(files.caption_column))[row].as_py()
        caption = caption if len(caption) <= _MAX_CAPTION else f"{caption[:_MAX_CAPTION]}…"
    image = None
    if files.image_column is not None:
        value = _image(table.column(files.image_column), row)
        image = data_uri(value, files.image_shape, f"{where}: column {files.image_column!r}, row {row}")
    groups = {name: _texts(table.column(name))[row].as_py() for name in files.group_columns}
    return Shown(image, caption, groups)


def _image(column: Any, row: int) -> Any:
    """Returns a value of a column; a tensor as an array, its axes in order whatever they are in memory."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not isinstance(array.type, pa.FixedShapeTensorType):
        return array[row].as_py()
    if not array[row].is_valid:
        return None
    order = array.type.permutation or range(len(array.type.shape))
    return np.array(array.storage[row].as_py()).reshape(array.type.shape).transpose(np.argsort(order))


def _texts(column: Any) -> Any:
    """Returns a column as texts, lists as theirs joined; nulls as –."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    try:
        texts = pc.cast(column, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        texts = pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    return pc.fill_null(texts, "–")
