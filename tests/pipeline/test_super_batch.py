"""Decoding a super-batch: what the client sends comes back, and everything else is refused by name."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor.batches import encode
from preceptor.errors import InvalidSuperBatchError
from preceptor_service.columns import ColumnSpec
from preceptor_service.super_batch import SuperBatch, decode

COLUMNS = (ColumnSpec("image", "uint8", (2, 3, 4)), ColumnSpec("label", "int64", below=10))
FLOATS = (ColumnSpec("image", "float", (2,)),)
ROWS = 5
IMAGES = np.arange(ROWS * 24, dtype=np.uint8).reshape(ROWS, 2, 3, 4)
LABELS = np.array([0, 9, 3, 4, 5])


def body(**columns: object) -> bytes:
    return bytes(encode({"image": IMAGES, "label": LABELS} | columns).body)


def arrow(table: dict[str, pa.Array], **options: object) -> bytes:
    batch = pa.record_batch(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def test_columns_come_back_as_they_were_sent_without_a_copy() -> None:
    super_batch = decode(body(), COLUMNS, ROWS)
    np.testing.assert_array_equal(super_batch.columns["image"], IMAGES)
    np.testing.assert_array_equal(super_batch.columns["label"], LABELS)
    assert not super_batch.columns["image"].flags.owndata


def test_an_example_id_may_follow() -> None:
    for ids in (np.arange(ROWS), np.array(["a", "b", "c", "d", "é"])):
        sent = bytes(encode({"image": IMAGES, "label": LABELS}, example_id=ids).body)
        assert list(decode(sent, COLUMNS, ROWS).columns) == ["image", "label"]


def test_an_example_id_that_is_no_text_is_refused() -> None:
    sent = bytes(encode({"image": IMAGES, "label": LABELS}, example_id=np.array(["a", "b", "c", "d", "zzz"])).body)
    assert sent.count(b"zzz") == 1
    with pytest.raises(InvalidSuperBatchError, match=r"not valid Arrow.*UTF8"):
        decode(sent.replace(b"zzz", b"z\xffz"), COLUMNS, ROWS)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: body(image=IMAGES.astype(np.float32)), r"column 'image' is float of shape \[2, 3, 4\].*expects uint8"),
        (
            lambda: body(image=IMAGES.reshape(ROWS, 3, 2, 4)),
            r"of shape \[3, 2, 4\].*expects uint8 of shape \[2, 3, 4\]",
        ),
        (lambda: body(image=IMAGES.reshape(ROWS, 24)), r"of shape \[24\]"),
        (lambda: body(label=LABELS.astype(np.int32)), "column 'label' is int32"),
        (lambda: body(extra=LABELS), r"has columns \['image', 'label', 'extra'\]; this run expects"),
        (lambda: bytes(encode({"image": IMAGES}).body), r"has columns \['image'\]"),
        (
            lambda: body(label=np.array([0, 1, 10, 3, 4])),
            "column 'label' has 10 in row 2; every value must be from 0 to 9",
        ),
        (lambda: body(label=np.array([0, 1, 2, 3, -1])), "column 'label' has -1 in row 4"),
        (lambda: b"", "not an Arrow IPC stream"),
        (lambda: b"garbage" * 100, "not an Arrow IPC stream"),
        (lambda: body()[:-200], "not an Arrow IPC stream"),
        (
            lambda: arrow({"image": pa.array([1] * ROWS), "label": pa.array(LABELS)}),
            r"column 'image' is int64 of shape \[\]",
        ),
        (lambda: arrow({"label": pa.array([1, None, 2, 3, 4])}), "has columns"),
    ],
)
def test_a_super_batch_that_does_not_fit_the_run_is_refused_by_name(wrong, says) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidSuperBatchError, match=says):
        decode(wrong(), COLUMNS, ROWS)


def test_another_row_count_than_announced_is_refused() -> None:
    with pytest.raises(InvalidSuperBatchError, match="has 5 rows, its header announced 4"):
        decode(body(), COLUMNS, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_row(value: float) -> None:
    images = np.zeros((4, 2), np.float32)
    images[3, 1] = value
    with pytest.raises(
        InvalidSuperBatchError, match=r"column 'image' has -?(nan|inf) in row 3; every value must be finite"
    ):
        decode(bytes(encode({"image": images}).body), FLOATS, 4)


def test_nulls_are_refused() -> None:
    sent = arrow({"label": pa.array([1, None, 2])})
    with pytest.raises(InvalidSuperBatchError, match="column 'label' has 1 nulls"):
        decode(sent, (ColumnSpec("label", "int64", below=10),), 3)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_bodies_are_refused_before_they_grow(codec: str) -> None:
    zeros = pa.array(np.zeros(4_000_000, np.int64))
    sent = arrow({"label": zeros}, compression=codec)
    assert len(sent) < 1_000_000
    with pytest.raises(InvalidSuperBatchError, match="compressed"):
        decode(sent, (ColumnSpec("label", "int64", below=10),), 4_000_000)


def test_dictionaries_and_further_batches_are_refused() -> None:
    with pytest.raises(InvalidSuperBatchError, match="send exactly one record batch"):
        decode(arrow({"label": pa.array(["a", "b"]).dictionary_encode()}), COLUMNS, 2)
    batch = pa.record_batch({"label": pa.array([1, 2])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    with pytest.raises(InvalidSuperBatchError, match="follows the record batch"):
        decode(sink.getvalue().to_pybytes(), (ColumnSpec("label", "int64", below=10),), 2)


@given(position=st.integers(0, 100_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_harmless(position: int, bit: int) -> None:
    sent = bytearray(body())
    sent[position % len(sent)] ^= 1 << bit
    try:
        super_batch = decode(sent, COLUMNS, ROWS)
    except InvalidSuperBatchError:
        return
    assert super_batch.columns["image"].shape == IMAGES.shape
    assert super_batch.columns["image"].sum() >= 0


@given(rows=st.integers(1, 70), size=st.integers(1, 32))
def test_micro_batches_hold_every_candidate_once_in_order_and_pad_with_the_last(rows: int, size: int) -> None:
    labels = np.arange(rows)
    parts = list(SuperBatch({"label": labels}, rows).micro_batches(size))
    assert np.concatenate([part.columns["label"][: part.row_count] for part in parts]).tolist() == labels.tolist()
    assert all(len(part.columns["label"]) == size for part in parts[:-1])
    assert all(part.rows == len(part.columns["label"]) for part in parts)
    assert set(parts[-1].columns["label"][parts[-1].row_count :].tolist()) <= {rows - 1}


def test_padding_stays_below_a_sixteenth_and_forward_passes_have_few_shapes() -> None:
    shapes = set()
    for rows in range(1, 2049):
        (part,) = SuperBatch({"label": np.arange(rows)}, rows).micro_batches(2048)
        assert rows <= part.rows < rows * 17 / 16
        shapes.add(part.rows)
    assert len(shapes) == 32 + 6 * 16
    assert {1, 31, 32, 34, 136, 320} <= shapes


@pytest.mark.parametrize("ids", [[7, 8, 7, 9, 8], ["a", "b", "a", "é", "b"]], ids=["numbers", "texts"])
def test_one_id_may_come_twice_for_one_example_and_not_for_two(ids: list[int] | list[str]) -> None:
    repeated = IMAGES[[0, 1, 0, 3, 1]], LABELS[[0, 1, 0, 3, 1]]
    sent = bytes(encode({"image": repeated[0], "label": repeated[1]}, example_id=ids).body)
    assert decode(sent, COLUMNS, ROWS).rows == ROWS

    for image, label in ((repeated[0], LABELS), (IMAGES, repeated[1])):
        sent = bytes(encode({"image": image, "label": label}, example_id=ids).body)
        with pytest.raises(InvalidSuperBatchError) as caught:
            decode(sent, COLUMNS, ROWS)
        assert str(caught.value).startswith(f"example_id {ids[0]!r} is in rows 0 and 2, and their content differs; ")


def test_contents_are_those_of_every_value_and_nothing_else() -> None:
    def naive(image: Any, label: int) -> int:
        packed = image.tobytes(order="C") + struct.pack("<q", label)
        return max(1, int.from_bytes(hashlib.sha256(packed).digest()[:8], "little"))

    found = decode(body(), COLUMNS, ROWS).contents()
    assert found.dtype == np.uint64
    assert found.tolist() == [naive(image, label) for image, label in zip(IMAGES, LABELS.tolist(), strict=True)]
    reverse = decode(body(image=IMAGES[::-1], label=LABELS[::-1]), COLUMNS, ROWS)
    assert reverse.contents().tolist() == found[::-1].tolist()
    assert decode(body(), COLUMNS, ROWS).take(np.array([3, 1])).contents().tolist() == found[[3, 1]].tolist()
    floats = np.array([[0.5, 1.5], [1.5, 0.5]], np.float32)
    values = decode(bytes(encode({"image": floats}).body), FLOATS, 2).contents()
    assert values[0] == int.from_bytes(hashlib.sha256(struct.pack("<ff", 0.5, 1.5)).digest()[:8], "little")
