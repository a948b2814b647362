"""A store as one file and back: whole, between any two places, and nothing of a file is trusted."""

from __future__ import annotations

import hashlib
import io
import os
import pty
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from preceptor_service.cli.main import app
from preceptor_service.run_store import RunStore
from preceptor_service.storage import Storage
from preceptor_service.store_backup import BackupError, back_up, restore, restore_stream, stream_backup
from preceptor_service.weight_store import WeightStore
from tests.stores import DirectoryPlace, ObjectPlace, Place
from tests.weight_store.pushing import create_run, push, store_with_runs

if TYPE_CHECKING:
    from typing_extensions import Buffer

Members = dict[str, bytes]
_PROGRAM = [sys.executable, "-m", "preceptor_service", "store"]


@pytest.fixture
def full(place: Place) -> Place:
    """A store with two runs, one of which shares its reference with the other and lost its first versions."""
    store = store_with_runs(place.open(), keep_versions=2)
    for run_id in ("run", "other"):
        push(store, b"reference", role="reference", run_id=run_id)
    for step in range(4):
        push(store, b"%d" % step, step=step)
    place.age(100)
    store.collect()
    return place


@pytest.fixture
def empty(tmp_path: Path) -> Storage:
    """A directory to restore to."""
    return DirectoryPlace(tmp_path / "restored").open()


def told(storage: Storage) -> object:
    """All that a store answers."""
    runs, weights = RunStore(storage), WeightStore(storage, keep_versions=10, max_bytes=1000)
    return [
        (
            runs.read(run_id),
            [(version, weights.verify(version.digest).read_bytes()) for version in weights.versions(run_id, "learner")],
            [(one, weights.verify(one.digest).read_bytes()) for one in weights.versions(run_id, "reference")],
        )
        for run_id in runs.list()
    ]


class OneWay(io.BytesIO):
    """Can be read once, as a pipe can."""

    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0, /) -> int:
        raise io.UnsupportedOperation("a pipe cannot go back")


