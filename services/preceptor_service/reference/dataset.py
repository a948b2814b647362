"""Data sets on disk: Parquet and Arrow files to checked columns. Called by the jobs about references.

The files are the operator's own. What trainers send is decoded in `super_batch.py`, and far more strictly.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from preceptor.errors import InvalidSuperBatchError
from preceptor.folds import folds_of
from preceptor_service.columns import ColumnSpec
from preceptor_service.reference.errors import JobError

PARQUET_SUFFIXES = frozenset({".parquet"})
ARROW_SUFFIXES = frozenset({".arrow", ".feather", ".ipc"})
_SHOWN_COLUMNS = 16


@dataclass(frozen=True)
class Dataset:
    """Examples in memory: name → array `[rows, *shape]`, checked against the columns that a task reads.

    `origins` say which rows of which files they were, in their order; nothing where they came from none.
    """

    columns: Mapping[str, NDArray[Any]]
    rows: int
    origins: Sequence[tuple[Path, NDArray[np.int64]]] = ()

    def place(self, row: int) -> str:
        """Returns where a row came from, for errors."""
        left = row
        for path, rows in self.origins:
            if left < len(rows):
                return f"row {rows[left]} of {path}"
            left -= len(rows)
        return f"row {row}"

    def take(self, positions: NDArray[np.int64]) -> Dataset:
        """Returns those at `positions`, in that order."""
        return Dataset({name: values[positions] for name, values in self.columns.items()}, len(positions))

    def digest(self) -> str:
        """Returns `"sha256:..."` of names, types, shapes and values in order, whatever files they came from."""
        sha256 = hashlib.sha256()
        for name, values in self.columns.items():
            sha256.update(json.dumps([name, values.dtype.str, values.shape]).encode())
            sha256.update(np.ascontiguousarray(values).data)
        return f"sha256:{sha256.hexdigest()}"


class Fold(NamedTuple):
    """One half of the data, as the service splits it: 0 or 1, and the column of the ids that say so."""

    number: int
    id_column: str


def read_dataset(
    paths: Sequence[Path],
    columns: Sequence[ColumnSpec],
    names: Mapping[str, str],
    max_bytes: int,
    fold: Fold | None = None,
) -> Dataset:
    """Returns what files hold of `columns`, all of it in memory.

    Args:
        paths: Parquet and Arrow files, and directories of them, which are read in the order of their names.
        columns: what the task reads.
        names: column of `columns` → its name in the files, where it is another one.
        max_bytes: bound on the columns in memory.
        fold: the rows that are kept, by `preceptor.folds`; None: all. The others are checked, too.

    Raises:
        JobError: no such file, no rows, a column is missing, of another type or shape, empty in places, out of
            range or not finite, or there is more than `max_bytes`. Rows are named as they lie in their file.
    """
    wanted = [names.get(column.name, column.name) for column in columns]
    pieces: dict[str, list[NDArray[Any]]] = {column.name: [] for column in columns}
    origins: list[tuple[Path, NDArray[np.int64]]] = []
    rows, total_bytes, offered = 0, 0, 0
    for path in files_of(paths, PARQUET_SUFFIXES | ARROW_SUFFIXES):
        first_row = 0
        for table in tables(path, wanted if fold is None else [*wanted, fold.id_column]):
            kept = np.arange(first_row, first_row + table.num_rows)
            arrays = {
                column.name: column_values(table.column(name), column, f"{path}: column {name!r}", first_row)
                for column, name in zip(columns, wanted, strict=True)
            }
            examples = checked(arrays, columns, first_row, f"{path}: ")
            if fold is not None:
                ids = example_ids(table.column(fold.id_column), f"{path}: column {fold.id_column!r}", first_row)
                of_fold = np.flatnonzero(folds_of(ids.to_pylist()) == fold.number)
                examples, kept = examples.take(of_fold), kept[of_fold]
            for name, values in examples.columns.items():
                pieces[name].append(values)
                total_bytes += values.nbytes
            origins.append((path, kept))
            rows, offered, first_row = rows + len(kept), offered + table.num_rows, first_row + table.num_rows
            if total_bytes > max_bytes:
                raise JobError(
                    f"the data has more than {max_bytes:,} bytes, all held in memory: the first {rows:,} rows have "
                    f"{total_bytes:,}; give fewer rows or raise --max-gib"
                )
    if fold is not None and offered and not rows:
        raise JobError(f"none of the {offered:,} rows is of fold {fold.number}; give more, or the other fold")
    if rows == 0:
        raise JobError(f"the data has 0 rows; give at least 1 in {', '.join(map(str, paths))}")
    return Dataset({column.name: np.concatenate(pieces.pop(column.name)) for column in columns}, rows, origins)


def checked(
    arrays: Mapping[str, NDArray[Any]], columns: Sequence[ColumnSpec], first_row: int = 0, where: str = ""
) -> Dataset:
    """Returns arrays as a data set, their values checked; `where` and `first_row` is where they begin, for errors.

    Raises:
        JobError: a value is out of range or not finite.
    """
    try:
        for column in columns:
            column.check_values(arrays[column.name], first_row)
    except InvalidSuperBatchError as error:
        raise JobError(f"{where}{error}") from error
    return Dataset(arrays, len(arrays[columns[0].name]))


def files_of(paths: Sequence[Path], suffixes: frozenset[str]) -> list[Path]:
    """Returns the files among `paths` and in directories among them.

    Raises:
        JobError: one does not exist, has another suffix, or holds no such file.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.suffix in suffixes) if path.is_dir() else [path]
        if not inside or not all(file.is_file() for file in inside):
            raise JobError(f"there is no data at {path}; give {' or '.join(sorted(suffixes))} files or their directory")
        wrong = next((file for file in inside if file.suffix not in suffixes), None)
        if wrong is not None:
            raise JobError(f"{wrong} ends in {wrong.suffix!r}; give files that end in {' or '.join(sorted(suffixes))}")
        found += inside
    return found


