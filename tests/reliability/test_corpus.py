"""Inputs of the decoders that are, or once were, trouble; what guided fuzzing finds is added to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.guided import CORPUS, readers

_INPUTS = sorted(path for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", _INPUTS, ids=[f"{path.parent.name}/{path.name}" for path in _INPUTS])
def test_an_input_of_the_corpus_is_refused_as_invalid(path: Path, tmp_path: Path) -> None:
    read = readers(tmp_path)[path.parent.name]
    assert read(path.read_bytes()) == {"INVALID_ARGUMENT"}


def test_every_decoder_has_a_corpus() -> None:
    assert {path.parent.name for path in _INPUTS} == set(readers(CORPUS))
