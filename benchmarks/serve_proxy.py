"""The same selection behind Ray Serve's own gRPC proxy: what our gateway is compared with.

One unary call carries the body; an ingress deployment runs our pipeline on it, with the same scorers behind
the same kind of handle. Everything but the way in is the same.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import numpy as np
from ray import serve

from preceptor.v1 import selection_pb2
from preceptor_service.byte_budget import ByteBudget
from preceptor_service.config import parse_config
from preceptor_service.drawing import Draw
from preceptor_service.gateway import translate
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.pipeline import Pipeline
from preceptor_service.run_store import RunStore
from preceptor_service.runs import RunRegistry
from preceptor_service.scoring.hedging import Hedging
from preceptor_service.scoring.ray_pool import RayPool
from preceptor_service.selected import Arrived
from preceptor_service.weight_store import WeightStore

APP = "proxied"
METHOD = "/preceptor.benchmarks.Proxied/Select"
ROWS, SUB_BATCH_SIZE, RUN_ID = 1024, 204, "latency"


class Proxied:
    """Ingress deployment: `Chunk(offset=step, data=body)` → `Selection`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        config = parse_config(settings)
        in_flight = ByteBudget(config.gateway.in_flight_bytes)
        pool = RayPool(serve.get_deployment_handle("Scorer", "preceptor"), in_flight, config.scorer.load_timeout_s)
        store = WeightStore.open(config.weights)
        architectures = ArchitectureRegistry(config.architectures)
        self._runs = RunRegistry(config, RunStore.open(config.weights), store, architectures, pool)
        budget = ByteBudget(config.gateway.in_flight_bytes)
        self._pipeline = Pipeline(self._runs, pool, budget, config.scorer.micro_batch_timeout_s, Hedging(None))

    async def Select(self, request: selection_pb2.Chunk) -> selection_pb2.Selection:  # noqa: N802 - the rpc's name
        """Selects from one super-batch."""
        started = time.perf_counter()
        run = await self._runs.get(RUN_ID)
        deadline = asyncio.get_running_loop().time() + run.deadline_s
        pinned = await self._pipeline.pin(run, request.offset, 0, deadline)
        body = np.frombuffer(request.data, np.uint8)
        draw = Draw(step=request.offset, rank=0, sub_batch_size=SUB_BATCH_SIZE)
        selected = await self._pipeline.select(run, pinned, Arrived(body, ROWS, deadline), draw)
        return translate.selection(request.offset, 0, selected, 0.0, time.perf_counter() - started)


def add_servicer(servicer: Any, server: Any) -> None:
    """Registers the method with Serve's proxy, as generated stubs would."""
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.Select,
        request_deserializer=selection_pb2.Chunk.FromString,
        response_serializer=selection_pb2.Selection.SerializeToString,
    )
    _, service, method = METHOD.split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))


def deploy(settings: dict[str, Any]) -> None:
    """Deploys the ingress; the service runs already."""
    deployment = serve.deployment(ray_actor_options={"num_cpus": 0})(Proxied)
    serve.run(deployment.bind(settings), name=APP, route_prefix="/proxied")
