"""An evaluation with a sampler whose quality is known: what it measures, chooses, remembers and prints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.evaluation.comparison import Figures, Reference, balanced
from bench.evaluation.evaluate import Evaluation, evaluate
from bench.evaluation.feature_networks import Described
from bench.evaluation.quality_targets import choose, judge
from bench.evaluation.report import Result, markdown, save_grid, table
from bench.evaluation.results_cache import Journal
from msf_training.data import FashionMnist, Split
from msf_training.sampler import CHUNK_SIZE, Setting, generate

NETWORKS = ("classifier", "self-supervised")


def describe(images: Tensor) -> Described:
    """A toy pair of networks: the class is the brightness by tens; features are coarse pixels."""
    pixels = images.double()
    coarse = torch.nn.functional.avg_pool2d(pixels, 16).flatten(1)
    return Described(
        classes=(pixels.mean((1, 2, 3)) / 20).round().long().clamp(0, 9),
        features={"classifier": coarse, "self-supervised": coarse.flip(1) * 3 + 5},
    )


def toy_images(labels: Tensor, seed: int, noise: float = 4.0) -> Tensor:
    """Flat images whose brightness tells the class."""
    jitter = noise * torch.randn(len(labels), 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    corners = (20 * labels.view(-1, 1, 1, 1) + jitter).clamp(0, 255)
    return torch.nn.functional.interpolate(corners, size=32).to(torch.uint8)


def toy_split(num_images: int, seed: int) -> Split:
    labels = torch.randint(10, (num_images,), generator=torch.Generator().manual_seed(seed))
    return Split(images=toy_images(labels, seed), labels=labels)


class FakeSampler:
    """Bases are coarse images, residuals their detail; more steps are better, and guidance 9 ignores the label."""

    def __init__(self) -> None:
        self.num_images_made = 0

    def base(self, labels: Tensor, *, num_steps: int, guidance_scale: float, seed: int) -> Tensor:
        self.num_images_made += len(labels)
        wanted = (labels + 1) % 10 if guidance_scale == 9 else labels
        return toy_images(wanted, seed, noise=4.0 + 32.0 / num_steps)[:, :, ::16, ::16].float()

    def residual(self, base: Tensor, labels: Tensor, *, num_steps: int, guidance_scale: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(len(labels), 3, 2, 2, generator=generator) / num_steps

    def decode(self, base: Tensor, residual: Tensor | None) -> Tensor:
        dimmed = base - 15 if residual is None else base + residual.mean(1, keepdim=True)
        return torch.nn.functional.interpolate(dimmed.clamp(0, 255), size=32).to(torch.uint8)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        base = images[:, :, ::16, ::16].float()
        return base + 1, torch.zeros(len(images), 3, 2, 2)


@pytest.fixture
def data() -> FashionMnist:
    return FashionMnist(train=toy_split(10, 0), held_out=toy_split(1000, 1), test=toy_split(1000, 2))


def evaluation(tmp_path: Path, sampler: FakeSampler, model: str = "m") -> Evaluation:
    return Evaluation(sampler, describe, Journal(tmp_path / "figures.jsonl", {"model": model}))


def run(tmp_path: Path, data: FashionMnist, settings: list[Setting], sampler: FakeSampler | None = None) -> Result:
    return evaluate(
        evaluation(tmp_path, sampler or FakeSampler()),
        data,
        settings,
        model="toy 1",
        made_by="hand",
        sweep_images=300,
        num_images=600,
    )


SETTINGS = [Setting.parse(text) for text in ("1+1@1", "64+4@1", "64+4@9")]


def figures(name: str, fid: float, recall: float = 0.9, consistency: float = 0.9) -> Figures:
    return Figures(
        name=name,
        num_images=100,
        consistency=consistency,
        fid=dict.fromkeys(NETWORKS, fid),
        intra_class_fid=dict.fromkeys(NETWORKS, fid),
        precision=dict.fromkeys(NETWORKS, 0.9),
        recall=dict.fromkeys(NETWORKS, recall),
    )


def test_the_best_setting_is_chosen_and_reported(tmp_path: Path, data: FashionMnist) -> None:
    result = run(tmp_path, data, SETTINGS)
    assert result.chosen == "64+4@1"
    assert result.eligible
    assert [row.name for row in result.sweep] == ["real", "reconstructions", "1+1@1", "64+4@1", "64+4@9"]
    assert [row.name for row in result.report] == [
        "real",
        "reconstructions",
        "64+4@1",
        "64+4@1, residual zeroed",
        "64+4@1, real base",
    ]
    real, _, chosen, zeroed, _ = result.report
    assert {row.num_images for row in result.report} == {600}
    assert real.consistency > 0.95
    assert chosen.consistency > 0.95
    assert zeroed.fid["classifier"] > 2 * chosen.fid["classifier"]
    assert chosen.images_per_s is not None
    assert result.sweep[-1].consistency < 0.1  # guidance 9 draws the wrong class


def test_a_second_run_generates_nothing(tmp_path: Path, data: FashionMnist) -> None:
    first = run(tmp_path, data, SETTINGS)
    sampler = FakeSampler()
    again = run(tmp_path, data, SETTINGS, sampler)
    assert again == first
    assert sampler.num_images_made == 0


def test_a_killed_run_goes_on_after_its_last_whole_line(tmp_path: Path, data: FashionMnist) -> None:
    evaluation(tmp_path, FakeSampler()).sweep(data.held_out, SETTINGS[:2], 300)
    path = tmp_path / "figures.jsonl"
    path.write_text(path.read_text()[:-20])  # the last setting's line was cut short
    sampler = FakeSampler()
    evaluation(tmp_path, sampler).sweep(data.held_out, SETTINGS, 300)
    assert sampler.num_images_made == 2 * 300
    sampler = FakeSampler()
    evaluation(tmp_path, sampler).sweep(data.held_out, SETTINGS, 300)
    assert sampler.num_images_made == 0


def test_figures_of_another_model_do_not_count(tmp_path: Path, data: FashionMnist) -> None:
    evaluation(tmp_path, FakeSampler()).sweep(data.held_out, SETTINGS, 300)
    sampler = FakeSampler()
    evaluation(tmp_path, sampler, model="other").sweep(data.held_out, SETTINGS, 300)
    assert sampler.num_images_made == 3 * 300


def test_choice_prefers_low_fid_within_the_limits() -> None:
    real, reconstructions = figures("real", 1), figures("reconstructions", 2)
    rows = [
        real,
        reconstructions,
        figures("1+1@1", 4),
        figures("2+1@1", 3),
        figures("3+1@1", 2, recall=0.7),
        figures("4+1@1", 2, consistency=0.87),
    ]
    assert choose(rows) == (rows[3], True)
    assert choose([*rows[:2], *rows[4:]]) == (rows[4], False)


def test_choice_weighs_both_networks_alike_whatever_their_scale() -> None:
    reconstructions = replace(figures("reconstructions", 1), fid={"classifier": 1, "self-supervised": 100})
    a = replace(figures("1+1@1", 1), fid={"classifier": 1.1, "self-supervised": 200})
    b = replace(figures("2+1@1", 1), fid={"classifier": 3.0, "self-supervised": 150})
    assert choose([figures("real", 1), reconstructions, a, b])[0] is a


def test_aims_say_what_was_missed() -> None:
    real, reconstructions = figures("real", 1), figures("reconstructions", 2)
    good = [real, reconstructions, figures("g", 5), figures("zeroed", 9), figures("real base", 3)]
    assert [aim.met for aim in judge(good)] == [True] * 4
    bad = figures("g", 7, recall=0.6, consistency=0.87)
    aims = judge([real, reconstructions, bad, figures("zeroed", 6), figures("real base", 3)])
    assert [aim.met for aim in aims] == [False] * 4
    assert aims[0].found == "3.50 / 3.50 ×"


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("16+4@1.5", Setting(16, 4, 1.5, 1.5)),
        ("16+4@1.5/1", Setting(16, 4, 1.5, 1.0)),
        ("8+2@0", Setting(8, 2, 0.0, 0.0)),
    ],
)
def test_settings_are_read_and_written(text: str, setting: Setting) -> None:
    assert Setting.parse(text) == setting
    assert str(setting) == text


@pytest.mark.parametrize("text", ["16@1.5", "16+4", "16+4@", "16+4@x", "0+4@1", "16+0@1", "-1+4@1", ""])
def test_a_malformed_setting_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="setting "):
        Setting.parse(text)


def test_guided_steps_cost_two_evaluations() -> None:
    assert Setting(16, 4, 1.0, 1.0).num_evaluations == 20
    assert Setting(16, 4, 1.5, 1.0).num_evaluations == 36
    assert Setting(16, 4, 1.5, 1.5).num_evaluations == 40


def test_chunks_get_seeds_of_their_own() -> None:
    labels = torch.zeros(CHUNK_SIZE + 5, dtype=torch.int64) + 5
    heard: list[int] = []
    samples = generate(FakeSampler(), labels, SETTINGS[0], seed=0, on_images=heard.append)
    assert heard == [CHUNK_SIZE, 5]
    assert samples.images.shape == (CHUNK_SIZE + 5, 1, 32, 32)
    assert not torch.equal(samples.base[:5], samples.base[CHUNK_SIZE:])


def test_a_balanced_subset_goes_round_the_classes_without_repeating_images() -> None:
    split = Split(images=torch.arange(60).view(60, 1, 1, 1).to(torch.uint8), labels=torch.arange(60) % 3)
    first, second = balanced(split, 9), balanced(split, 9, skip=9)
    assert first.labels.tolist() == [0, 1, 2] * 3
    assert second.labels.tolist() == [0, 1, 2] * 3
    assert not set(first.images.flatten().tolist()) & set(second.images.flatten().tolist())
    assert first.labels.tolist() == (first.images.flatten() % 3).tolist()
    with pytest.raises(ValueError, match="61 images were asked for; there are only 60"):
        balanced(split, 61)


def test_only_equal_numbers_of_images_are_compared() -> None:
    split = toy_split(50, 0)
    with pytest.raises(ValueError, match="generated: 40 images against 50"):
        Reference(describe, split).compare("generated", split.images[:40], split.labels[:40])


def test_the_report_names_the_choice_and_its_aims(tmp_path: Path, data: FashionMnist) -> None:
    result = run(tmp_path, data, SETTINGS)
    text = markdown(result)
    assert text.startswith("# Evaluation of toy 1\n")
    assert "Chosen: **64+4@1**" in text
    assert "classifier / self-supervised" in text
    assert "on 600 test images" in text
    assert "Images made by hand." in text
    lines = [line for line in text.splitlines() if line.startswith("| 64+4@1, residual zeroed")]
    assert len(lines) == 1


def test_a_choice_outside_the_limits_is_owned_up_to(tmp_path: Path, data: FashionMnist) -> None:
    result = run(tmp_path, data, SETTINGS[2:])
    assert not result.eligible
    assert "No setting kept to the limits" in markdown(result)


def test_tables_align() -> None:
    assert table(("images", "FID"), [("a", "1.5"), ("longer name", "10.25")]) == (
        "| images      |   FID |\n"
        "| :---------- | ----: |\n"
        "| a           |   1.5 |\n"
        "| longer name | 10.25 |"
    )  # fmt: skip


def test_the_grid_has_a_row_for_each_class(tmp_path: Path) -> None:
    images = (torch.arange(6) * 40).view(6, 1, 1, 1).expand(6, 1, 8, 8).to(torch.uint8)
    save_grid(tmp_path / "new" / "grid.png", images, num_rows=2, scale=2)
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        assert picture.size == (48, 32)
        assert [picture.getpixel((x, 5)) for x in (0, 20, 40)] == [0, 40, 80]
        assert picture.getpixel((0, 20)) == 120
