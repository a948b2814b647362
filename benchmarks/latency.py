"""Latency of `select` with a scorer that costs nothing, against a bare server and against Serve's gRPC proxy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import grpc
import numpy as np

from benchmarks import bare_grpc
from benchmarks.processes import child, service
from benchmarks.results import Figure
from benchmarks.rounds import interleaved, median, ratios, rounded, spread, timed
from preceptor import RunSpec, SelectionClient
from preceptor.batches import encode
from preceptor.v1 import selection_pb2

ROWS, SUB_BATCH_SIZE = 1024, 204
ANSWER_BYTES = SUB_BATCH_SIZE * 8 + ROWS * 4
MODEL_CONFIG = {"in_channels": 3, "image_size": 32, "num_classes": 10}
ROUNDS, REPEATS, WARM_UP = 12, 15, 30


def run() -> tuple[list[Figure], dict[str, Any]]:
    """Returns the figures and the raw milliseconds."""
    settings = {"scorer": {"replicas": 2, "num_cpus": 1, "micro_batch_rows": ROWS}}
    with service(settings, with_proxy=True) as ports, child("bare_grpc", str(ANSWER_BYTES)) as bare:
        numbers = measure(ports["grpc"], bare.hello["grpc"], ports["proxy"], ROUNDS, REPEATS)
    p50 = {name: median(rounds) for name, rounds in numbers.items()}
    ours, others = numbers["preceptor"], {"bare": 2.5, "proxy": 0.7}
    titles = {"bare": "a bare grpc.aio server", "proxy": "Serve's gRPC proxy"}
    figures = [Figure("p50 of select", p50["preceptor"], "ms")]
    for name, limit in others.items():
        figures.append(Figure(f"p50 of {titles[name]}", p50[name], "ms"))
        figures.append(
            Figure(
                f"select ÷ {titles[name]}",
                p50["preceptor"] / p50[name],
                "×",
                limit,
                spread=spread(ratios(ours, numbers[name])),
            )
        )
    return figures, {f"{name}_ms": rounded(rounds) for name, rounds in numbers.items()}


def measure(ours: int, bare: int, proxy: int | None, rounds: int, repeats: int) -> dict[str, list[list[float]]]:
    """Returns milliseconds per call, by candidate and round, of servers on these ports of this machine."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (ROWS, 3, 32, 32), dtype=np.uint8),
        "label": rng.integers(0, 10, ROWS),
    }
    steps = count(1)
    with SelectionClient(f"127.0.0.1:{ours}") as client, _channel(bare) as bare_channel, _channel(proxy) as proxied:
        selection = client.create_run(RunSpec(run_id="latency", model="null", model_config=MODEL_CONFIG))
        weights = {"nothing": np.zeros(1, np.float32)}
        selection.push_reference(weights)
        selection.push_weights(weights, step=0)
        body = bytes(encode(batch).body)
        take = bare_channel.unary_unary(bare_grpc.METHOD)
        candidates: dict[str, Callable[[], float]] = {
            "preceptor": lambda: timed(lambda: selection.select(batch, SUB_BATCH_SIZE, step=next(steps))),
            "bare": lambda: timed(lambda: take(body)),
        }
        if proxy is not None:
            from benchmarks.serve_proxy import APP, METHOD

            select = proxied.unary_unary(
                METHOD, selection_pb2.Chunk.SerializeToString, selection_pb2.Selection.FromString
            )
            candidates["proxy"] = lambda: timed(
                lambda: select(
                    selection_pb2.Chunk(offset=next(steps), data=bytes(encode(batch).body)),
                    metadata=(("application", APP),),
                )
            )
        interleaved(candidates, 1, WARM_UP)
        return interleaved(candidates, rounds, repeats)


def _channel(port: int | None) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=bare_grpc.OPTIONS)
