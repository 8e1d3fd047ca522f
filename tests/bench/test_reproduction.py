"""The comparison of MSF with DiTs is fair by construction, repeats nothing, and judges by the right bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.evaluation.comparison import Quality
from bench.evaluation.feature_networks import FeatureNetworks
from bench.evaluation.networks import Classifier, SelfSupervised
from bench.mixed_load import MIX
from bench.reproduction.ablation import Ablation, report, variants
from bench.reproduction.architectures import BASELINE, OURS, SCALES, Architecture, Scale, architectures, marks
from bench.reproduction.compare import Reproduction
from bench.reproduction.latent_trainer import LatentTrainer
from bench.reproduction.report import Difference, write_report
from bench.reproduction.results_cache import ResultsCache
from bench.reproduction.sampling import Speed
from bench.reproduction.served import contenders, mixed_rate, servable_model, with_patches_of_one
from msf_cli.load.mix import plan_typical
from msf_engine.backends.eager import EagerBackend
from msf_engine.repository import read_version, save_version
from msf_training.class_folders import ClassFolders
from msf_training.dataset import Split

ROOT = Path(__file__).parents[2]
TINY = Scale(32, 2, 2, 128, 512, (0,), 50, 100, guidance=(1.5,))


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample without compilation."""
    backend = EagerBackend(None, 1)
    monkeypatch.setattr("bench.reproduction.sampling.get_backend", lambda *_: backend)


