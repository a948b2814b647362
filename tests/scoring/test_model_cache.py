"""Which models stay, which go, and who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from preceptor.errors import DeadlineExceededError, InternalError, OverloadedError, TooLargeError
from preceptor_service.scoring.model_cache import ModelCache, Want
from preceptor_service.scoring.pool import ModelRef

PATIENCE_S = 10.0


def ref(name: str, size: int = 1) -> ModelRef:
    return ModelRef("fake", "{}", name, size)


def learner(name: str, run_id: str = "run", size: int = 1) -> Want:
    return Want(ref(name, size), run_id)


def reference(name: str, size: int = 1) -> Want:
    return Want(ref(name, size), None)


class Loads:
    """Counts loads; those of `held` names wait until they are let go."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.begun: dict[str, threading.Event] = {}

    def hold(self, name: str) -> None:
        self.gates[name], self.begun[name] = threading.Event(), threading.Event()

    def __call__(self, model: ModelRef) -> str:
        self.names.append(model.digest)
        if model.digest in self.gates:
            self.begun[model.digest].set()
            assert self.gates[model.digest].wait(PATIENCE_S)
        return f"model {model.digest}"


@pytest.fixture
def loads() -> Loads:
    return Loads()


def cache_of(loads: Callable[[ModelRef], str], max_bytes: int, timeout_s: float = PATIENCE_S) -> ModelCache[str]:
    return ModelCache(max_bytes, lambda model: model.total_bytes, loads, timeout_s)


def use(cache: ModelCache[str], *wants: Want) -> list[str]:
    with cache.lease(wants) as models:
        return models


def held(cache: ModelCache[str]) -> list[str]:
    return [model.digest for model in cache.held()]


def test_a_model_is_loaded_once_while_it_is_held(loads: Loads) -> None:
    cache = cache_of(loads, 10)

    assert use(cache, learner("a"), reference("r")) == ["model a", "model r"]
    assert use(cache, reference("r"), learner("a")) == ["model r", "model a"]
    assert loads.names == ["a", "r"]


def test_runs_with_the_same_reference_share_it(loads: Loads) -> None:
    cache = cache_of(loads, 10)

    use(cache, learner("a", "one"), reference("r"))
    use(cache, learner("b", "two"), reference("r"))

    assert loads.names == ["a", "r", "b"]


def test_learner_and_reference_may_be_the_same_model(loads: Loads) -> None:
    assert use(cache_of(loads, 1), learner("a"), reference("a")) == ["model a", "model a"]
    assert loads.names == ["a"]


def test_the_least_recently_used_goes_first(loads: Loads) -> None:
    cache = cache_of(loads, 3)
    for name in ("a", "b", "c", "a", "d"):
        use(cache, reference(name))

    assert held(cache) == ["c", "a", "d"]


def test_a_large_model_drives_out_as_many_as_it_needs(loads: Loads) -> None:
    cache = cache_of(loads, 5)
    for name in ("a", "b", "c", "d"):
        use(cache, reference(name))
    use(cache, reference("large", 3))

    assert held(cache) == ["c", "d", "large"]


def test_a_leased_model_is_never_dropped(loads: Loads) -> None:
    cache = cache_of(loads, 2, timeout_s=0.05)
    with cache.lease([reference("a")]):
        use(cache, reference("b"))
        use(cache, reference("c"))
        assert held(cache) == ["a", "c"]
        with pytest.raises(OverloadedError, match=r"no room for models of 2 bytes within 0\.05 s"):
            use(cache, reference("d", 2))
    assert use(cache, reference("d", 2)) == ["model d"]


def test_one_waits_for_room_until_a_lease_ends(loads: Loads) -> None:
    cache = cache_of(loads, 1)
    with ThreadPoolExecutor(1) as other:
        with cache.lease([reference("a")]):
            waiting = other.submit(use, cache, reference("b"))
            with pytest.raises(TimeoutError):
                waiting.result(0.05)
        assert waiting.result(PATIENCE_S) == ["model b"]


def test_a_model_above_the_bound_is_refused_before_it_is_loaded(loads: Loads) -> None:
    cache = cache_of(loads, 3)

    with pytest.raises(TooLargeError, match="models of 4 bytes are needed at once, a scorer may hold 3"):
        use(cache, learner("a", size=2), reference("r", 2))
    assert loads.names == []


