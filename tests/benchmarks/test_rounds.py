from __future__ import annotations

from benchmarks.rounds import interleaved, median, ratios, spread


def test_candidates_take_turns_and_each_starts_a_round() -> None:
    called: list[str] = []

    def candidate(name: str) -> float:
        called.append(name)
        return float(len(called))

    numbers = interleaved({"a": lambda: candidate("a"), "b": lambda: candidate("b")}, rounds=2, repeats=2)
    assert "".join(called) == "aabbbbaa"
    assert numbers == {"a": [[1.0, 2.0], [7.0, 8.0]], "b": [[3.0, 4.0], [5.0, 6.0]]}


def test_medians_are_over_all_rounds_and_ratios_over_each() -> None:
    above, below = [[2.0, 4.0, 9.0], [8.0]], [[2.0], [2.0, 2.0]]
    assert median(above) == 6.0
    assert ratios(above, below) == [2.0, 4.0]
    assert spread(ratios(above, below)) == "2 to 4"
