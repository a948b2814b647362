"""What stands in the text of an error: all of a short value, a bounded piece of a long one, nothing of this machine."""

from __future__ import annotations

import tracemalloc

import pytest

from preceptor.quoting import brief, quoted, shortened


@pytest.mark.parametrize(
    "value",
    ["", "run-1", "a" * 78, "é\n'", -(2**63), 0.1, True, None, ["image", "label"], (1, 2.5), {"width": 2}, [[1, 2]]],
)
def test_a_short_value_is_quoted_as_it_is(value: object) -> None:
    assert quoted(value) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        "\U000e0001" * 10_000_000,
        ["x" * 1_000_000] * 10,
        list(range(1_000_000)),
        {"x" * 1_000_000: ["y"] * 1_000_000},
        [[["x" * 100] * 20] * 20] * 20,
    ],
    ids=["text", "escapes", "texts", "numbers", "settings", "nested"],
)
def test_of_a_long_value_little_is_quoted_and_the_rest_never_formatted(value: object) -> None:
    tracemalloc.start()
    try:
        text = quoted(value)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert len(text) <= 400
    assert "…" in text


def test_a_long_text_is_known_by_both_its_ends() -> None:
    text = quoted("first" + "-" * 1000 + "last")
    assert text.startswith("'first")
    assert text.endswith("last'")
    assert len(text) <= 80


def test_a_long_name_is_shortened() -> None:
    assert shortened("model_config.width") == "model_config.width"
    assert shortened("x" * 81) == "x" * 79 + "…"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("embed_dim must be divisible by num_heads", "embed_dim must be divisible by num_heads"),
        ("shapes (2x3 and 4/5) differ\nat line 3", "shapes (2x3 and 4/5) differ"),
        ("[Errno 2] No such file: '/srv/store/staging/1f.upload'", "[Errno 2] No such file: '1f.upload'"),
        ('File "/opt/venv/lib/site-packages/torch/nn.py", line 3', 'File "nn.py", line 3'),
        ("Could not connect to http://minio.internal:9000/weights/x", "Could not connect to …"),
        ("", "ValueError"),
    ],
)
def test_what_other_code_said_is_kept_without_folders_and_urls(said: str, kept: str) -> None:
    assert brief(ValueError(said)) == kept


def test_what_other_code_said_at_length_is_cut() -> None:
    text = brief(ValueError("x" * 1_000_000))
    assert len(text) == 300
    assert text.endswith("…")
