"""`preceptor cost`: the paper's table, a table of one's own, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cli.conftest import Ran

Run = Callable[..., Ran]


def rows(ran: Ran) -> dict[str, list[float]]:
    """Numbers of each row in percent, by the scorer's name; what is missing or never comes is infinite."""
    found = {}
    for line in ran.out.splitlines():
        if line.split()[:1] in (["vit_l"], ["vit_b"], ["1e+12"]):
            cells = line.replace(" FLOPs", "_FLOPs").replace(" %", "").split()[1:]
            found[cells[0]] = [float(cell) if cell[0].isdigit() else float("inf") for cell in cells[1:]]
    return found


def test_the_papers_table_comes_out_whatever_row_was_asked_for(preceptor: Run) -> None:
    ran = preceptor("cost", "--learner", "vit_l", "--online", "vit_ti", "--keep", "0.5", COLUMNS="80")

    assert (ran.code, ran.err) == (0, "")
    assert max(map(len, ran.out.splitlines())) <= 80
    found = rows(ran)
    assert list(found) == ["vit_ti", "vit_mu", "vit_s", "vit_b"]
    for scorer, saved, total, pays_from in (
        ("vit_b", 31, 143.6, 57),
        ("vit_s", 30, 89.7, 21),
        ("vit_ti", 26, 79.7, 6.5),
    ):
        _, saved_there, total_there, _, from_there, _ = found[scorer]
        assert saved_there == saved
        assert total_there == pytest.approx(total, abs=0.2001)
        assert from_there == pytest.approx(pays_from, abs=0.5)
    assert found["vit_mu"][1:3] == [24, pytest.approx(77.3, abs=0.2)]


def test_without_a_model_it_is_the_papers_table(preceptor: Run) -> None:
    assert preceptor("cost") == preceptor("cost", "--learner", "vit_l", "--online", "vit_ti")


def test_cached_reference_losses_cost_less(preceptor: Run) -> None:
    for _, _, total, cached, pays_from, cached_from in rows(
        preceptor("cost", "--learner", "vit_l", "--online", "vit_s")
    ).values():
        assert cached < total
        assert cached_from < pays_from


def test_own_models_are_given_in_flops(preceptor: Run) -> None:
    ran = preceptor(
        "cost", "--learner-flops", "1e12", "--online-flops", "1e11", "--reference-flops", "2e11",
        "--keep", "0.2", "--savings", "0.4",
    )  # fmt: skip

    # 0.6 · [1 + 0.1 + 5/3 · (0.1 + 0.2)] + 0.2, and with 0.1 in the last bracket; then 1 − 0.8 / [ ].
    assert rows(ran) == {"1e+11_FLOPs": [10, 40, 116, 96, 50, 36.8]}


def test_what_nobody_measured_is_not_made_up(preceptor: Run) -> None:
    found = rows(preceptor("cost", "--learner", "vit_b", "--online", "vit_l"))

    assert found["vit_l"][1:] == [float("inf")] * 5
    assert found["vit_ti"][1:4] == [float("inf")] * 3
    assert found["vit_ti"][4] == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--online", "vit_ti"], "the learner model is missing; give --learner, one of vit_mu"),
        (["--learner", "vit_l"], "the online model is missing; give --online, one of vit_mu"),
        (["--learner", "vit_h", "--online", "vit_ti"], "--learner is 'vit_h'; choose one of vit_mu"),
        (["--learner", "vit_l", "--learner-flops", "1", "--online", "vit_ti"], "--learner-flops 1; give one of them"),
        (["--learner-flops", "0", "--online", "vit_ti"], "--learner-flops is 0; it must be above 0, and finite"),
        (["--learner", "vit_l", "--online-flops", "nan"], "--online-flops is nan; it must be above 0, and finite"),
        (["--learner", "vit_l", "--online", "vit_s", "--reference-flops", "-1"], "--reference-flops is -1; it must be"),
        (["--learner", "vit_l", "--online", "vit_s", "--keep", "0"], "--keep is 0; it is b / B, above 0 and at most 1"),
        (["--learner", "vit_l", "--online", "vit_s", "--keep", "1.5"], "--keep is 1.5; it is b / B"),
        (["--learner", "vit_l", "--online", "vit_s", "--savings", "1"], "--savings is 1; it is a share of the"),
    ],
    ids=str,
)
def test_what_cannot_be_is_named(preceptor: Run, arguments: list[str], complaint: str) -> None:
    ran = preceptor("cost", *arguments)

    assert ran.code == 1
    assert complaint in ran.err
    assert ran.err.startswith("preceptor: ")
    assert ran.out == ""
