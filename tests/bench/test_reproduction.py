"""The comparison of MSF with DiTs: that it is fair by construction, repeats nothing, and judges by the right bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.evaluation.feature_networks import Classifier, FeatureNetworks, SelfSupervised
from bench.reproduction.ablation import Ablation, report, variants
from bench.reproduction.compare import BASELINE, SCALES, Reproduction, Scale, contenders, marks
from bench.reproduction.report import upper_bound, write_report
from bench.reproduction.sampler import Speed
from bench.reproduction.training import Contender, Trainer
from msf_engine.backends.eager import EagerBackend
from msf_engine.repository import read_version
from msf_training.data import FashionMnist, Split

ROOT = Path(__file__).parents[2]
TINY = Scale(32, 2, 2, 128, 512, (0,), 50, 100, guidance=(1.5,))


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts at once."""
    backend = EagerBackend(None, 1)
    monkeypatch.setattr("bench.reproduction.sampler.get_backend", lambda *_: backend)


@pytest.fixture
def data() -> FashionMnist:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, 1, 32, 32), generator=generator, dtype=torch.uint8)
        return Split(images, torch.arange(count) % 10)

    return FashionMnist(split(200), split(200), split(200))


@pytest.fixture
def networks() -> FeatureNetworks:
    return FeatureNetworks(Classifier(8).eval(), SelfSupervised(8, 16).eval())


@pytest.fixture
def reproduction(data: FashionMnist, networks: FeatureNetworks, tmp_path: Path) -> Reproduction:
    return Reproduction(TINY, data, read_version(ROOT / "model_repo", "fashion-mnist"), networks, tmp_path)


def by_name(scale: Scale) -> dict[str, Contender]:
    return {each.name: each for each in contenders(scale)}


@pytest.mark.parametrize("scale", [SCALES["small"], SCALES["full"]], ids=["small", "full"])
def test_equal_means_equal(scale: Scale) -> None:
    """Not so at `short`, where MSF's second embeddings weigh as much as half a block: docs/reproduction.md says so."""
    entrants = by_name(scale)
    msf = entrants["MSF"]
    for patch in (1, 2):
        assert entrants[f"DiT/{patch}, equal parameters"].num_parameters == pytest.approx(msf.num_parameters, rel=0.06)
        assert entrants[f"DiT/{patch}, equal depth"].stages[0].depth == max(stage.depth for stage in msf.stages)
    assert entrants[BASELINE].flops / msf.flops > 3.5


def test_runs_of_equal_operations_see_as_many_images_as_they_can_afford() -> None:
    entrants = by_name(TINY)
    spent = {name: contender.flops * marks(TINY, contender)["flops"] for name, contender in entrants.items()}
    assert spent == pytest.approx(dict.fromkeys(entrants, spent[BASELINE]), rel=0.25)  # whole batches of 128


def test_a_contender_is_trained_tuned_and_judged_once(
    reproduction: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    msf, dit = (by_name(TINY)[name] for name in ("MSF", BASELINE))
    outcomes = [reproduction.outcome(each) for each in (msf, dit)]
    assert all(
        len(found) == 1 for outcome in outcomes for found in (*outcome.figures.values(), *outcome.curve.values())
    )
    assert {each.num_images for outcome in outcomes for each in outcome.figures["flops"]} == {TINY.num_evaluated}
    assert {each.num_images for outcome in outcomes for each in outcome.curve["half"]} == {TINY.num_tuning}
    assert [each.name for each in outcomes[0].steps_each] == [f"20+20@{outcomes[0].guidance['longer']:g}"]
    assert not outcomes[1].steps_each

    def fail(*arguments: object) -> None:
        raise AssertionError("trained or sampled again")

    monkeypatch.setattr(Trainer, "images", fail)
    monkeypatch.setattr("bench.reproduction.training.Loop", fail)
    assert reproduction.outcome(msf) == outcomes[0]
    speeds = {"MSF": Speed(8.0, 40.0, 16), BASELINE: Speed(2.0, 8.0, 4)}
    text = write_report(tmp_path / "report", "tiny", TINY, outcomes, speeds, BASELINE)
    assert "4.00" in text
    assert "5.00" in text
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"report.md", "report.svg", "report.json"}


def test_each_choice_is_changed_alone_and_judged_once(
    data: FashionMnist, networks: FeatureNetworks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_version(ROOT / "model_repo", "fashion-mnist").load()
    ablation = Ablation(TINY, data, {True: model, False: model}, networks, tmp_path, num_judged=50)
    first, *others = variants(TINY)
    trained = [each for each in others if (each.base, each.residual) != (first.base, first.residual)]
    trained += [each for each in others if not each.regularised]
    assert {each.choice for each in trained} == {"residual's share", "conditioning", "patch"}
    sampled = [each for each in others if each not in trained]
    assert all(replace(each, choice="", name=first.name, sampling=first.sampling) == first for each in sampled)
    tried = [first, trained[0], sampled[0]]  # a small few: each variant that is trained takes seconds
    text = report(ablation, tried, (0,))
    assert all(each.name in text for each in tried)

    def fail(*arguments: object) -> None:
        raise AssertionError("trained or sampled again")

    monkeypatch.setattr(Trainer, "images", fail)
    assert report(ablation, tried, (0,)) == text


def test_the_bound_is_students() -> None:
    """Of differences 0, 0.1, 0.2: mean 0.1, standard error 0.1 / √3, times t(2; 0.95) = 2.920."""
    assert upper_bound([1.0, 1.1, 1.2], [1.0, 1.0, 1.0]) == pytest.approx(0.1 + 2.920 * 0.1 / 3**0.5)
    assert upper_bound([1.0], [1.0]) is None
