"""The page: whole, alone, safe whatever a caption says, and honest where it knows less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preceptor import MemoryBank, RunCost, RunSpec, RunStatus
from preceptor_service.report.charts import Band, Chart, Line, number, ticks
from preceptor_service.report.example_data import DataFiles, read_examples
from preceptor_service.report.gather import Material, Reported
from preceptor_service.report.page import render
from preceptor_service.report.selections import read_selections
from preceptor_service.uplift import Series
from tests.report import ledgers
from tests.report.pages import Page

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;{{ 7*7 }}'


def reported(run_id: str, final: float, names: tuple[str, ...] = ("test_accuracy",), **settings: Any) -> Reported:
    """A run that reported a curve every ten steps."""
    fixed: dict[str, Any] = {"model": "small_cnn", "ledger": True, **settings}
    status = RunStatus(
        spec=RunSpec(run_id, **fixed),
        create_time_s=1_800_000_000.0,
        micro_batch_rows=16,
        learner_version=3,
        learner_step=35,
        reference_digest=None,
        last_step=39,
        super_batches=40,
        candidates=480,
        selected=160,
        fallbacks=2,
        failures=0,
        cost=RunCost(1e9, 5e7, 5e7, 3.0, 0.2, 0.46, 0.71, 1.0),
        forward_s=12.5,
        answer_s=20.25,
    )
    steps = np.arange(1, 41) * 10
    noise = np.random.default_rng(len(run_id)).normal(0, 0.002, 40)
    values = final * (1 - np.exp(-np.arange(1, 41) / 8)) + noise
    return Reported(status, {name: Series(steps, 1 - values if "loss" in name else values) for name in names})


def uniform(run_id: str, final: float, **settings: Any) -> Reported:
    return reported(run_id, final, score="uniform", **settings)


def told(tmp_path: Path, ids: list[Any] | None = None, **fields: Any) -> Material:
    """A run with a ledger of forty steps."""
    names = list(range(12)) if ids is None else ids
    entries = [ledgers.entry(step, names) for step in range(40)]
    selections = read_selections(ledgers.write(tmp_path / "ledger.parquet", entries), RunSpec("told", model="m"))
    assert selections.examples is not None
    ranked = selections.examples.ranked().tolist()
    material = Material([reported("told", 0.9)], [], selections, shown=(ranked[:6], ranked[6:]))
    return replace(material, **fields)


def page_of(material: Material, metric: str | None = None) -> Page:
    return Page(render(material, metric))


def test_the_page_is_whole_loads_nothing_and_has_a_text_for_every_picture(tmp_path: Path) -> None:
    material = told(tmp_path, twins=[uniform("plain", 0.8)])
    page = page_of(material)
    assert page.mismatched == []
    assert page.loaded() == []
    assert page.attributes("script") == []
    (policy,) = [one["content"] for one in page.attributes("meta") if one.get("http-equiv")]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    charts = page.attributes("svg")
    assert len(charts) >= 3
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for chart in charts:
        assert chart["role"] == "img"
        assert set((chart["aria-labelledby"] or "").split()) <= set(ids)
    assert len(page.attributes("details")) == len(charts)
    assert page.text.count("told (uniform)") == 0
    assert "plain (uniform)" in page.text


def test_the_same_material_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (told(tmp_path, twins=[uniform("plain", 0.8)]) for _ in range(2))
    assert render(first) == render(second)


def test_what_captions_classes_ids_and_settings_say_is_text_and_nothing_else(tmp_path: Path) -> None:
    ids = [f"{HOSTILE}{number}" for number in range(12)]
    table = pa.table({"example_id": ids, "text": [HOSTILE] * 12, HOSTILE: [HOSTILE] * 12})
    pq.write_table(table, tmp_path / "data.parquet")
    material = told(tmp_path, ids, no_ledger=HOSTILE, damaged=[HOSTILE])
    assert material.selections is not None
    assert material.selections.examples is not None
    files = DataFiles([tmp_path / "data.parquet"], caption_column="text", group_columns=[HOSTILE])
    data = read_examples(files, material.selections.examples, ids)
    run = material.runs[0]
    metrics = {f"{HOSTILE}accuracy": run.metrics["test_accuracy"]}
    spec = replace(run.status.spec, run_id=HOSTILE, model=HOSTILE, model_config={HOSTILE: HOSTILE})
    hostile = Reported(replace(run.status, spec=spec), metrics)
    html = render(replace(material, runs=[hostile], data=data))
    page = Page(html)
    assert page.mismatched == []
    assert [tag for tag, _ in page.elements if tag in ("script", "img")] == []
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count("alert(1)") > 20
    assert "49" not in {text for text in page.texts if "7*7" not in text and "alert" in text}
    assert "<script" not in html


def test_a_twin_is_compared_and_the_page_says_what_its_interval_covers(tmp_path: Path) -> None:
    one = page_of(told(tmp_path, twins=[uniform("plain", 0.8)]))
    assert "not what another seed would give" in one.text
    assert "moving-block bootstrap" in one.text
    runs = [reported(f"told-{'x' * seed}", 0.9 + 0.004 * seed) for seed in range(3)]
    twins = [uniform(f"plain-{'x' * seed}", 0.8 - 0.003 * seed) for seed in range(3)]
    several = page_of(told(tmp_path, runs=runs, twins=twins))
    assert "Student's t over 3 pairs" in several.text
    assert "3 pairs, one seed each" in several.text
    assert "moving-block bootstrap" not in several.text
    assert "Selection hurts" not in several.text
    worse = page_of(told(tmp_path, runs=[reported("told", 0.7)], twins=[uniform("plain", 0.8)]))
    assert "Selection hurts test_accuracy." in worse.text


def test_of_a_loss_a_lower_curve_is_a_gain_and_the_metric_that_heads_the_page_can_be_chosen(tmp_path: Path) -> None:
    names = ("loss", "test_accuracy")
    material = told(tmp_path, runs=[reported("told", 0.9, names)], twins=[uniform("plain", 0.8, names=names)])
    assert page_of(material).text.index("test_accuracy, gain over uniform twins") > 0
    chosen = page_of(material, "loss")
    assert "loss, gain over uniform twins" in chosen.text
    assert "loss (less is better)" in chosen.text
    assert "Selection hurts" not in chosen.text
    with pytest.raises(ValueError, match=r"metric 'luck' was not reported; choose one of \['loss', 'test_accuracy'\]"):
        render(material, "luck")


def test_a_long_curve_is_drawn_by_an_even_part_of_it_with_its_end(tmp_path: Path) -> None:
    long = reported("told", 0.9)
    values = np.linspace(0, 1, 1_001)
    long = Reported(long.status, {"test_accuracy": Series(np.arange(1_001), values)})
    html = render(told(tmp_path, runs=[long]))
    rows = html.split("<figcaption>test_accuracy")[1].split("</details>")[0].count("<tr>") - 1
    assert 300 <= rows <= 400
    assert "told ends at 1 at step 1,000." in html


def test_unequal_budgets_are_told(tmp_path: Path) -> None:
    short = uniform("plain", 0.8)
    series = short.metrics["test_accuracy"]
    short = Reported(short.status, {"test_accuracy": Series(series.steps[:20], series.values[:20])})
    text = page_of(told(tmp_path, twins=[short])).text
    assert "told reported until step 400, its twin plain until 200. Compare at the same budget." in text


def test_held_back_steps_are_compared_or_the_page_says_how_they_could_be(tmp_path: Path) -> None:
    fine = reported("told", 0.9, control_fraction=0.3, control_block_steps=10)
    page = page_of(told(tmp_path, runs=[fine]))
    assert "gain over held-back, per 1,000 steps" in page.text
    assert "test_accuracy, gain over held-back steps" in page.text
    assert "per 1,000 steps" in page.text
    assert "held back: uniform" in page.text
    assert len([one for one in page.attributes("rect") if one.get("class") == "shaded"]) > 2
    coarse = reported("told", 0.9, control_fraction=0.3, control_block_steps=7)
    text = page_of(told(tmp_path, runs=[coarse])).text
    assert "report metrics at multiples of control_block_steps, 7" in text


def test_what_is_missing_is_said_with_the_way_to_get_it(tmp_path: Path) -> None:
    bare = reported("bare", 0.9)
    bare = Reported(replace(bare.status, cost=None, super_batches=0, candidates=0, selected=0), {})
    text = page_of(Material([bare], [], None, "run 'bare' keeps no ledger, and cannot begin one")).text
    assert "run 'bare' keeps no ledger, and cannot begin one. Scores, examples" in text
    assert 'run.report_metrics(step, {"test_accuracy": …})' in text
    assert "Not known: nothing was scored and selected by this gateway" in text
    assert "None of those that this page looks for." in text
    without_ids = [ledgers.entry(step, None) for step in range(3)]
    file = ledgers.write(tmp_path / "l.parquet", without_ids)
    text = page_of(Material([bare], [], read_selections(file, bare.status.spec))).text
    assert "The trainer sent no example_id" in text
    assert "--data FILES.parquet" in page_of(told(tmp_path)).text


def test_cost_and_fallbacks_stand_on_the_page(tmp_path: Path) -> None:
    entries = [ledgers.unscored(step, None, "stale") if step % 3 else ledgers.entry(step, None) for step in range(30)]
    selections = read_selections(ledgers.write(tmp_path / "l.parquet", entries), RunSpec("told", model="m"))
    text = page_of(Material([reported("told", 0.9)], [], selections)).text
    assert "71.0 % of the compute of uniform training: compute-positive" in text
    assert "It breaks even at 20.0 %." in text
    assert "Scorers spent 12.5 s in forward passes. From header to answer it took 20.25 s, summed over 40" in text
    assert "fallback: stale 20 66.7 %" in text
    assert "Many fallbacks." in text


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 400, [0, 100, 200, 300, 400]), (-3.2, 1.1, [-3, -2, -1, 0, 1])],
)
def test_ticks_are_round_numbers_within_the_axis(low: float, high: float, wanted: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(wanted)


def test_numbers_are_written_for_people() -> None:
    assert [number(value) for value in (0, 12345, -0.012345, 1e-7, 3.0, float("nan"))] == [
        "0", "12,345", "−0.01235", "1e−07", "3", "–",
    ]  # fmt: skip


def test_a_gap_breaks_a_line_and_a_lonely_point_is_a_dot() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 1.5), (4.0, None), (5.0, 5.0), (6.0, 6.0)]
    chart = Chart("k", "t", "s", "x", "y", [Line("a", points)], [Band("b", points, points)])
    svg = str(chart.svg())
    assert svg.count('class="line run"') == 2
    assert svg.count('class="dot run"') == 1
    assert svg.count('class="band wide"') == 3
    assert "nan" not in svg
    assert [row[0] for row in chart.rows] == ["0", "1", "3", "5", "6"]
    flat = Chart("k", "t", "s", "x", "y", [Line("a", [(1.0, 2.0)])], from_zero=True)
    assert "nan" not in str(flat.svg())
    assert not Chart("k", "t", "s", "x", "y", [Line("a", [(1.0, None)])]).has_data


@pytest.mark.parametrize("samples", [0, 9])
def test_a_run_that_samples_from_a_memory_bank_has_scores_examples_and_answers(tmp_path: Path, samples: int) -> None:
    spec = RunSpec("told", model="m", memory_bank=MemoryBank(99), control_fraction=0.5, seed=2)
    entries = [ledgers.remembered(step, list(range(12))) for step in range(20)]
    entries += [ledgers.sampled(step, [step, step + 1], [0, 0]) for step in range(samples)]
    selections = read_selections(ledgers.write(tmp_path / "l.parquet", entries, spec), spec)
    text = page_of(Material([reported("told", 0.9)], [], selections, shown=([0, 1], [2]))).text
    assert f"{samples} answers of steps 0 to 19, sampled from a memory bank that 20 super-batches were put into" in text
    assert "Offered is what the bank remembered, selected what it sampled" in text
    assert "Scores of candidates" in text
