"""`preceptor serve` as it is without flags: on a Ray of its own, which ends with it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from preceptor import SelectionClient
from preceptor_service.access.access_file import new_token, token_hash
from tests.cli.conftest import Serving
from tests.ray.candidates import COUNT, expected, ready_run, spec, state, super_batch
from tests.stores import ObjectPlace

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="Ctrl-C"), pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.long)],
)
def test_it_selects_says_what_its_replicas_log_and_leaves_no_process(
    serve: Callable[..., Serving], tmp_path: Path, number: signal.Signals
) -> None:
    access, config, token = tmp_path / "access.yaml", tmp_path / "settings.yaml", new_token()
    identity = {"team-a": {"roles": {"create": ["*"]}}}
    access.write_text(yaml.safe_dump({"tokens": {token_hash(token): {"identity": "team-a"}}, "identities": identity}))
    config.write_text(yaml.safe_dump({"auth": {"access_file": str(access)}}))
    serving = serve(tmp_path / "store", "--pool", "ray", "--scorers", "2", "--config", str(config))
    settings = spec("on-ray")
    with SelectionClient(f"127.0.0.1:{serving.port()}", token=token, timeout_s=60) as client:
        run = ready_run(client, settings)
        # Of the gateway's own process: every line once, though they differ in little.
        serving.wait_for(r'"method": "PushWeights", "run": "on-ray", "code": "OK"(.|\n)*"method": "PushWeights"')
        access.write_text("tokens: nonsense")
        serving.wait_for(r"ERROR preceptor_service\.access\.watched\[\d+\]: the changed access file cannot be used")
        assert run.select(super_batch(1), COUNT, step=1).indices.tolist() == expected(settings, 1)
        started = psutil.Process(serving.process.pid).children(recursive=True)
        assert serving.end(number) == 0
    assert serving.out.endswith("stopped\n")
    assert "Traceback" not in serving.out
    audited = [json.loads(line) for line in serving.out.splitlines() if line.startswith("{")]
    assert [(line["method"], line["identity"]) for line in audited] == [
        ("CreateRun", "team-a"),
        ("PushWeights", "team-a"),
        ("PushWeights", "team-a"),
    ]
    assert len(started) > 5
    assert [process for process in started if process.is_running()] == []


@pytest.mark.long
def test_weights_reach_every_scorer_through_an_object_store(
    serve: Callable[..., Serving], object_store: ObjectPlace, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"weights: {{cache_path: {object_store.cache}}}")
    serving = serve(object_store.settings.location, "--pool", "ray", "--scorers", "2", "--config", str(settings))
    assert f"store    {object_store.settings.location}\n" in serving.wait_for(r"is serving on [^Z]*?Ctrl-C")[0]
    wanted = spec("far-away")
    with SelectionClient(f"127.0.0.1:{serving.port()}", timeout_s=60) as client:
        run = ready_run(client, wanted)
        assert run.select(super_batch(1), COUNT, step=1).indices.tolist() == expected(wanted, 1)
        pushed = run.push_weights(state("learner-2"), step=1)
        assert (pushed.version, pushed.replicas_loaded) == (2, 2)
        assert run.select(super_batch(2), COUNT, step=2).indices.tolist() == expected(wanted, 2, learner="learner-2")
    assert serving.end(signal.SIGTERM) == 0
    assert len(object_store.names("blobs")) == 3
