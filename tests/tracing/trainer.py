"""A trainer's program that traces: `python -m tests.tracing.trainer TARGET COLLECTOR RUN_ID WHAT`.

The run exists, with its weights. Each function below is one WHAT.
"""

from __future__ import annotations

import os
import subprocess
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from preceptor import Run, SelectionClient
from preceptor.errors import ClosedError, InvalidSuperBatchError
from preceptor.torch import SelectingLoader
from tests.ray.candidates import COUNT, super_batch
from tests.service import digits

STEP, RANK, LOADER_STEPS, MANY_STEPS = 1, 5, range(10, 14), range(12)


def one_step(client: SelectionClient, run: Run) -> None:
    with trace.get_tracer("trainer").start_as_current_span("train_step"):
        run.select(digits.candidates(STEP), sub_batch_size=8, step=STEP, rank=RANK)


def an_epoch(client: SelectionClient, run: Run) -> None:
    super_batches = [digits.candidates(step) for step in LOADER_STEPS]
    for _ in SelectingLoader(super_batches, run, sub_batch_size=8, start_step=LOADER_STEPS[0]):
        pass


def too_many(client: SelectionClient, run: Run) -> None:
    try:
        run.select(digits.candidates(STEP), sub_batch_size=33, step=STEP)
    except InvalidSuperBatchError:
        return
    raise SystemExit("33 of 32 candidates were selected")


def after_deletion(client: SelectionClient, run: Run) -> None:
    client.delete_run(run.run_id)
    try:
        run.submit(digits.candidates(STEP), sub_batch_size=8, step=STEP)
    except ClosedError:
        return
    raise SystemExit("a deleted run took a super-batch")


def a_change_of_mind(client: SelectionClient, run: Run) -> None:
    run.submit(digits.gated_candidates(STEP), sub_batch_size=4, step=STEP).cancel()


def a_gated_step(client: SelectionClient, run: Run) -> None:
    run.select(digits.gated_candidates(STEP), sub_batch_size=4, step=STEP)


def many_steps(client: SelectionClient, run: Run) -> None:
    for step in MANY_STEPS:
        run.select(super_batch(step), COUNT, step=step)


def train(target: str, collector: str, run_id: str, what: str, **environment: str) -> None:
    """Runs this program, and waits for its end."""
    command = [sys.executable, "-W", "error", "-m", "tests.tracing.trainer", target, collector, run_id, what]
    ended = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def main() -> None:
    target, collector, run_id, what = sys.argv[1:]
    provider = TracerProvider(resource=Resource.create({"service.name": "trainer"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=collector, insecure=True)))
    trace.set_tracer_provider(provider)
    with SelectionClient(target) as client:
        globals()[what](client, client.get_run(run_id))
    provider.shutdown()


if __name__ == "__main__":
    main()