def random_split(seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (200, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(200) % 10)


@pytest.fixture
def data() -> ClassFolders:
    labels = tuple(str(number) for number in range(10))
    return ClassFolders(random_split(0), random_split(1), labels, (), torch.full((200,), -1))


@pytest.fixture
def networks() -> FeatureNetworks:
    return FeatureNetworks(Classifier(8, 10).eval(), SelfSupervised(8, projection=16).eval(), "black")


@pytest.fixture
def reproduction(data: ClassFolders, networks: FeatureNetworks, tmp_path: Path) -> Reproduction:
    version = read_version(ROOT / "model_repo", "fashion-mnist")
    return Reproduction(TINY, data, random_split(2), version, networks, tmp_path)


def by_name(scale: Scale) -> dict[str, Architecture]:
    return {architecture.name: architecture for architecture in architectures(scale)}


@pytest.mark.parametrize("scale", [SCALES["small"], SCALES["full"]], ids=["small", "full"])
def test_equal_means_equal(scale: Scale) -> None:
    """Not at `short`, where MSF's second embeddings weigh as much as half a block: PROTOCOL.md says so."""
    every = by_name(scale)
    msf = every[OURS]
    assert every[BASELINE].num_parameters == pytest.approx(msf.num_parameters, rel=0.07)
    assert every["DiT/2, equal depth"].stages[0].depth == max(stage.depth for stage in msf.stages)
    assert every[BASELINE].flops / msf.flops > 3.5


def test_contenders_are_served_as_models_of_one_stage_and_of_two(tmp_path: Path) -> None:
    template = read_version(ROOT / "model_repo", "fashion-mnist").load()
    labels = [str(number) for number in range(10)]
    stages = {}
    for architecture in architectures(TINY):
        name = architecture.folder.lower()
        save_version(tmp_path, name, "1", servable_model(architecture, template), labels)
        config = read_version(tmp_path, name).config
        stages[architecture.name] = [(stage.name, stage.default_num_steps) for stage in config.stages]
    assert stages[OURS] == [("base", 16), ("residual", 4)]
    assert stages[BASELINE] == [("denoise", 20)]


@pytest.mark.parametrize("size", [8, 32])
def test_contenders_with_patches_of_one_have_four_times_the_tokens(size: int) -> None:
    every = with_patches_of_one(contenders(SCALES["full"], size))
    assert [entry.name for entry in every] == [OURS, BASELINE, "MSF/1", BASELINE.replace("/2", "/1")]
    msf, dit, *fine = [[(stage.size // stage.patch_size) ** 2 for stage in entry.stages] for entry in every]
    assert (msf, dit) == ([(size // 4) ** 2] * 2, [(size // 2) ** 2])
    assert fine == [[4 * count for count in counts] for counts in (msf, dit)]


def test_the_mixed_load_offers_its_share_of_what_a_contender_completes() -> None:
    requests = plan_typical(9_000, MIX, num_labels=10, seed=0)
    steps = [(request.kind.num_steps or 0) * request.kind.num_samples for request in requests]
    assert mixed_rate(images_per_s=50.0, share=0.6) * sum(steps) / len(steps) == pytest.approx(0.6 * 50 * 20, rel=0.01)


def test_runs_of_equal_operations_see_as_many_images_as_they_can_afford() -> None:
    every = by_name(TINY)
    spent = {name: architecture.flops * marks(TINY, architecture)["flops"] for name, architecture in every.items()}
    assert spent == pytest.approx(dict.fromkeys(every, spent[BASELINE]), rel=0.25)  # whole batches of 128


def test_stages_that_share_blocks_count_them_once_and_are_trained_together(
    reproduction: Reproduction, tmp_path: Path
) -> None:
    stages = by_name(TINY)[OURS].stages
    deep = tuple(stage.model_copy(update={"depth": 2}) for stage in stages)
    separate, shared = Architecture("separate", deep), Architecture("shared", deep, shares_blocks=True)
    first, second = reproduction.trainer.denoisers(shared, seed=0, num_images=128)
    weights = [*first.blocks.parameters(), *first.labels.parameters()]
    assert separate.num_parameters - shared.num_parameters == sum(each.numel() for each in weights)
    for one, other in zip(weights, [*second.blocks.parameters(), *second.labels.parameters()], strict=True):
        assert torch.equal(one, other)
    again = reproduction.trainer.denoisers(shared, seed=0, num_images=128)
    assert torch.equal(again[1].out.weight, second.out.weight)
    assert not torch.equal(second.out.weight, torch.zeros_like(second.out.weight))


def test_a_full_resolution_residual_completes_the_enlarged_base(reproduction: Reproduction) -> None:
    trainer = reproduction.trainer
    base, residual = trainer.latents.stages
    whole = trainer._compose([base, residual])
    torch.testing.assert_close(trainer._compose([base, trainer.full_resolution.stages[1]]), whole)


@pytest.mark.slow
def test_an_architecture_is_trained_tuned_and_judged_once(
    reproduction: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    msf, dit = (by_name(TINY)[name] for name in (OURS, BASELINE))
    for architecture in (msf, dit):
        reproduction.train(architecture)
    assert "test" not in reproduction.cache.path.read_text()
    results = [reproduction.result(architecture) for architecture in (msf, dit)]
    for result in results:
        assert all(len(by_seed) == 1 for by_seed in (*result.quality.values(), *result.curve.values()))
        assert {quality.num_images for quality in result.quality["flops"]} == {TINY.num_evaluated}
        assert {quality.num_images for quality in result.curve["half"]} == {TINY.num_tuning}

    def fail(*arguments: object) -> None:
        raise AssertionError("trained or sampled again")

    monkeypatch.setattr(LatentTrainer, "images", fail)
    monkeypatch.setattr("bench.reproduction.latent_trainer.Trainer", fail)
    assert reproduction.result(msf) == results[0]
    speeds = {OURS: Speed(8.0, 40.0, 16), BASELINE: Speed(2.0, 8.0, 4)}
    text = write_report(tmp_path / "report", "tiny", TINY, results, speeds)
    assert "5.00 x" in text
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"report.md", "report.svg", "report.json"}


def test_each_choice_is_changed_alone_and_judged_once(
    data: ClassFolders, networks: FeatureNetworks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_version(ROOT / "model_repo", "fashion-mnist").load()
    ablation = Ablation(TINY, data, {True: model, False: model}, networks, tmp_path, num_images=50)
    first, *others = variants(TINY)
    trained = [variant for variant in others if variant.parts != first.parts or not variant.regularised]
    sampled = [variant for variant in others if variant not in trained]
    for variant in sampled:
        assert replace(variant, choice="", name=first.name, sampling=first.sampling) == first
    rows = [first, trained[0], sampled[0]]  # each variant that is trained takes seconds
    text = report(ablation, rows, (0,))
    assert all(variant.name in text for variant in rows)

    def fail(*arguments: object) -> None:
        raise AssertionError("trained or sampled again")

    monkeypatch.setattr(LatentTrainer, "images", fail)
    assert report(ablation, rows, (0,)) == text


def test_the_bound_is_students() -> None:
    """Differences 0, 0.1, 0.2 have mean 0.1 and standard error 0.1 / √3; t(2; 0.95) is 2.920."""
    difference = Difference.of([1.0, 1.1, 1.2], [1.0, 1.0, 1.0])
    assert difference.upper == pytest.approx(0.1 + 2.920 * 0.1 / 3**0.5)
    assert Difference.of([1.0], [1.0]).upper is None


@pytest.mark.parametrize(
    ("upper", "verdict"), [(-0.01, "better"), (0.05, "no worse"), (0.06, "not shown"), (None, "?")]
)
def test_the_verdict_follows_the_bound(upper: float | None, verdict: str) -> None:
    assert Difference(-0.1, upper).verdict == verdict


def quality(name: str) -> Quality:
    return Quality(name, 100, 0.9, 0.95, {"classifier": 1.5}, {"classifier": 0.8}, {"classifier": 0.7})


def test_figures_are_kept_by_context_phase_name_and_number(tmp_path: Path) -> None:
    measured = []

    def get(phase: str, name: str, num_images: int, model: str = "m") -> Quality:
        def measure() -> Quality:
            measured.append((model, phase, name, num_images))
            return quality(name)

        return ResultsCache(tmp_path / "figures.jsonl", {"model": model}).get(phase, name, num_images, measure)

    assert get("test", "a", 100) == get("test", "a", 100) == quality("a")
    get("tuning", "a", 100)
    get("test", "b", 100)
    get("test", "a", 50)
    get("test", "a", 100, model="other")
    get("test", "b", 100)
    assert len(measured) == len(set(measured)) == 5


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    for name in ("a", "b"):
        ResultsCache(path, {}).get("test", name, 100, lambda name=name: quality(name))  # type: ignore[misc]
    text = path.read_text()[:-20]
    path.write_text(text)
    measured = []
    for name in ("a", "b", "b"):
        cache = ResultsCache(path, {})
        assert cache.get("test", name, 100, lambda name=name: measured.append(name) or quality(name)).name == name  # type: ignore[func-returns-value, misc]
    assert measured == ["b"]
    assert path.read_text().startswith(text + "\n")  # appended: what the file holds is never rewritten


def test_weights_of_other_data_are_not_reused(data: ClassFolders, tmp_path: Path) -> None:
    model = read_version(ROOT / "model_repo", "fashion-mnist").load()
    trainers = [
        LatentTrainer(model, split, 50, tmp_path)
        for split in (data.train, data.train, data.held_out, Split(data.train.images, data.train.labels.flip(0)))
    ]
    same, again, *others = [trainer._data_digest for trainer in trainers]
    assert same == again
    assert len({same, *others}) == 3
