"""The mix: its proportions, its seed, its parser."""

from __future__ import annotations

from collections import Counter

import pytest

from msf_cli.load.arrivals import poisson
from msf_cli.load.mix import Kind, Mix, parse_weighted, plan_load

MIX = Mix(num_steps=parse_weighted("4:4,20:4,100:1", int), num_samples=parse_weighted("1:9,4:1", int))


def test_kinds_come_in_the_proportions_of_their_weights() -> None:
    requests = plan_load(poisson, 1000.0, 20.0, MIX, num_labels=3, seed=0)
    shares = {kind: count / len(requests) for kind, count in Counter(r.kind for r in requests).items()}
    assert set(shares) == set(MIX.kinds)
    assert shares[Kind(4, 1)] == pytest.approx(4 / 9 * 0.9, abs=0.01)
    assert shares[Kind(100, 4)] == pytest.approx(1 / 9 * 0.1, abs=0.005)
    assert {r.label for r in requests} == {0, 1, 2}
    assert len({r.seed for r in requests}) == len(requests)
    assert all(0 <= r.seed < 2**53 for r in requests)


def test_the_same_seed_plans_the_same_requests_at_any_rate() -> None:
    def drawn(rate_per_s: float, seed: int) -> list[tuple[Kind, int, int]]:
        return [(r.kind, r.label, r.seed) for r in plan_load(poisson, rate_per_s, 10.0, MIX, 10, seed)]

    slow, fast = drawn(5.0, seed=7), drawn(50.0, seed=7)
    assert slow == fast[: len(slow)]
    assert slow != drawn(5.0, seed=8)[: len(slow)]


def test_an_empty_mix_uses_the_model_s_defaults() -> None:
    assert Mix().kinds == [Kind(None, 1, None)]
    assert {r.kind.name for r in plan_load(poisson, 5.0, 5.0, Mix(), 1, 0)} == {"default steps, n=1"}


def test_weights_default_to_one() -> None:
    assert parse_weighted("4, 20:2.5", int).choices == ((4, 1.0), (20, 2.5))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("4:3,x:1", ("'x:1'", "Allowed: numbers")),
        ("", ("''", "Allowed: numbers")),
        ("4:a", ("'4:a'", "Allowed: numbers")),
        ("4.5", ("'4.5'",)),
        ("4:0", ("'4:0'", "weight 0", "above 0")),
        ("4:-1", ("'4:-1'", "above 0")),
        ("4:inf", ("'4:inf'", "above 0")),
        ("4:1,4:2", ("Duplicate",)),
    ],
)
def test_an_invalid_mix_is_refused_by_name(text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="Allowed") as error:
        parse_weighted(text, int)
    for part in parts:
        assert part in str(error.value)
