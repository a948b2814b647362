"""Files become checked columns; what does not fit is told in one line, with the value and the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preceptor.batches import encode
from preceptor.folds import folds_of
from preceptor_service.columns import ColumnSpec
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference.dataset import Dataset, Fold, read_dataset
from preceptor_service.reference.errors import JobError
from preceptor_service.reference.objectives import refuse_examples_without_loss
from preceptor_service.reference.train_job import columns_of
from preceptor_service.super_batch import decode
from tests.reference.examples import IMAGES, TEXTS, arrays, table, write

COLUMNS = columns_of(IMAGES, ArchitectureRegistry())
FLOATS = (ColumnSpec("image", "float", (2,)),)


def read(*paths: Path, columns: tuple[ColumnSpec, ...] = COLUMNS, **settings: Any) -> Dataset:
    return read_dataset(paths, columns, **{"names": {}, "max_bytes": 1 << 30, **settings})


def same(found: Dataset, expected: dict[str, Any]) -> bool:
    return all(
        found.columns[name].dtype == (np.uint8 if name == "image" else np.int64)
        and np.array_equal(found.columns[name], values)
        for name, values in expected.items()
    )


def test_parquet_arrow_files_and_streams_hold_the_same(tmp_path: Path) -> None:
    examples = arrays(IMAGES, 20)
    whole = table(examples)
    pq.write_table(whole, tmp_path / "a.parquet", row_group_size=7)
    with pa.ipc.new_file(tmp_path / "a.arrow", whole.schema) as file:
        file.write_table(whole, max_chunksize=6)
    with pa.ipc.new_stream(tmp_path / "b.arrow", whole.schema) as stream:
        stream.write_table(whole, max_chunksize=6)

    found = [read(tmp_path / name) for name in ("a.parquet", "a.arrow", "b.arrow")]

    assert all(same(data, examples) for data in found)
    assert len({data.digest() for data in found}) == 1


def test_flat_lists_fixed_lists_and_tensors_are_images_too(tmp_path: Path) -> None:
    examples = arrays(IMAGES, 5)
    flat = pa.array(examples["image"].reshape(5, -1).tolist(), pa.list_(pa.int32()))
    fixed = pa.array(examples["image"].tolist(), COLUMNS[0].arrow_type())
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(examples["image"])
    for number, image in enumerate((flat, fixed, tensors)):
        file = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"image": image, "label": examples["label"]}), file)
        assert same(read(file), examples), number


def test_a_directory_is_read_in_the_order_of_names_and_columns_may_be_named_otherwise(tmp_path: Path) -> None:
    first, second = arrays(IMAGES, 4, seed=1), arrays(IMAGES, 3, seed=2)
    for name, part in (("b", second), ("a", first)):
        write(tmp_path / f"{name}.parquet", {"pixels": part["image"], "label": part["label"]})
    (tmp_path / "notes.txt").write_text("not data")

    found = read(tmp_path, names={"image": "pixels"})

    assert same(found, {name: np.concatenate([first[name], second[name]]) for name in first})


def test_a_changed_value_changes_the_digest() -> None:
    examples = arrays(IMAGES, 6)
    before = Dataset(examples, 6).digest()
    examples["image"][3, 0, 2, 1] ^= 1
    assert Dataset(examples, 6).digest() != before


def bad(name: str) -> tuple[pa.Table, str]:
    """A table with one fault, and what is said of it."""
    examples = arrays(IMAGES, 6)
    good = table(examples)

    def with_(column: str, values: Any) -> pa.Table:
        return good.set_column(good.schema.get_field_index(column), column, pa.array(values))

    image, label = examples["image"].tolist(), examples["label"].tolist()
    match name:
        case "missing column":
            return good.drop(["label"]), r"no column 'label', but \['image'\]; name yours with --column label=NAME"
        case "wrong shape":
            return with_("image", [*image[:4], [[[1] * 8] * 7], image[5]]), r"has 7 values in row 4 where 8 are wanted"
        case "too many channels":
            return with_("image", [*image[:2], image[2] * 3, *image[3:]]), r"has 3 values in row 2 where 1 are wanted"
        case "flat and too long":
            return with_("image", [[0] * 65] * 6), r"has 65 values in row 0 where 64 are wanted"
        case "too deep":
            return with_("image", [[picture] for picture in image]), r"give uint8 of shape \[1, 8, 8\] per example"
        case "encoded images":
            return with_("image", [b"\x89PNG"] * 6), r"'image' is binary; give uint8 of shape \[1, 8, 8\]"
        case "text for labels":
            return with_("label", ["cat"] * 6), r"'label' is string; give int64 of shape \[\]"
        case "beyond a byte":
            return with_("image", [*image[:5], [[[256] * 8] * 8]]), r"256 not in range: 0 to 255"
        case "half a label":
            return with_("label", [0.5] * 6), r"0\.5"
        case "label too high":
            return with_("label", [*label[:4], 4, 0]), r"'label' has 4 in row 4; every value must be from 0 to 3"
        case "label below 0":
            return with_("label", [*label[:5], -1]), r"'label' has -1 in row 5"
        case "null label":
            return with_("label", [*label[:3], None, None, 0]), r"has 2 nulls, the first in row 3; fill or drop them"
        case "null image":
            return with_("image", [*image[:1], None, *image[2:]]), r"has 1 nulls, the first in row 1"
        case "null pixel":
            return with_("image", [*image[:2], [[[None] * 8] * 8], *image[3:]]), r"has 64 nulls, the first in row 2"
        case _:
            return good.slice(0, 0), r"the data has 0 rows; give at least 1"


FAULTS = (
    "missing column", "wrong shape", "too many channels", "flat and too long", "too deep", "encoded images",
    "text for labels", "beyond a byte", "half a label", "label too high", "label below 0", "null label", "null image",
    "null pixel", "no rows",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_is_told_in_one_line(fault: str, tmp_path: Path) -> None:
    faulty, said = bad(fault)
    with pa.ipc.new_file(tmp_path / "bad.arrow", faulty.schema) as file:
        file.write_table(faulty)

    with pytest.raises(JobError, match=said) as caught:
        read(tmp_path / "bad.arrow")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    file = write(tmp_path / "bad.parquet", {"image": np.array([[0.0, 1.0], [2.0, value]])})

    with pytest.raises(JobError, match=rf"'image' has {value} in row 1; every value must be finite"):
        read(file, columns=FLOATS)


def test_a_bad_row_is_named_by_its_file_and_its_place_there(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", arrays(IMAGES, 10))
    second = arrays(IMAGES, 12)
    second["label"][9] = 9  # in the second row group
    write(tmp_path / "b.parquet", second)
    with pytest.raises(JobError, match=rf"^{tmp_path / 'b.parquet'}: column 'label' has 9 in row 9; every value must"):
        read(tmp_path)

    second = arrays(IMAGES, 12)
    labels: list[Any] = second["label"].tolist()
    labels[8] = None
    write(tmp_path / "b.parquet", {"image": second["image"]}, label=labels)
    with pytest.raises(JobError, match=rf"^{tmp_path / 'b.parquet'}: column 'label' has 1 nulls, the first in row 8;"):
        read(tmp_path)


def test_a_row_without_a_loss_is_named_by_its_file_and_its_place_there(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", arrays(TEXTS, 10))
    second = arrays(TEXTS, 12)
    second["attention_mask"][9] = 0
    write(tmp_path / "b.parquet", second)
    found = read(tmp_path, columns=columns_of(TEXTS, ArchitectureRegistry()))
    with pytest.raises(JobError, match=f"1 of 22 rows have no loss, the first is row 9 of {tmp_path / 'b.parquet'}; "):
        refuse_examples_without_loss(TEXTS.task, found)


@pytest.mark.parametrize("kind", ["numbers", "texts"])
def test_the_halves_are_those_by_which_the_service_chooses_a_reference(kind: str, tmp_path: Path) -> None:
    examples = arrays(IMAGES, 60)
    ids: list[Any] = [n * 7 if kind == "numbers" else f"bild-{n}-ü" for n in range(60)]
    for name, piece in (("a", slice(0, 25)), ("b", slice(25, 60))):
        part = {column: values[piece] for column, values in examples.items()}
        write(tmp_path / f"{name}.parquet", part, key=ids[piece])
    by_service = decode(encode(examples, example_id=ids).body, COLUMNS, 60).folds()

    for number in (0, 1):
        half = read(tmp_path, fold=Fold(number, "key"))
        rows = np.flatnonzero(by_service == number)
        assert 0 < len(rows) < 60
        assert same(half, {column: values[rows] for column, values in examples.items()})
        assert half.place(half.rows - 1) == f"row {rows[-1] - 25} of {tmp_path / 'b.parquet'}"


def test_a_half_needs_ids_and_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", arrays(IMAGES, 2), key=[4, 4], some=[4, None])
    other = 1 - int(folds_of([4])[0])
    with pytest.raises(JobError, match=f"none of the 2 rows is of fold {other}; give more, or the other fold"):
        read(tmp_path, fold=Fold(other, "key"))
    with pytest.raises(JobError, match="has no column 'example_id'"):
        read(tmp_path, fold=Fold(0, "example_id"))
    with pytest.raises(JobError, match="column 'some' has 1 nulls, the first in row 1"):
        read(tmp_path, fold=Fold(0, "some"))


def test_data_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", arrays(IMAGES, 14))

    assert read(file, max_bytes=14 * 72).rows == 14
    with pytest.raises(JobError, match=r"more than 1,007 bytes.*the first 14 rows have 1,008"):
        read(file, max_bytes=14 * 72 - 1)


@pytest.mark.parametrize("kind", ["absent", "empty directory", "another suffix", "damaged parquet", "damaged arrow"])
def test_files_that_are_no_data_are_refused(kind: str, tmp_path: Path) -> None:
    path = {"absent": "none.parquet", "another suffix": "a.csv", "damaged arrow": "a.arrow"}.get(kind, "a.parquet")
    if kind in ("another suffix", "damaged parquet", "damaged arrow"):
        (tmp_path / path).write_bytes(b"PAR1 or not" * 9)
    said = {
        "absent": "there is no data at",
        "empty directory": "there is no data at",
        "another suffix": "ends in '.csv'; give files that end in .arrow or .feather or .ipc or .parquet",
    }.get(kind, "cannot be read")

    with pytest.raises(JobError, match=said) as caught:
        read(tmp_path if kind == "empty directory" else tmp_path / path)
    assert "\n" not in str(caught.value)
