"""Reference losses by Ray Data: the same table as without Ray; and Ray Data stays out of the service's processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from preceptor_service.models import ArchitectureRegistry
from preceptor_service.ray_cluster import RayCluster
from preceptor_service.reference.errors import JobError
from preceptor_service.reference.losses_job import build_losses, score_here
from preceptor_service.reference.part_scorer import Layout, Scoring, read_reference
from tests.cli.conftest import environment
from tests.reference.examples import IMAGES, arrays, write
from tests.service import digits

ROWS = 60


@pytest.mark.ray
@pytest.mark.long
def test_scorers_on_ray_write_the_table_that_one_process_writes(ray_cluster: RayCluster, tmp_path: Path) -> None:
    from preceptor_service.reference.ray_scorers import RayScorers

    good, bad = arrays(IMAGES, ROWS), arrays(IMAGES, ROWS)
    bad["label"][33] = 9
    save_file(digits.weights(7), tmp_path / "weights.safetensors")
    reference = read_reference(
        tmp_path / "weights.safetensors", IMAGES.task, IMAGES.name, IMAGES.config, ArchitectureRegistry()
    )
    for name, examples in (("good", good), ("bad", bad)):
        write(tmp_path / f"{name}.parquet", examples, example_id=list(range(ROWS, 0, -1)))

    def build(data: str, output: str, scorers: object) -> None:
        build_losses(
            reference,
            [tmp_path / f"{data}.parquet"],
            Layout("example_id", {}),
            Scoring(micro_batch_rows=4, device="cpu", threads=1, architectures={}),
            part_rows=7,
            path=tmp_path / output,
            scorers=scorers,  # type: ignore[arg-type]
            is_stopped=lambda: False,
            watch=lambda done, total: None,
        )

    build("good", "here.parquet", score_here)
    build("good", "ray.parquet", RayScorers(2))
    with pytest.raises(JobError, match="'label' has 9 in row 33; every value must be from 0 to 3") as caught:
        build("bad", "bad-losses.parquet", RayScorers(1))

    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert pq.read_table(tmp_path / "ray.parquet").num_rows == ROWS
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bad-losses.parquet").exists()


def test_no_process_of_the_service_imports_ray_data(repository: Path) -> None:
    program = (
        "import sys, preceptor_service.cli.main, preceptor_service.app, preceptor_service.serve_app\n"
        "import preceptor_service.gateway.deployment, preceptor_service.scoring.ray_pool\n"
        "import preceptor_service.scoring.ray_scorer\n"
        "sys.exit('ray.data' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment(repository), timeout=120, check=False, capture_output=True
    )

    assert (ran.returncode, ran.stderr) == (0, b"")