class Narrow(io.BytesIO):
    """Takes so many bytes; then nobody reads any more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def write(self, data: Buffer, /) -> int:
        part = bytes(data)[: self._room - len(self.getvalue())]
        super().write(part)
        if len(part) < len(bytes(data)):
            raise BrokenPipeError(32, "Broken pipe")
        return len(part)


def members_of(content: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: (tar.extractfile(member) or io.BytesIO()).read() for member in tar}


def members(file: Path) -> Members:
    return members_of(file.read_bytes())


def write(file: Path, contents: Members, change: Callable[[tarfile.TarInfo], None] = lambda member: None) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            change(member)
            tar.addfile(member, io.BytesIO(content))
    return file


class TestThereAndBack:
    def test_a_restored_store_answers_the_same(self, full: Place, empty: Storage, tmp_path: Path) -> None:
        there = back_up(full.open(), tmp_path / "backup.tar")
        back = restore(tmp_path / "backup.tar", empty)

        assert told(empty) == told(full.open())
        assert (there.runs, there.versions, there.blobs, there.total_bytes) == (2, 4, 3, 11)
        assert there == back
        assert list(empty.staging.iterdir()) == []

    def test_a_stream_that_cannot_go_back_holds_the_same(self, full: Place, empty: Storage, tmp_path: Path) -> None:
        there = back_up(full.open(), tmp_path / "backup.tar")
        reading, writing = os.pipe()
        streamed: list[bytes] = []

        def read() -> None:
            with os.fdopen(reading, "rb") as pipe:
                streamed.append(pipe.read())

        reader = threading.Thread(target=read)
        reader.start()
        with os.fdopen(writing, "wb") as pipe:
            assert stream_backup(full.open(), pipe) == there
        reader.join(60)
        back = restore_stream(OneWay(streamed[0]), empty)

        assert members_of(streamed[0]) == members(tmp_path / "backup.tar")
        assert back == there
        assert told(empty) == told(full.open())
        assert list(empty.staging.iterdir()) == []

    def test_it_goes_to_an_object_store(self, full: Place, object_store: ObjectPlace, tmp_path: Path) -> None:
        if full is object_store:
            object_store = ObjectPlace(object_store.server, tmp_path / "another cache")
        back_up(full.open(), tmp_path / "backup.tar")
        restore(tmp_path / "backup.tar", object_store.open())

        assert told(object_store.open()) == told(full.open())

    def test_a_restored_run_goes_on_with_the_next_version(self, full: Place, empty: Storage, tmp_path: Path) -> None:
        back_up(full.open(), tmp_path / "backup.tar")
        restore(tmp_path / "backup.tar", empty)

        store = WeightStore(empty, keep_versions=2, max_bytes=1000)
        assert push(store, b"next", step=9).version == 5

    def test_a_backup_during_pushes_and_collections_is_whole(self, place: Place, tmp_path: Path) -> None:
        store = store_with_runs(place.open(), keep_versions=2, grace_s=-10)  # what expired goes at once
        push(store, b"first")
        stop, pushed = threading.Event(), threading.Event()

        def go_on() -> None:
            step = 0
            while not stop.is_set():
                step += 1
                push(store, os.urandom(100), step=step)
                store.collect()
                pushed.set()

        trainer = threading.Thread(target=go_on)
        trainer.start()
        try:
            assert pushed.wait(60)
            for number in range(5):
                assert back_up(place.open(), tmp_path / f"{number}.tar").left_out == []
        finally:
            stop.set()
            trainer.join(60)
        for number in range(5):
            restored = DirectoryPlace(tmp_path / f"restored {number}").open()
            restore(tmp_path / f"{number}.tar", restored)
            assert WeightStore(restored, keep_versions=2, max_bytes=1000).head("run", "learner") is not None

    def test_what_is_damaged_in_the_store_is_left_out_and_named(
        self, full: Place, empty: Storage, tmp_path: Path
    ) -> None:
        full.write(f"{full.versions('run')}/00000003.json", b"{")
        full.write(f"blobs/{hashlib.sha256(b'3').hexdigest()}", b"?")
        storage = full.open()
        if isinstance(full, ObjectPlace):
            storage = ObjectPlaceElsewhere(full, tmp_path).open()

        report = back_up(storage, tmp_path / "backup.tar")
        restore(tmp_path / "backup.tar", empty)

        assert [line.split(":")[0] for line in sorted(report.left_out)] == [
            "learner version 00000003 of run 'run'",
            "learner version 4 of run 'run'",
        ]
        assert WeightStore(empty, keep_versions=2, max_bytes=1000).head("run", "learner") is None
        assert WeightStore(empty, keep_versions=2, max_bytes=1000).head("run", "reference") is not None


class ObjectPlaceElsewhere:
    """The same bucket from a machine with an empty cache."""

    def __init__(self, place: ObjectPlace, tmp_path: Path) -> None:
        self._settings = place.settings.model_copy(update={"cache_path": tmp_path / "elsewhere"})

    def open(self) -> Storage:
        from preceptor_service.storage import open_storage

        return open_storage(self._settings)


class TestRefusals:
    @pytest.fixture
    def sound(self, tmp_path: Path) -> Members:
        """The contents of a backup."""
        storage = DirectoryPlace(tmp_path / "source").open()
        create_run(storage)
        push(WeightStore(storage, keep_versions=2, max_bytes=1000), b"one")
        back_up(storage, tmp_path / "sound.tar")
        return members(tmp_path / "sound.tar")

    @pytest.mark.parametrize(
        "name",
        [
            "../outside",
            "/etc/passwd",
            "runs/../../outside/run.json",
            "runs/run/learner/../../../00000001.json",
            "runs/run/learner/1.json",
            "runs/run/teacher/00000001.json",
            "runs/RUN/run.json",
            "blobs/one",
            "staging/one",
            "preceptor-store.json.bak",
        ],
    )
    def test_a_name_that_is_no_part_of_a_store(self, sound: Members, empty: Storage, tmp_path: Path, name: str) -> None:
        refused(write(tmp_path / "bad.tar", {**sound, name: b"x"}), empty, "no part of a store")
        assert not (tmp_path / "outside").exists()

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
    def test_something_other_than_a_file(self, sound: Members, empty: Storage, tmp_path: Path, kind: bytes) -> None:
        def change(member: tarfile.TarInfo) -> None:
            if member.name.startswith("blobs/"):
                member.type, member.linkname, member.size = kind, "/etc/passwd", 0

        refused(write(tmp_path / "bad.tar", sound, change), empty, "something other than a file")

    def test_weights_with_another_checksum(self, sound: Members, empty: Storage, tmp_path: Path) -> None:
        bad = {name: b"0ne" if name.startswith("blobs/") else content for name, content in sound.items()}
        refused(write(tmp_path / "bad.tar", bad), empty, "damaged in the file: their SHA-256 is")

    def test_a_version_without_its_weights(self, sound: Members, empty: Storage, tmp_path: Path) -> None:
        bad = {name: content for name, content in sound.items() if not name.startswith("blobs/")}
        refused(write(tmp_path / "bad.tar", bad), empty, "lacks its record or its weights")

    def test_a_version_without_its_run(self, sound: Members, empty: Storage, tmp_path: Path) -> None:
        bad = {name: content for name, content in sound.items() if not name.endswith("run.json")}
        refused(write(tmp_path / "bad.tar", bad), empty, "lacks its record or its weights")

    def test_a_version_under_another_number(self, sound: Members, empty: Storage, tmp_path: Path) -> None:
        bad = {name.replace("00000001", "00000002"): content for name, content in sound.items()}
        refused(write(tmp_path / "bad.tar", bad), empty, "learner version 2 of run 'run' is damaged in the file")

    def test_a_record_under_another_name(self, sound: Members, empty: Storage, tmp_path: Path) -> None:
        bad = {name.replace("/run/", "/another/"): content for name, content in sound.items()}
        refused(write(tmp_path / "bad.tar", bad), empty, "the record of run 'another' is damaged in the file")

    def test_a_record_of_unbounded_size(self, sound: Members, empty: Storage, tmp_path: Path) -> None:
        refused(write(tmp_path / "bad.tar", {**sound, "runs/big/run.json": bytes(1 << 21)}), empty, "the limit is")

    def test_a_file_that_is_cut_off(self, sound: Members, empty: Storage, tmp_path: Path) -> None:
        whole = write(tmp_path / "whole.tar", sound).read_bytes()
        (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"one") + 1])
        refused(tmp_path / "cut.tar", empty, "not a whole tar file")

    @pytest.mark.parametrize("is_stream", [False, True], ids=["file", "stream"])
    def test_one_that_is_cut_off_between_two_files(
        self, sound: Members, empty: Storage, tmp_path: Path, is_stream: bool
    ) -> None:
        whole = write(tmp_path / "whole.tar", sound)
        with tarfile.open(whole) as tar:
            # What was read of it is a sound backup of fewer runs.
            ends = [0, *(member.offset for member in tar.getmembers()[1:]), tar.offset]
        for end in ends:
            cut = tmp_path / "cut.tar"
            cut.write_bytes(whole.read_bytes()[:end])
            with pytest.raises(BackupError, match="not a whole tar file"):
                restore_stream(OneWay(cut.read_bytes()), empty) if is_stream else restore(cut, empty)
            assert [*empty.run_ids(), *empty.names("blobs"), *empty.staging.iterdir()] == []

    def test_a_stream_that_broke_off_while_it_was_written(self, full: Place, empty: Storage, tmp_path: Path) -> None:
        back_up(full.open(), tmp_path / "whole.tar")
        with tarfile.open(tmp_path / "whole.tar") as tar:
            tar.getmembers()
            end = tar.offset
        for room in range(0, end + 1024, 1024):  # two blocks of zeros are its end; the rest is padding
            stream = Narrow(room)
            with pytest.raises(BrokenPipeError):
                stream_backup(full.open(), stream)
            with pytest.raises(BackupError, match="not a whole tar file"):
                restore_stream(OneWay(stream.getvalue()), empty)
            assert [*empty.run_ids(), *empty.names("blobs"), *empty.staging.iterdir()] == []

    def test_another_tar_file(self, sound: Members, empty: Storage, tmp_path: Path) -> None:
        bad = {name: content for name, content in sound.items() if name != "preceptor-store.json"}
        refused(write(tmp_path / "bad.tar", bad), empty, "is it a backup of a store")

    def test_a_store_that_is_not_empty(self, sound: Members, place: Place, tmp_path: Path) -> None:
        create_run(place.open(), "mine")
        with pytest.raises(BackupError, match="not empty"):
            restore(write(tmp_path / "good.tar", sound), place.open())
        assert place.names("runs") == ["mine/run.json"]

    def test_a_backup_onto_a_file_that_exists(self, full: Place, tmp_path: Path) -> None:
        (tmp_path / "mine").write_bytes(b"mine")
        with pytest.raises(BackupError, match="exists"):
            back_up(full.open(), tmp_path / "mine")
        assert (tmp_path / "mine").read_bytes() == b"mine"


def refused(file: Path, storage: Storage, why: str) -> None:
    """Restoring that file says why it is refused, and writes nothing."""
    with pytest.raises(BackupError, match=why):
        restore(file, storage)
    assert [*storage.run_ids(), *storage.names("blobs"), *storage.staging.iterdir()] == []


class TestCommand:
    def test_it_backs_up_and_restores(self, tmp_path: Path) -> None:
        place = DirectoryPlace(tmp_path / "store")
        push(store_with_runs(place.open(), keep_versions=2, run_ids=("run",)), b"one")
        file, to = str(tmp_path / "backup.tar"), str(tmp_path / "restored")

        backed_up = run("backup", file, "--store", str(tmp_path / "store"))
        restored = run("restore", file, "--store", to)

        assert backed_up == (0, f"{file} holds runs: 1, versions: 1, sets of weights: 1 (3 bytes)\n", "")
        assert restored == (0, f"{to} holds runs: 1, versions: 1, sets of weights: 1 (3 bytes)\n", "")
        assert told(DirectoryPlace(Path(to)).open()) == told(place.open())

    def test_it_says_what_it_cannot_do_and_makes_nothing(self, tmp_path: Path) -> None:
        code, out, error = run("backup", str(tmp_path / "backup.tar"), "--store", str(tmp_path / "nowhere"))
        assert (code, out) == (1, "")
        assert error == f"preceptor: no backup of the store: there is no directory {tmp_path}/nowhere\n"

        code, out, error = run("restore", str(tmp_path / "none.tar"), "--store", str(tmp_path / "restored"))
        assert (code, out) == (1, "")
        assert error == (
            f"preceptor: nothing to rely on was restored: cannot read {tmp_path}/none.tar: No such file or directory\n"
        )
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == []

    def test_a_folder_that_is_not_there_is_named_as_it_was_given(self, tmp_path: Path) -> None:
        push(store_with_runs(DirectoryPlace(tmp_path / "store").open(), keep_versions=2, run_ids=("run",)), b"one")
        file = tmp_path / "none" / "backup.tar"
        code, out, error = run("backup", str(file), "--store", str(tmp_path / "store"))
        assert (code, out) == (1, "")
        assert error == f"preceptor: no backup of the store: cannot write {file}: No such file or directory\n"

    def test_it_streams_between_two_programs(self, tmp_path: Path) -> None:
        place = DirectoryPlace(tmp_path / "store")
        push(store_with_runs(place.open(), keep_versions=2, run_ids=("run",)), b"one")

        backed_up = program("backup", "-", "--store", str(tmp_path / "store"))
        restored = program("restore", "-", "--store", str(tmp_path / "restored"), content=backed_up.stdout)

        holds = "holds runs: 1, versions: 1, sets of weights: 1 (3 bytes)\n"
        assert (backed_up.returncode, backed_up.stderr.decode()) == (0, f"the backup {holds}")
        assert (restored.returncode, restored.stdout.decode()) == (0, f"{tmp_path}/restored {holds}")
        assert told(DirectoryPlace(tmp_path / "restored").open()) == told(place.open())

    def test_a_reader_that_goes_away_is_told_once(self, tmp_path: Path) -> None:
        push(store_with_runs(DirectoryPlace(tmp_path / "store").open(), keep_versions=2), os.urandom(900))
        reading, writing = os.pipe()
        os.close(reading)
        try:
            told = subprocess.run(
                [*_PROGRAM, "backup", "-", "--store", str(tmp_path / "store")],
                stdout=writing,
                stderr=subprocess.PIPE,
                timeout=60,
                check=False,
            )
        finally:
            os.close(writing)

        assert told.returncode == 1
        assert told.stderr.decode() == "preceptor: no backup of the store: [Errno 32] Broken pipe\n"

    def test_a_terminal_is_neither_written_to_nor_read_from(self, tmp_path: Path) -> None:
        push(store_with_runs(DirectoryPlace(tmp_path / "store").open(), keep_versions=2), b"one")
        ours, theirs = pty.openpty()
        try:
            for command, stream in (("backup", "output"), ("restore", "input")):
                told = subprocess.run(
                    [*_PROGRAM, command, "-", "--store", str(tmp_path / ("store" if command == "backup" else "new"))],
                    stdin=theirs,
                    stdout=theirs,
                    stderr=subprocess.PIPE,
                    timeout=60,
                    check=False,
                )
                assert told.returncode == 1
                assert f"standard {stream} is a terminal; redirect it to a file" in told.stderr.decode()
        finally:
            os.close(ours)
            os.close(theirs)

    def test_it_tells_a_script_that_something_was_left_out(self, tmp_path: Path) -> None:
        place = DirectoryPlace(tmp_path / "store")
        push(store_with_runs(place.open(), keep_versions=2), b"one")
        place.write("runs/run/learner/00000001.json", b"{")

        code, out, error = run("backup", str(tmp_path / "backup.tar"), "--store", str(tmp_path / "store"))

        assert code == 1
        assert "holds runs: 2, versions: 0," in out
        assert "learner version 00000001 of run 'run'" in error


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `preceptor store`."""
    result = CliRunner().invoke(app, ["store", *arguments])
    return result.exit_code, result.stdout, result.stderr


def program(*arguments: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs `preceptor store` as a process of its own, with pipes."""
    return subprocess.run([*_PROGRAM, *arguments], input=content, capture_output=True, timeout=60, check=False)
