"""`preceptor ledger export` as a user runs it; and what is left after the service was killed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from preceptor import SelectionClient
from tests.cli.conftest import Ran, Serving
from tests.service import digits
from tests.service.conftest import wait_until


def test_what_was_written_before_a_kill_is_exported_after_it_and_replays(
    preceptor: Callable[..., Ran], serve: Callable[..., Serving], tmp_path: Path
) -> None:
    store, config, out = tmp_path / "store", tmp_path / "preceptor.yaml", tmp_path / "ledger.parquet"
    config.write_text("ledger: {flush_s: 0.1}\n")
    killed = serve(store, "--config", str(config))
    with SelectionClient(f"127.0.0.1:{killed.port()}") as client:
        run = client.create_run(digits.spec("killed", score="hard_learner", ledger=True))
        run.push_weights(digits.weights(1), step=0)
        for step in range(10):
            run.select(digits.candidates(step), 8, step=step)
        segments = store / "runs" / "killed" / "ledger"
        wait_until(lambda: any("-0000010-0-9-" in path.name for path in segments.glob("*")), "ten steps are written")
        killed.end(signal.SIGKILL)
    serving = serve(store)
    target = f"127.0.0.1:{serving.port()}"
    exported = preceptor("ledger", "export", "killed", "--out", str(out), "--target", target)
    assert (exported.code, exported.out, exported.err) == (0, f"{out} holds 10 steps of run killed\n", "")
    assert pq.read_table(out)["step"].to_pylist() == list(range(10))
    replayed = preceptor("ledger", "replay", str(out))
    assert (replayed.code, replayed.err) == (0, "")
    assert replayed.out == "all 10 steps of run killed replay to what was selected, bit for bit\n"
    again = preceptor("ledger", "export", "killed", "--out", str(out), "--target", target)
    assert (again.code, again.err) == (1, f"preceptor: {out} exists; name a new file\n")
    nowhere = preceptor("ledger", "export", "killed", "--out", str(tmp_path / "none" / "x"), "--target", target)
    assert (nowhere.code, nowhere.err) == (
        1,
        f"preceptor: there is no directory {tmp_path}/none; make it, or name another file\n",
    )
    some = str(tmp_path / "some.parquet")
    ranged = preceptor("ledger", "export", "killed", "-o", some, "--from-step", "3", "--to-step", "4", "-t", target)
    assert ranged.out == f"{some} holds 2 steps of run killed\n"
    dropped = preceptor("ledger", "export", "killed", "-o", str(tmp_path / "x"), "--from-step", "50", "-t", target)
    assert dropped.code == 1
    assert "holds steps 0 to 9, and none from 50 on" in dropped.err
    (segment,) = segments.glob("*-0000010-0-9-*")  # the kill may have left a smaller one, which it replaces
    segment.write_bytes(b"")
    lost = preceptor("ledger", "export", "killed", "-o", str(tmp_path / "y"), "-t", target)
    assert lost.code == 1
    assert segment.name in lost.err
    unknown = preceptor("ledger", "export", "nobody", "-o", str(tmp_path / "z"), "-t", target)
    assert (unknown.code, "there is no run 'nobody'" in unknown.err) == (1, True)
    assert serving.end(signal.SIGTERM) == 0
    alone = preceptor("ledger", "export", "killed", "-o", str(tmp_path / "w"), "-t", target, "--timeout", "5")
    assert alone.code == 1
    assert f"no service answers at {target}" in alone.err


def test_a_missing_file_is_named_in_one_line(preceptor: Callable[..., Ran], tmp_path: Path) -> None:
    ran = preceptor("ledger", "replay", str(tmp_path / "none.parquet"))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"preceptor: cannot read {tmp_path}/none.parquet: No such file or directory\n"
