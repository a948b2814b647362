"""Tracing that is off costs nothing, and tracing that cannot start says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from preceptor_service.app import start_service
from preceptor_service.config import ConfigError, parse_config
from tests.service.conftest import config

ENDPOINT = "http://127.0.0.1:4317"

OFF = """
import sys
from pathlib import Path
from preceptor import SelectionClient
from preceptor_service.app import start_service
from tests.service import digits
from tests.service.conftest import config, target_of

service = start_service(config(Path(sys.argv[1])))
with SelectionClient(target_of(service)) as client:
    run = client.create_run(digits.spec("off", score="hard_learner"))
    run.push_weights(digits.weights(1), step=0)
    run.select(digits.candidates(1), sub_batch_size=8, step=1)
service.stop()
print(sorted(name for name in sys.modules if "opentelemetry" in name))
"""


def test_neither_client_nor_gateway_imports_opentelemetry_where_tracing_is_off(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", OFF, tmp_path], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[]"


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "preceptor_service.spans", raising=False)
    monkeypatch.delattr("preceptor_service.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"tracing\.endpoint is set.*pip install 'preceptor\[tracing\]'"):
        start_service(config(tmp_path, tracing={"endpoint": ENDPOINT}))


def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracing\.ca is .*nowhere\.crt, which cannot be read: No such file"):
        start_service(config(tmp_path, tracing={"endpoint": "https://localhost:4317", "ca": "/nowhere.crt"}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"endpoint": "localhost:4317"}, r"tracing\.endpoint: .*'localhost:4317'"),
        ({"endpoint": "http://localhost"}, r"tracing\.endpoint"),
        ({"endpoint": "http://user:secret@localhost:4317"}, r"tracing\.endpoint"),
        ({"endpoint": f"{ENDPOINT}/v1/traces"}, r"tracing\.endpoint"),
        ({"endpoint": ENDPOINT, "ca": "ca.crt"}, "ca is for an https endpoint"),
        ({"ca": "ca.crt"}, "ca is for an https endpoint"),
        ({"endpoint": ENDPOINT, "sample_ratio": 1.5}, r"tracing\.sample_ratio: .*1\.5"),
        ({"endpoint": ENDPOINT, "service_name": ""}, r"tracing\.service_name"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config({"tracing": settings})