def column_values(array: Any, column: ColumnSpec, where: str, first_row: int) -> NDArray[Any]:
    """Returns an Arrow column as an array `[rows, *shape]`, its values unchecked.

    Takes lists of any kind, nested as deep as the shape or flat, and any number type whose values fit.

    Args:
        array: Arrow array or chunked array.
        column: what it must be.
        where: file and column, for errors.
        first_row: number of its first row, for errors.

    Raises:
        JobError: nulls, another shape, no numbers, or numbers that do not fit the type.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    rows = len(array)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    depth, kind = 0, array.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        depth, kind = depth + 1, kind.value_type
    is_flat = depth == 1 and len(column.shape) > 1
    if not (is_flat or depth == len(column.shape)) or not _is_number(kind):
        raise JobError(f"{where} is {str(array.type)[:80]}; give {_wanted(column)}")
    below = 1
    for size in (math.prod(column.shape),) if is_flat else column.shape:
        _refuse_nulls(array, where, first_row, below)
        lengths = pc.list_value_length(array)
        wrong = pc.index(pc.not_equal(lengths, size), pa.scalar(True)).as_py()
        if wrong >= 0:
            raise JobError(
                f"{where} has {lengths[wrong].as_py()} values in row {first_row + wrong // below} where "
                f"{size} are wanted; give {_wanted(column)}"
            )
        array, below = array.flatten(), below * size
    _refuse_nulls(array, where, first_row, below)
    try:
        values: NDArray[Any] = array.cast(pa.from_numpy_dtype(column.dtype)).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise JobError(f"{where}: {_first_line(error)}; give {_wanted(column)}") from error
    return values.reshape(rows, *column.shape)


def tables(path: Path, names: list[str], hint: str = "name yours with --column {}=NAME") -> Iterator[Any]:
    """Yields the columns `names` of a file, one row group or record batch at a time.

    Raises:
        JobError: a column is missing, or the file cannot be read.
    """
    try:
        if path.suffix in PARQUET_SUFFIXES:
            with pq.ParquetFile(path) as file:
                check_names(path, file.schema_arrow.names, names, hint)
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=names)
            return
        with pa.memory_map(str(path)) as source:
            for batch in _record_batches(source):
                check_names(path, batch.schema.names, names, hint)
                batch.validate(full=True)
                yield pa.Table.from_batches([batch.select(names)])
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{path} cannot be read: {_first_line(error)}") from error


def _record_batches(source: Any) -> Iterator[Any]:
    """Yields the record batches of an Arrow file, which has its index at its end, or of a stream, which has none."""
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    yield from (file.get_batch(number) for number in range(file.num_record_batches))


def check_names(
    path: Path, found: Sequence[str], names: Sequence[str], hint: str = "name yours with --column {}=NAME"
) -> None:
    """Checks that a file has every one of `names`; `hint` says how to name another one.

    Raises:
        JobError: one is missing.
    """
    missing = [name for name in names if name not in found]
    if missing:
        raise JobError(
            f"{path} has no column {missing[0]!r}, but {list(found)[:_SHOWN_COLUMNS]}; {hint.format(missing[0])}"
        )


def _refuse_nulls(array: Any, where: str, first_row: int, below: int) -> None:
    if array.null_count:
        row = first_row + pc.index(array.is_null(), pa.scalar(True)).as_py() // below
        raise JobError(f"{where} has {array.null_count} nulls, the first in row {row}; fill or drop them")


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _wanted(column: ColumnSpec) -> str:
    return f"{column.element_type} of shape {list(column.shape)} per example"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def example_ids(array: Any, where: str, first_row: int) -> Any:
    """Returns a column of example ids as an Arrow array of int64 or string.

    Args:
        array: Arrow array or chunked array.
        where: file and column, for errors.
        first_row: number of its first row, for errors.

    Raises:
        JobError: nulls, or neither whole numbers nor texts, or numbers beyond int64.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    _refuse_nulls(array, where, first_row, 1)
    is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    if not (is_text or pa.types.is_integer(array.type)):
        raise JobError(f"{where} is {str(array.type)[:80]}; example ids are whole numbers or texts")
    try:
        return array.cast(pa.string() if is_text else pa.int64())
    except pa.ArrowInvalid as error:
        raise JobError(f"{where}: {_first_line(error)}; example ids are int64 or texts") from error
