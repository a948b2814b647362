"""The user's data beside the ids: whose class, caption and picture is shown, and what cannot be used."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from preceptor_service.reference.errors import JobError
from preceptor_service.report.example_data import DataFiles, read_examples
from preceptor_service.report.selections import Examples
from preceptor_service.report.thumbnails import data_uri, png

IDS = ["1", "2", "3", "x"]


def examples() -> Examples:
    """Four: the second was selected most, the fourth never."""
    return Examples(
        ids=pa.array(IDS),
        offered=np.array([10, 20, 10, 40]),
        selected=np.array([5, 20, 1, 0]),
        expected=np.array([4.0, 8.0, 4.0, 16.0]),
        mean_score=np.zeros(4),
    )


def decoded(uri: str | None) -> NDArray[Any]:
    assert uri is not None
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/png"
    pixels: NDArray[Any] = np.rint(imread(io.BytesIO(base64.b64decode(content)), format="png") * 255).astype(int)
    return pixels


def test_groups_say_how_often_each_was_selected_over_uniform(tmp_path: Path) -> None:
    table = pa.table({"example_id": [1, 2, 3, 99], "label": [7, 7, None, 5], "source": ["web", "book", "web", "none"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = read_examples(DataFiles([tmp_path], group_columns=["label", "source"]), examples(), [])
    assert found.found == 3
    sevens, unknown = found.groups["label"]
    assert (sevens.name, sevens.examples, sevens.offered, sevens.selected) == ("7", 2, 30, 25)
    assert sevens.over_uniform == pytest.approx(25 / 12)
    assert (unknown.name, unknown.selected) == ("–", 1)
    assert [group.name for group in found.groups["source"]] == ["book", "web"]


def test_what_is_shown_is_that_of_the_id_and_of_two_rows_the_first(tmp_path: Path) -> None:
    table = pa.table({"key": ["x", "2", "x"], "text": ["first", "two " * 200, "second"], "label": ["a", "b", "c"]})
    feather.write_feather(table, str(tmp_path / "a.feather"), compression="uncompressed")
    files = DataFiles([tmp_path / "a.feather"], "key", caption_column="text", group_columns=["label"])
    found = read_examples(files, examples(), ["x", "2", "3"])
    assert set(found.shown) == {"x", "2"}
    assert (found.shown["x"].caption, found.shown["x"].groups) == ("first", {"label": "a"})
    assert len(found.shown["2"].caption or "") == 281
    assert found.found == 2


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7


@pytest.mark.parametrize(
    ("value", "shape", "wanted"),
    [
        (GREY.tolist(), None, GREY),
        ([GREY.tolist()], None, GREY),
        (GREY.ravel().tolist(), (3, 4), GREY),
        (COLOUR.tolist(), None, COLOUR),
        (COLOUR.transpose(2, 0, 1).tolist(), None, COLOUR),
        (COLOUR.ravel().tolist(), (3, 4, 3), COLOUR),
        ([[0.0, 0.5], [1.0, 0.25]], None, np.array([[0, 128], [255, 64]])),
        ([[-1.0, 1.0]], None, np.array([[0, 255]])),
        ([[3.5, 3.5]], None, np.array([[0, 0]])),
    ],
)
def test_pixels_of_any_layout_become_the_same_picture(value: Any, shape: Any, wanted: NDArray[Any]) -> None:
    pixels = decoded(data_uri(value, shape, "here"))
    assert (pixels[..., :3] if wanted.ndim == 3 else pixels).tolist() == wanted.tolist()


def test_large_pictures_are_made_small() -> None:
    assert decoded(data_uri(np.zeros((300, 200)).tolist(), None, "here")).shape == (96, 96)


def test_encoded_files_are_taken_as_they_are() -> None:
    content = png(GREY[:, :, np.newaxis])
    for value in (content, {"bytes": content, "path": "a.png"}):
        assert decoded(data_uri(value, None, "here")).tolist() == GREY.tolist()
    assert (data_uri(b"\xff\xd8\xff", None, "here") or "").startswith("data:image/jpeg;base64,")
    assert data_uri(content + bytes(300_000), None, "here") is None
    assert data_uri(None, None, "here") is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"<svg onload=alert(1)>", "row 3 begins with 3c737667; give PNG, JPEG, GIF or WebP files, or pixels"),
        ([1, 2, 3, 4], r"has shape \[4\]; give .* and --image-shape for flat lists"),
        ([[1, 2], [3]], "is no image: its lists are of unequal lengths"),
        (["a"], "is no image"),
        (np.zeros((2, 3, 4, 5)).tolist(), r"has shape \[2, 3, 4, 5\]"),
    ],
)
def test_what_is_no_picture_is_refused(value: Any, said: str) -> None:
    with pytest.raises(JobError, match=said):
        data_uri(value, None, "row 3")


@pytest.mark.parametrize("order", ["C", "F"])
def test_images_in_a_tensor_column_know_their_shape_whatever_their_order_in_memory(tmp_path: Path, order: str) -> None:
    image = np.stack([COLOUR, COLOUR])
    image = image if order == "C" else np.ascontiguousarray(image.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(image)
    pq.write_table(pa.table({"example_id": [1, 2], "image": column}), tmp_path / "a.parquet")
    found = read_examples(DataFiles([tmp_path / "a.parquet"], image_column="image"), examples(), ["2"])
    assert decoded(found.shown["2"].image)[..., :3].tolist() == COLOUR.tolist()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (DataFiles([Path("nowhere.parquet")]), "there is no data at nowhere.parquet"),
        (DataFiles([Path("a.parquet")], "id"), "has no column 'id', but .'example_id'.*; name yours with --id-column"),
        (DataFiles([Path("a.parquet")], image_column="picture"), "has no column 'picture'"),
        (DataFiles([Path("broken.parquet")]), "cannot be read"),
    ],
)
def test_data_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: DataFiles, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"example_id": [1]}), "a.parquet")
    Path("broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(JobError, match=said):
        read_examples(files, examples(), [])
