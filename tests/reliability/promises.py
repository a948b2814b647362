"""What is promised, the proofs of each promise, and the table of what came of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.results import Result


@dataclass(frozen=True)
class Promise:
    """One promise, and what proves it.

    Attributes:
        text: the promise, for the table.
        target: what `make prove-…` is told.
        proofs: their names.
    """

    text: str
    target: str
    proofs: tuple[str, ...]


def _by(target: str, text: str) -> Promise:
    return Promise(text, target, (target,))


_FUZZED = ("arrow", "guided", "http2", "other-requests", "push-order", "safetensors", "select-frames")

PROMISES = (
    _by("chaos", "nothing is lost, doubled or changed, whatever process dies or hangs; nobody waits long for it"),
    _by("one-version", "one learner version per super-batch; never back"),
    _by("atomic-push", "a push is there or not; what was answered stays"),
    _by("resume", "the same super-batches select the same, in any order, on any number of scorers, after any kill"),
    _by("redeploys", "a new configuration costs no super-batch"),
    _by("controller-down", "selection and pushes go on while Serve's controller or Ray's GCS is away"),
    _by("overload", "goodput holds at five times what is possible; who is refused hears it at once"),
    _by("cancel", "who gives up or goes silent leaves nothing behind"),
    Promise(
        "gateway and scorers take no more memory after a million requests than after a hundred thousand",
        "memory",
        ("memory-in-process", "memory-on-ray"),
    ),
    _by("herd", "256 trainers come back together to a new gateway"),
    Promise("malformed messages end, fill and reveal nothing", "fuzz", tuple(f"fuzz-{what}" for what in _FUZZED)),
    Promise(
        "any order of calls does what a plain model says",
        "state-machine",
        ("state-machine-store", "state-machine-stream"),
    ),
    _by("credentials", "who may not, cannot; nothing else listens"),
    _by("seeded-bugs", "the tests bite"),
)


def summary(results: Iterable[Result]) -> str:
    """Returns the table: of each promise, how many of its targets are reached, and what is missing."""
    measured = {result.name: result for result in results}
    lines = ["| Promise | Proof | Targets reached | Missing |", "|---|---|---|---|"]
    for promise in PROMISES:
        reached, missing = _reached(promise, measured)
        lines.append(f"| {promise.text} | `make prove-{promise.target}` | {reached} | {'; '.join(missing) or '–'} |")
    return "\n".join(lines)


def _reached(promise: Promise, measured: Mapping[str, Result]) -> tuple[str, list[str]]:
    found = [measured[name] for name in promise.proofs if name in measured]
    judged = [figure for result in found for figure in result.figures if figure.limit is not None]
    missed = [f"{figure.name}: {figure.shown}, target {figure.target}" for figure in judged if figure.is_missed]
    unmeasured = [f"`{name}` was not run whole yet" for name in promise.proofs if name not in measured]
    return f"{len(judged) - len(missed)} of {len(judged)}", [*missed, *unmeasured]
