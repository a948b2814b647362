"""Super-batches as Arrow: what is read back is what was offered; what cannot be sent is refused with a reason."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from preceptor.batches import digest, encode
from preceptor.errors import InvalidSuperBatchError, UnsendableSuperBatchError

DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
]


def read_back(body: memoryview) -> pa.RecordBatch:
    reader = pa.ipc.open_stream(pa.py_buffer(body))
    batches = list(reader)
    assert len(batches) == 1
    batches[0].validate(full=True)
    return batches[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2, 4)])
def test_an_array_reads_back_as_nested_lists_of_its_shape(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)

    column = read_back(encode({"x": array}).body).column("x")

    expected_type = pa.from_numpy_dtype(array.dtype)
    for size in reversed(shape[1:]):
        expected_type = pa.list_(expected_type, size)
    assert column.type == expected_type
    assert column.to_pylist() == array.tolist()


def test_columns_keep_the_order_of_the_mapping_and_example_ids_come_last() -> None:
    batch = {"label": np.arange(3), "image": np.zeros((3, 2), np.uint8)}

    encoded = encode(batch, example_id=np.array([7, 8, 9], dtype=np.int32))

    read = read_back(encoded.body)
    assert read.schema.names == ["label", "image", "example_id"]
    assert read.schema.field("example_id").type == pa.int64()
    assert read.column("example_id").to_pylist() == [7, 8, 9]
    assert encoded.row_count == 3


@pytest.mark.parametrize(
    "texts", [["a", "bé", ""], ("a", "bé", ""), np.array(["a", "bé", ""]), np.array(["a", "bé", ""], dtype=object)]
)
def test_example_ids_may_be_texts(texts: Any) -> None:
    column = read_back(encode({"x": np.arange(3)}, example_id=texts).body).column("example_id")
    assert column.type == pa.string()
    assert column.to_pylist() == ["a", "bé", ""]


@pytest.mark.parametrize("numbers", [[3, 1, 2], torch.tensor([3, 1, 2]), np.array([3, 1, 2], np.uint32)])
def test_example_ids_may_be_whole_numbers_of_any_kind(numbers: Any) -> None:
    column = read_back(encode({"x": np.arange(3)}, example_id=numbers).body).column("example_id")
    assert column.type == pa.int64()
    assert column.to_pylist() == [3, 1, 2]


def test_a_tensor_an_array_and_a_strided_view_of_the_same_numbers_give_the_same_bytes() -> None:
    tensor = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).requires_grad_()
    strided = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).permute(2, 1, 0).contiguous().permute(2, 1, 0)
    big_endian = tensor.detach().numpy().astype(">f4")

    bodies = {bytes(encode({"x": value}).body) for value in (tensor, tensor.detach().numpy(), strided, big_endian)}

    assert len(bodies) == 1


def test_changing_the_array_after_encoding_does_not_change_the_body() -> None:
    array = np.zeros(4)
    encoded = encode({"x": array})
    array += 1
    assert read_back(encoded.body).column("x").to_pylist() == [0, 0, 0, 0]


def test_the_digest_is_the_first_half_of_sha256_and_tells_bodies_apart() -> None:
    first, second = encode({"x": np.zeros(4)}), encode({"x": np.ones(4)})
    assert first.digest == hashlib.sha256(bytes(first.body)).digest()[:16] == digest(bytes(first.body))
    assert first.digest != second.digest


def test_bodies_are_not_compressed() -> None:
    assert len(encode({"x": np.zeros(100_000, np.uint8)}).body) > 100_000


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({}, UnsendableSuperBatchError, "no columns"),
        ({"x": [1, 2]}, TypeError, "'x' is a list"),
        ({"x": np.array(1)}, UnsendableSuperBatchError, "'x' is a scalar"),
        ({"x": torch.tensor(1)}, UnsendableSuperBatchError, "'x' is a scalar"),
        ({"x": np.array(["a", None])}, TypeError, "'x' has element type object"),
        ({"x": np.zeros(2, np.complex64)}, TypeError, "complex64"),
        ({"x": np.zeros(2, "datetime64[s]")}, TypeError, "datetime64"),
        ({"x": torch.zeros(2, dtype=torch.bfloat16)}, TypeError, r"bfloat16.*convert it first"),
        ({"x": np.zeros((2, 0))}, UnsendableSuperBatchError, r"\(2, 0\)"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, UnsendableSuperBatchError, r"differ in rows: \{'x': 2, 'y': 3\}"),
        ({"x": np.zeros(2), "example_id": np.arange(2)}, UnsendableSuperBatchError, "as the argument example_id"),
    ],
)
def test_what_cannot_be_encoded_is_refused(batch: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode(batch)


@pytest.mark.parametrize(
    ("example_id", "error", "message"),
    [
        (np.zeros(2), TypeError, "float64"),
        (np.zeros(2, bool), TypeError, "bool"),
        (np.zeros(2, np.uint64), TypeError, "uint64"),
        (["a", 1], TypeError, "mixes texts"),
        (np.zeros((2, 1), np.int64), UnsendableSuperBatchError, r"\(2, 1\)"),
        (np.arange(3), UnsendableSuperBatchError, "differ in rows"),
        ("ab", TypeError, "is a str"),
    ],
)
def test_example_ids_that_cannot_be_sent_are_refused(example_id: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode({"x": np.zeros(2)}, example_id=example_id)


def test_what_cannot_be_sent_is_an_invalid_argument_and_a_value_error() -> None:
    texts = np.zeros((15, 5), np.int64)
    with pytest.raises(InvalidSuperBatchError) as caught:
        encode({"image": np.zeros((16, 1, 8, 8)), "input_ids": texts, "attention_mask": texts})
    assert isinstance(caught.value, ValueError)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "columns differ in rows: {'image': 16, 'input_ids': 15, 'attention_mask': 15}; each" in str(caught.value)
