"""What is different where the store lies in an object store: its conditions, its failures, and the cache beside it."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from preceptor.errors import (
    DiskFullError,
    InternalError,
    PreceptorError,
    PushConflictError,
    UnavailableError,
    WeightsNotFoundError,
)
from preceptor_service.config import ConfigError, WeightsConfig
from preceptor_service.gateway.watch import _PERIOD_S
from preceptor_service.run_store import RunStore
from preceptor_service.storage import StoreHealth, check_storage
from preceptor_service.storage.blob_cache import BlobCache
from preceptor_service.storage.bucket import PART_BYTES, Bucket
from preceptor_service.weight_collection import UPLOAD_GRACE_S
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import WeightsVersion
from tests.stores import ObjectPlace
from tests.tcp_proxy import TcpProxy
from tests.weight_store.pushing import create_run, push, store_with_runs

if TYPE_CHECKING:
    from tests.s3_server import Answer

    Spoil = Callable[[dict[str, Any]], Answer | None]


def always(status: str, code: str) -> Spoil:
    """Answers every request so."""
    from tests.s3_server import Answer

    return lambda environ: Answer(status, code)


def elsewhere(place: ObjectPlace, tmp_path: Path) -> WeightStore:
    """The same store from a machine that has nothing in its cache."""
    settings = place.settings.model_copy(update={"cache_path": tmp_path / "another machine"})
    return WeightStore.open(settings)


class TestAtStart:
    def test_one_that_creates_exclusively_is_taken_and_left_as_it_was(self, object_store: ObjectPlace) -> None:
        check_storage(object_store.settings)

        assert object_store.names("staging") == []

    def test_one_that_overwrites_all_the_same_is_refused(self, object_store: ObjectPlace) -> None:
        object_store.server.spoil = lambda environ: environ.pop("HTTP_IF_NONE_MATCH", None) and None

        with pytest.raises(ConfigError, match=r"overwrites what it was asked to create only where it is missing"):
            check_storage(object_store.settings)

    def test_one_without_the_bucket_is_refused(self, object_store: ObjectPlace) -> None:
        settings = object_store.settings.model_copy(update={"path": "s3://no-such-bucket/x"})

        with pytest.raises(ConfigError, match=r"weights.path is s3://no-such-bucket/x, .*bucket does not exist"):
            check_storage(settings)

    def test_one_that_denies_access_is_refused(self, object_store: ObjectPlace) -> None:
        object_store.server.spoil = always("403 Forbidden", "AccessDenied")

        with pytest.raises(ConfigError, match=r"cannot be used: .*what these credentials may do"):
            check_storage(object_store.settings)

    def test_one_that_cannot_be_reached_is_refused(
        self, object_store: ObjectPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{unused_port()}")

        with pytest.raises(ConfigError, match="Could not connect"):
            check_storage(object_store.settings)

    @pytest.mark.parametrize(
        "path",
        ["gs://bucket", "s3://", "s3://key:secret@bucket/x", "s3://bucket/../x", "s3://bucket//x", "S3://bucket"],
    )
    def test_other_uris_are_refused(self, path: str) -> None:
        with pytest.raises(ValueError, match=r"give a directory, or s3://bucket/prefix: .* without credentials"):
            WeightsConfig(path=path)


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class TestFailures:
    def test_one_that_is_full(self, object_store: ObjectPlace) -> None:
        store = store_with_runs(object_store.open(), keep_versions=2)
        object_store.server.spoil = always("507 Insufficient Storage", "XMinioStorageFull")

        with pytest.raises(DiskFullError, match="takes no more"):
            push(store, b"one", base=0)
        object_store.server.spoil = lambda environ: None
        assert store.head("run", "learner") is None

    @pytest.mark.parametrize(("status", "code"), [("403 Forbidden", "AccessDenied"), ("507 Full", "XMinioStorageFull")])
    def test_what_it_said_is_for_the_log_and_not_for_a_trainer(
        self, object_store: ObjectPlace, caplog: pytest.LogCaptureFixture, status: str, code: str
    ) -> None:
        store = store_with_runs(object_store.open(), keep_versions=2)
        object_store.server.spoil = always(status, code)

        for _ in range(2):
            with pytest.raises(PreceptorError) as raised:
                store.adopt("run", "reference", f"sha256:{'0' * 64}") if code == "AccessDenied" else push(
                    store, b"one", base=0
                )
        for internal in (object_store.bucket, "s3://", code, "some/where", "127.0.0.1"):
            assert internal not in str(raised.value)
        said = [line for line in caplog.messages if line.startswith(f"the object store s3://{object_store.bucket}")]
        assert len(said) == len(set(said))  # the same only once
        assert said

    def test_one_that_is_busy_for_a_moment_goes_unnoticed(self, object_store: ObjectPlace) -> None:
        from tests.s3_server import Answer

        store = store_with_runs(object_store.open(), keep_versions=2)
        seen: Counter[str] = Counter()

        def busy(environ: dict[str, Any]) -> Answer | None:
            request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
            seen[request] += 1
            return Answer("503 Slow Down", "SlowDown") if seen[request] == 1 else None

        object_store.server.spoil = busy
        assert push(store, b"one").version == 1

    def test_a_commit_whose_answer_was_lost_is_still_the_one_that_won(self, object_store: ObjectPlace) -> None:
        from tests.s3_server import Answer

        store = store_with_runs(object_store.open(), keep_versions=2)
        lost: list[str] = []

        def lose_first(environ: dict[str, Any]) -> Answer | None:
            if "HTTP_IF_NONE_MATCH" not in environ or lost:
                return None
            lost.append(environ["PATH_INFO"])
            return Answer("500 Internal Server Error", "InternalError", is_done=True)

        object_store.server.spoil = lose_first
        assert push(store, b"one").version == 1
        assert [path.rpartition("/")[2] for path in lost] == ["00000001.json"]
        with pytest.raises(PushConflictError):
            push(store, b"two", base=0)

    def test_one_that_never_answers_costs_one_wait_and_then_none(
        self, object_store: ObjectPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
            bucket = Bucket("s3://bucket", call_timeout_s=0.5)

            with pytest.raises(UnavailableError, match="cannot be used; try again"):
                bucket.read("one")
            with pytest.raises(UnavailableError, match="did not answer just now"):
                bucket.read("one")

    def test_one_that_comes_back_is_used_again(
        self, object_store: ObjectPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bucket = Bucket(f"s3://{object_store.bucket}")
        with TcpProxy(object_store.server.port) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{proxy.port}")
            through = Bucket(f"s3://{object_store.bucket}")
            bucket.write("one", b"1")
            assert through.read("one") == b"1"
            proxy.cut()
            assert through.read("one") == b"1"

    def test_a_collection_that_cannot_go_on_is_left_to_the_next(
        self, object_store: ObjectPlace, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = store_with_runs(object_store.open(), keep_versions=2)
        object_store.server.spoil = always("403 Forbidden", "AccessDenied")

        store.collect()

        assert "not everything that expired was removed" in caplog.text

    def test_health_is_told_without_an_exception(self, object_store: ObjectPlace) -> None:
        store = WeightStore(object_store.open(), keep_versions=2, max_bytes=1000)

        assert store.probe() == StoreHealth(is_writable=True, free_bytes=None)
        assert object_store.names("staging") == []
        object_store.server.spoil = always("403 Forbidden", "AccessDenied")
        assert store.probe() == StoreHealth(is_writable=False, free_bytes=None)

    @pytest.mark.parametrize("document", ["store.md", "adr/0006-object-store.md"])
    def test_a_look_at_its_health_costs_what_the_documents_say(
        self, object_store: ObjectPlace, repository: Path, document: str
    ) -> None:
        store = WeightStore(object_store.open(), keep_versions=2, max_bytes=1000)
        methods: list[str] = []

        def noted(environ: dict[str, Any]) -> None:
            methods.append(environ["REQUEST_METHOD"])

        object_store.server.spoil = noted
        store.probe()

        assert methods == ["PUT", "GET", "DELETE"]
        said = " ".join((repository / "docs" / document).read_text().split())
        assert f"every {_PERIOD_S:g} s" in said
        assert f"{24 * 3600 / _PERIOD_S:,.0f} `PUT`, `GET` and `DELETE` requests each a day" in said


class TestFormerLives:
    def test_what_a_late_push_left_there_is_not_seen_and_goes_away(self, object_store: ObjectPlace) -> None:
        store = store_with_runs(object_store.open(), keep_versions=2)
        late = push(store, b"late")
        folder = object_store.versions("run")
        manifest = object_store.open().read(f"{folder}/00000001.json")
        RunStore(object_store.open()).delete("run")
        object_store.write(f"{folder}/00000001.json", manifest)
        create_run(object_store.open())

        assert store.head("run", "learner") is None
        kept = push(store, b"kept")
        object_store.age(UPLOAD_GRACE_S + 100)
        store.collect()

        assert object_store.names(folder) == []
        assert object_store.names(object_store.versions("run")) == ["00000001.json"]
        assert object_store.names("blobs") == [kept.digest.removeprefix("sha256:")] != [late.digest]

    def test_versions_of_a_run_whose_record_is_damaged_keep_their_weights(self, object_store: ObjectPlace) -> None:
        store = store_with_runs(object_store.open(), keep_versions=2)
        version = push(store, b"one")
        object_store.write("runs/run/run.json", b"")
        object_store.age(UPLOAD_GRACE_S + 100)

        WeightStore(object_store.open(), keep_versions=2, max_bytes=1000, grace_s=60).collect()

        assert object_store.names("blobs") == [version.digest.removeprefix("sha256:")]
        RunStore(object_store.open()).delete("run")
        assert object_store.names("runs/run") == []


class TestCache:
    def test_weights_reach_another_machine_whole(self, object_store: ObjectPlace, tmp_path: Path) -> None:
        data = os.urandom(2 * PART_BYTES + 1)
        create_run(object_store.open())
        version = push(WeightStore(object_store.open(), keep_versions=2, max_bytes=len(data)), data)

        assert elsewhere(object_store, tmp_path).verify(version.digest).read_bytes() == data

    def test_weights_damaged_in_the_object_store_are_named_and_healed_by_pushing_again(
        self, object_store: ObjectPlace, tmp_path: Path
    ) -> None:
        store = store_with_runs(object_store.open(), keep_versions=2)
        version = push(store, b"one")
        object_store.write(f"blobs/{hexadecimal(version)}", b"0ne")

        with pytest.raises(InternalError, match="damaged in the store"):
            elsewhere(object_store, tmp_path).verify(version.digest)
        assert list((tmp_path / "another machine").rglob(hexadecimal(version))) == []
        assert push(store, b"one") == version
        assert elsewhere(object_store, tmp_path).verify(version.digest).read_bytes() == b"one"

    def test_weights_damaged_in_the_cache_are_fetched_again(self, object_store: ObjectPlace) -> None:
        store = store_with_runs(object_store.open(), keep_versions=2)
        version = push(store, b"one")
        store.blob_path(version.digest).write_bytes(b"0ne")

        assert store.verify(version.digest).read_bytes() == b"one"

    def test_weights_that_are_nowhere_are_not_found(self, object_store: ObjectPlace, tmp_path: Path) -> None:
        store = store_with_runs(object_store.open(), keep_versions=2)
        with pytest.raises(WeightsNotFoundError):
            store.verify("sha256:" + "0" * 64)

    def test_of_many_that_want_the_same_weights_one_fetches_them(
        self, object_store: ObjectPlace, tmp_path: Path
    ) -> None:
        version = push(store_with_runs(object_store.open(), keep_versions=2), b"one")
        stores = [elsewhere(object_store, tmp_path) for _ in range(8)]
        fetched: list[str] = []

        def noted(environ: dict[str, Any]) -> None:
            if environ["REQUEST_METHOD"] == "GET" and "/blobs/" in environ["PATH_INFO"]:
                fetched.append(environ["PATH_INFO"])

        object_store.server.spoil = noted
        with ThreadPoolExecutor(len(stores)) as threads:
            paths = list(threads.map(lambda store: store.blob_path(version.digest), stores))

        assert {path.read_bytes() for path in paths} == {b"one"}
        assert len(fetched) == 1

    def test_the_least_recently_used_leave_first(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, max_bytes=8)
        for age_s, data in ((300, b"first"), (100, b"2nd")):
            file = cache.fetch(digest(data), [data])
            os.utime(file, (time.time() - age_s, time.time() - age_s))

        cache.fetch(digest(b"3rd"), [b"3", b"rd"])

        assert cache.held(digest(b"first")) is None
        assert cache.held(digest(b"2nd")) is not None
        assert cache.held(digest(b"3rd")) is not None

    def test_what_was_used_just_now_stays_whatever_the_bound(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, max_bytes=4)

        for data in (b"first", b"second"):
            cache.fetch(digest(data), [data])

        assert all(cache.held(digest(data)) for data in (b"first", b"second"))

    def test_what_a_process_left_behind_goes_with_the_next_fetch(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, max_bytes=100)
        for name, age_s in (("dead.part", 4000), ("alive.part", 100)):
            (cache.staging / name).write_bytes(b"half")
            os.utime(cache.staging / name, (time.time() - age_s, time.time() - age_s))

        cache.fetch(digest(b"one"), [b"one"])

        assert [path.name for path in cache.staging.iterdir()] == ["alive.part"]

    def test_what_has_another_checksum_is_not_kept(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, max_bytes=100)

        with pytest.raises(InternalError, match="damaged"):
            cache.fetch(digest(b"one"), [b"two"])
        assert cache.held(digest(b"one")) is None
        assert list(cache.staging.iterdir()) == []


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def hexadecimal(version: WeightsVersion) -> str:
    return version.digest.removeprefix("sha256:")