class TestLearners:
    def test_the_two_used_last_of_each_run_stay(self, loads: Loads) -> None:
        cache = cache_of(loads, 100)
        for name in ("a1", "a2", "a3"):
            use(cache, learner(name, "a"))
            use(cache, learner(name.replace("a", "b"), "b"))

        assert held(cache) == ["a2", "b2", "a3", "b3"]

    def test_the_version_in_use_outlives_one_that_was_never_used(self, loads: Loads) -> None:
        cache = cache_of(loads, 100)
        for name in ("v1", "v2", "v1", "v3"):
            use(cache, learner(name))

        assert held(cache) == ["v1", "v3"]

    def test_an_old_version_goes_when_its_last_lease_ends(self, loads: Loads) -> None:
        cache = cache_of(loads, 100)
        with cache.lease([learner("v1")]):
            use(cache, learner("v2"))
            use(cache, learner("v3"))
            assert held(cache) == ["v1", "v2", "v3"]

        assert held(cache) == ["v2", "v3"]

    def test_an_old_version_stays_where_it_is_a_reference_or_another_runs_learner(self, loads: Loads) -> None:
        cache = cache_of(loads, 100)
        use(cache, reference("v1"))
        use(cache, learner("v2", "other"))
        for name in ("v1", "v2", "v3", "v4"):
            use(cache, learner(name))

        assert held(cache) == ["v1", "v2", "v3", "v4"]


class TestConcurrency:
    def test_a_load_holds_up_nobody_else(self, loads: Loads) -> None:
        cache = cache_of(loads, 10)
        loads.hold("slow")
        with ThreadPoolExecutor(1) as other:
            slow = other.submit(use, cache, reference("slow"))
            assert loads.begun["slow"].wait(PATIENCE_S)

            assert use(cache, reference("b")) == ["model b"]
            assert held(cache) == ["b"]

            loads.gates["slow"].set()
            assert slow.result(PATIENCE_S) == ["model slow"]

    def test_two_threads_that_want_the_same_model_load_it_once(self, loads: Loads) -> None:
        cache = cache_of(loads, 10)
        loads.hold("a")
        with ThreadPoolExecutor(3) as others:
            both = [others.submit(use, cache, reference("a")) for _ in range(3)]
            assert loads.begun["a"].wait(PATIENCE_S)
            loads.gates["a"].set()

            assert [one.result(PATIENCE_S) for one in both] == [["model a"]] * 3
        assert loads.names == ["a"]

    def test_waiting_for_another_threads_load_has_a_deadline(self, loads: Loads) -> None:
        cache = cache_of(loads, 10, timeout_s=0.05)
        loads.hold("a")
        with ThreadPoolExecutor(1) as other:
            first = other.submit(use, cache, reference("a"))
            assert loads.begun["a"].wait(PATIENCE_S)

            with pytest.raises(DeadlineExceededError):
                use(cache, reference("a"))

            loads.gates["a"].set()
            assert first.result(PATIENCE_S) == ["model a"]

    def test_two_that_want_the_same_pair_in_different_order_both_get_it(self, loads: Loads) -> None:
        cache = cache_of(loads, 2)

        def alternate(names: tuple[str, str]) -> None:
            for _ in range(200):
                use(cache, *(reference(name) for name in names))

        with ThreadPoolExecutor(3) as others:
            done: list[Future[None]] = [
                others.submit(alternate, names) for names in (("a", "b"), ("b", "a"), ("c", "d"))
            ]
            for one in done:
                one.result(PATIENCE_S)


class TestFailedLoads:
    def test_the_next_one_tries_again(self) -> None:
        bad = {"a"}

        def load(model: ModelRef) -> str:
            if model.digest in bad:
                raise InternalError("damaged")
            return "model"

        cache = cache_of(load, 1)
        with pytest.raises(InternalError, match="damaged"):
            use(cache, reference("a"))
        assert held(cache) == []
        bad.clear()
        assert use(cache, reference("a")) == ["model"]

    def test_models_that_were_to_be_loaded_next_are_not_left_half_way(self) -> None:
        bad = {"a"}

        def load(model: ModelRef) -> str:
            if model.digest in bad:
                raise InternalError("damaged")
            return model.digest

        cache = cache_of(load, 10)
        with pytest.raises(InternalError):
            use(cache, learner("a"), reference("b"))
        assert use(cache, reference("b")) == ["b"]
