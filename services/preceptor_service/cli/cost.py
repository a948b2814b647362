"""`preceptor cost`: what selection costs and from which savings on it pays, before anything is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from preceptor_service.cli.failing import failed
from preceptor_service.cost import break_even_savings, relative_compute

FORWARD_MACS = {"vit_mu": 0.29e9, "vit_ti": 1.25e9, "vit_s": 4.6e9, "vit_b": 17.6e9, "vit_l": 61.6e9}
"""Multiply-adds of one forward pass at 224², patches of 16. Shapes: Ti 192 wide × 12 deep, S 384 × 12, B 768 × 12,
L 1024 × 24. Mu's size is not published: 0.29 G is what the paper's own figure implies."""

_PAPERS_LEARNER, _PAPERS_ONLINE, _PAPERS_KEEP = "vit_l", "vit_ti", 0.5
_PAPERS_SAVINGS = {"vit_mu": 0.24, "vit_ti": 0.26, "vit_s": 0.30, "vit_b": 0.31}
"""Share of the learner's updates that each scorer saved: Evans et al., arXiv 2312.05328, its figure on compute."""
_FLOPS_OF_A_MAC = 2.0
_NAMES = ", ".join(FORWARD_MACS)
_NOTES = """\
f       forward pass of the online model over the learner's
saved   learner updates; where not given, those of the paper's figure on compute
total   compute over uniform training; charged are the learner, the online
        model's training and scoring, and the reference's training and scoring
cached  the same where the reference's losses were computed before
from    updates that must be saved for selection to pay"""


@dataclass(frozen=True)
class _Scorer:
    """An online model and a reference beside the learner."""

    name: str
    f_online: float
    f_reference: float
    savings: float | None


def cost(
    learner: Annotated[str | None, typer.Option(help=f"The learner: {_NAMES}.")] = None,
    online: Annotated[str | None, typer.Option(help="The online model, one of the same.")] = None,
    keep: Annotated[float, typer.Option(help="b / B: the share of candidates that is trained on.")] = 0.5,
    savings: Annotated[float | None, typer.Option(help="Share of learner updates saved; none: the paper's.")] = None,
    learner_flops: Annotated[float | None, typer.Option(help="FLOPs of a forward pass of your own learner.")] = None,
    online_flops: Annotated[float | None, typer.Option(help="The same of your own online model.")] = None,
    reference_flops: Annotated[
        float | None, typer.Option(help="The same of the reference; none: as the online model.")
    ] = None,
) -> None:
    """Print what a selected run costs beside a uniform one of the same quality, and when it pays.

    Without any model it is the paper's table.
    """
    if learner is None and learner_flops is None and online is None and online_flops is None:
        learner, online = _PAPERS_LEARNER, _PAPERS_ONLINE
    try:
        _check_shares(keep, savings)
        whole = _flops("learner", learner, learner_flops)
        smaller = _flops("online", online, online_flops)
        reference = None if reference_flops is None else _flops("reference", None, reference_flops)
    except ValueError as error:
        raise failed(str(error)) from error
    scorers = {_name(online, online_flops): smaller}
    if learner is not None:
        others = {name: macs * _FLOPS_OF_A_MAC for name, macs in FORWARD_MACS.items() if macs < FORWARD_MACS[learner]}
        scorers = {**scorers, **others}
    is_papers = learner == _PAPERS_LEARNER and keep == _PAPERS_KEEP and reference is None
    rows = [
        _Scorer(
            name,
            flops / whole,
            (flops if reference is None else reference) / whole,
            _PAPERS_SAVINGS.get(name) if savings is None and is_papers else savings,
        )
        for name, flops in scorers.items()
    ]
    console = Console()
    console.print(_table(rows, _name(learner, learner_flops), 1 / keep))
    console.print(_NOTES, style="dim", highlight=False)


def _check_shares(keep: float, savings: float | None) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"--keep is {keep:g}; it is b / B, above 0 and at most 1")
    if savings is not None and not (math.isfinite(savings) and savings < 1):
        raise ValueError(f"--savings is {savings:g}; it is a share of the learner's updates, below 1")


def _flops(role: str, name: str | None, flops: float | None) -> float:
    if flops is None:
        if name is None:
            raise ValueError(f"the {role} model is missing; give --{role}, one of {_NAMES}, or --{role}-flops")
        if name not in FORWARD_MACS:
            raise ValueError(f"--{role} is {name[:64]!r}; choose one of {_NAMES}, or give --{role}-flops")
        return FORWARD_MACS[name] * _FLOPS_OF_A_MAC
    if name is not None:
        raise ValueError(f"--{role} is {name[:64]!r} and --{role}-flops {flops:g}; give one of them")
    if not (math.isfinite(flops) and flops > 0):
        raise ValueError(f"--{role}-flops is {flops:g}; it must be above 0, and finite")
    return flops


def _name(name: str | None, flops: float | None) -> str:
    return name if name is not None else f"{flops:g} FLOPs"


def _table(scorers: list[_Scorer], learner: str, ratio: float) -> Table:
    """Returns one row per scorer, the one that was asked for in bold and first."""
    table = Table(
        title=f"Selected over uniform training at B/b = {ratio:.3g}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
    )
    for name in ("learner", "scorer"):
        table.add_column(name)
    for name in ("f", "saved", "total", "cached", "pays\nfrom", "cached\nfrom"):
        table.add_column(name, justify="right", no_wrap=True)
    for place, scorer in enumerate(scorers):
        table.add_row(
            learner,
            scorer.name,
            _percent(scorer.f_online),
            "–" if scorer.savings is None else _percent(scorer.savings),
            _total(scorer, ratio, 1.0),
            _total(scorer, ratio, 0.0),
            _pays_from(scorer, ratio, 1.0),
            _pays_from(scorer, ratio, 0.0),
            style="bold" if place == 0 else None,
        )
    return table


def _total(scorer: _Scorer, ratio: float, charge_reference_scoring: float) -> str:
    if scorer.savings is None:
        return "–"
    found = relative_compute(
        scorer.savings,
        scorer.f_online,
        scorer.f_reference,
        ratio,
        charge_reference_scoring=charge_reference_scoring,
    )
    return f"[{'green' if found < 1 else 'red'}]{_percent(found)}[/]"


def _pays_from(scorer: _Scorer, ratio: float, charge_reference_scoring: float) -> str:
    least = break_even_savings(
        scorer.f_online, scorer.f_reference, ratio, charge_reference_scoring=charge_reference_scoring
    )
    return _percent(least) if least < 1 else "never"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
