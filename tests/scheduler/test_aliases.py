"""Aliases as they are stored, and the choice between their versions."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.aliases import Aliases, InvalidAlias, UnknownAlias, choose_version
from msf_scheduler.jobs import WorkerInfo
from msf_scheduler.model_control import ModelControl
from msf_scheduler.registry import Registry
from tests.server.fake_worker import FASHION

ROUTING_KEYS = [f"request {number}" for number in range(4000)]


@pytest.fixture
async def aliases(redis: Redis) -> Aliases:
    """Aliases where a worker has registered the versions 1, 2 and 10 of a model."""
    models = tuple(FASHION.model_copy(update={"version": version}) for version in ("1", "2", "10"))
    await Registry(redis).register(WorkerInfo(id="w", host="here", pid=1, backend="test", num_slots=1, models=models))
    return Aliases(redis)


def test_requests_are_split_by_weight_and_equal_keys_stay_together() -> None:
    weights = {"1": 0.9, "2": 0.1}
    versions = [choose_version(weights, key) for key in ROUTING_KEYS]
    assert versions == [choose_version(weights, key) for key in ROUTING_KEYS]
    assert Counter(versions)["2"] / len(versions) == pytest.approx(0.1, abs=0.02)


def test_more_weight_moves_requests_to_the_canary_only() -> None:
    for key in ROUTING_KEYS:
        before = choose_version({"1": 0.9, "2": 0.1}, key)
        after = choose_version({"1": 0.7, "2": 0.3}, key)
        assert (before, after) != ("2", "1")


@pytest.mark.parametrize(("weights", "only"), [({"1": 1.0, "2": 0.0}, "1"), ({"1": 0, "2": 1}, "2"), ({"2": 0.1}, "2")])
def test_a_version_without_weight_gets_nothing(weights: dict[str, float], only: str) -> None:
    assert {choose_version(weights, key) for key in ROUTING_KEYS} == {only}


async def test_aliases_are_set_replaced_and_deleted(aliases: Aliases, redis: Redis) -> None:
    revision = await ModelControl(redis).revision()
    await aliases.set("fashion", {"1": 0.5, "2": 0.5})
    await aliases.set("fashion", {"10": 1})
    await aliases.set("fashion:stable", {"1": 0.7, "2": 0.2, "10": 0.1})  # a sum of 0.9999999999999999
    assert await aliases.read() == {"fashion": {"10": 1.0}, "fashion:stable": {"1": 0.7, "2": 0.2, "10": 0.1}}
    await aliases.delete("fashion")
    assert await aliases.read() == {"fashion:stable": {"1": 0.7, "2": 0.2, "10": 0.1}}
    assert await ModelControl(redis).revision() == revision + 4


@pytest.mark.parametrize(
    ("alias", "weights", "message"),
    [
        ("shoes", {"1": 1}, 'Unknown model "shoes". Allowed: fashion.'),
        ("", {"1": 1}, 'Unknown model "". Allowed: fashion.'),
        ("fashion:stable", {"3": 1}, 'Unknown version "3" of alias fashion:stable. Allowed: 1, 2, 10.'),
        ("fashion:2", {"2": 1}, 'Invalid alias "fashion:2".'),
        ("fashion:", {"2": 1}, 'Invalid alias "fashion:".'),
        ("fashion:a/b", {"2": 1}, 'Invalid alias "fashion:a/b".'),
        ("fashion", {}, "The weights of alias fashion sum to 0. Allowed: a sum of 1."),
        ("fashion", {"1": 0.9, "2": 0.2}, "The weights of alias fashion sum to 1.1. Allowed: a sum of 1."),
        ("fashion", {"1": math.nan, "2": 0.2}, "Invalid weight of version 1 of alias fashion: nan. Allowed: 0 to 1."),
        ("fashion", {"1": math.inf}, "Invalid weight of version 1 of alias fashion: inf. Allowed: 0 to 1."),
        ("fashion", {"1": 1.5, "2": -0.5}, "Invalid weight of version 1 of alias fashion: 1.5. Allowed: 0 to 1."),
    ],
)
async def test_an_invalid_alias_is_refused_and_changes_nothing(
    aliases: Aliases, alias: str, weights: dict[str, float], message: str
) -> None:
    await aliases.set("fashion", {"2": 1})
    with pytest.raises(InvalidAlias) as raised:
        await aliases.set(alias, weights)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert await aliases.read() == {"fashion": {"2": 1.0}}


async def test_an_unloaded_version_has_no_alias(aliases: Aliases, redis: Redis) -> None:
    await ModelControl(redis).set_versions("fashion", ["1"])
    with pytest.raises(UnknownAlias, match=r'Unknown version "2" of alias fashion. Allowed: 1\.'):
        await aliases.set("fashion", {"2": 1})


async def test_deleting_an_unknown_alias_names_the_others(aliases: Aliases) -> None:
    with pytest.raises(UnknownAlias, match="Allowed: none, as no alias is set"):
        await aliases.delete("fashion")
    await aliases.set("fashion:stable", {"1": 1})
    with pytest.raises(UnknownAlias, match=r"Allowed: fashion:stable\."):
        await aliases.delete("fashion")


async def test_a_damaged_record_harms_no_other_alias(aliases: Aliases, redis: Redis) -> None:
    await aliases.set("fashion:stable", {"1": 1})
    for name, record in ((b"fashion", b"{"), (b"\xff", b"{}"), (b"fashion:a", b'{"1": "x"}')):
        await redis.hset(keys.ALIASES, name, record)
    assert await aliases.read() == {"fashion:stable": {"1": 1.0}}
