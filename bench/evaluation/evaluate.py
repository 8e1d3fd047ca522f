"""How good a model's images are, and which setting to serve it with.

    python -m bench.evaluation.evaluate --model-repo model_repo --model fashion-mnist \
        --data data --out runs/evaluation

trains the feature networks (once), compares settings on held-out training images, and reports the best of
them, once, on the test images. What is finished is not repeated when it is run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from bench.evaluation.comparison import Describe, Figures, Reference, balanced
from bench.evaluation.engine_sampler import BUCKET, load_sampler
from bench.evaluation.feature_networks import train_networks
from bench.evaluation.quality_targets import choose, judge
from bench.evaluation.report import Result, markdown, save_grid
from bench.evaluation.results_cache import Journal
from msf_engine.backends import BACKENDS
from msf_engine.errors import EngineError
from msf_engine.repository import read_version
from msf_training.data import LABELS, FashionMnist, Split, load_fashion_mnist
from msf_training.sampler import (
    ImageSampler,
    Samples,
    Setting,
    decode_base,
    encode_base,
    generate,
    reconstruct,
)

logger = logging.getLogger(__name__)

SETTINGS = ("8+8@1", "8+8@1.25", "8+8@1.4", "12+12@1.25", "16+16@1.25", "18+18@1.25")
GRID_COLUMNS = 12
MIN_IMAGES = 100  # ten of each class


@dataclass(frozen=True)
class Evaluation:
    """Measures image sets and writes each set's figures to the journal, or finds them there."""

    sampler: ImageSampler
    describe: Describe
    journal: Journal
    seed: int = 0

    def sweep(self, held_out: Split, settings: Sequence[Setting], num_images: int) -> list[Figures]:
        """Real images, unpaired reconstructions, then each setting against `num_images` held-out images."""
        reference = Reference(self.describe, balanced(held_out, num_images))
        rows = self._real_rows("sweep", reference, balanced(held_out, num_images, skip=num_images))
        missing = [s for s in settings if self.journal.find("sweep", str(s), num_images) is None]
        progress = _Progress("sweep", num_images * sum(setting.num_evaluations for setting in missing))
        for setting in settings:

            def made(setting: Setting = setting) -> _ImageSet:
                samples = self._generate(setting, _labels_asked(num_images), progress)
                return _ImageSet.of(samples, _labels_asked(num_images))

            rows.append(self._figures("sweep", str(setting), reference, made))
        return rows

    def report(self, test: Split, unseen: Split, setting: Setting, num_images: int) -> list[Figures]:
        """Unseen real images, their reconstructions, the setting, and the setting less one stage."""
        reference, other = Reference(self.describe, balanced(test, num_images)), balanced(unseen, num_images)
        labels = _labels_asked(num_images)
        progress = _Progress("report", num_images * (setting.num_evaluations + setting.num_residual_evaluations))

        @cache
        def samples() -> Samples:
            return self._generate(setting, labels, progress)

        def residual_zeroed() -> _ImageSet:
            return _ImageSet(decode_base(self.sampler, samples().base), labels)

        def real_base() -> _ImageSet:
            base = encode_base(self.sampler, other.images)
            return _ImageSet(self._generate(setting, other.labels, progress, base).images, other.labels)

        return [
            *self._real_rows("report", reference, other),
            self._figures("report", f"{setting}", reference, lambda: _ImageSet.of(samples(), labels)),
            self._figures("report", f"{setting}, residual zeroed", reference, residual_zeroed),
            self._figures("report", f"{setting}, real base", reference, real_base),
        ]

    def grid(self, setting: Setting) -> Tensor:
        """GRID_COLUMNS images of each class: (N, 1, 32, 32) uint8, class by class."""
        labels = torch.arange(len(LABELS)).repeat_interleave(GRID_COLUMNS)
        return generate(self.sampler, labels, setting, seed=self.seed, on_images=lambda _: None).images

    def _real_rows(self, phase: str, reference: Reference, other: Split) -> list[Figures]:
        return [
            self._figures(phase, "real", reference, lambda: _ImageSet(other.images, other.labels)),
            self._figures(
                phase,
                "reconstructions",
                reference,
                lambda: _ImageSet(reconstruct(self.sampler, other.images), other.labels),
            ),
        ]

    def _generate(self, setting: Setting, labels: Tensor, progress: _Progress, base: Tensor | None = None) -> Samples:
        cost = setting.num_evaluations if base is None else setting.num_residual_evaluations
        return generate(
            self.sampler,
            labels,
            setting,
            seed=self.seed,
            on_images=lambda num_images: progress.advance(str(setting), cost * num_images),
            base=base,
        )

    def _figures(self, phase: str, name: str, reference: Reference, make: Callable[[], _ImageSet]) -> Figures:
        found = self.journal.find(phase, name, len(reference.real))
        if found is None:
            made = make()
            found = reference.compare(name, made.images, made.labels, made.images_per_s)
            self.journal.add(phase, found)
        logger.info("%s: %s, consistency %.3f, FID %s", phase, name, found.consistency, dict(found.fid))
        return found


@dataclass(frozen=True)
class _ImageSet:
    images: Tensor
    labels: Tensor
    images_per_s: float | None = None

    @classmethod
    def of(cls, samples: Samples, labels: Tensor) -> _ImageSet:
        return cls(samples.images, labels, len(labels) / samples.wall_s)


class _Progress:
    """Logs now and then how much of a phase is done, by network evaluations, and the time left."""

    def __init__(self, phase: str, total: int, every_s: float = 15.0) -> None:
        self.phase = phase
        self.total = total
        self.every_s = every_s
        self.done = 0
        self.started_at = self.told_at = time.monotonic()

    def advance(self, name: str, num_evaluations: int) -> None:
        self.done += num_evaluations
        now = time.monotonic()
        if now - self.told_at > self.every_s:
            self.told_at = now
            left_s = (now - self.started_at) * (self.total / self.done - 1)
            logger.info("%s: %s, %.0f %%, %.1f min left", self.phase, name, 100 * self.done / self.total, left_s / 60)


def evaluate(
    evaluation: Evaluation,
    data: FashionMnist,
    settings: Sequence[Setting],
    *,
    model: str,
    made_by: str,
    sweep_images: int,
    num_images: int,
) -> Result:
    """Choose a setting on the held-out images, then report it on the test images."""
    sweep = evaluation.sweep(data.held_out, settings, sweep_images)
    best, eligible = choose(sweep)
    report = evaluation.report(data.test, data.held_out, Setting.parse(best.name), num_images)
    return Result(model, made_by, best.name, eligible, sweep, report, judge(report))


def _check_count(option: str, count: int, most: int) -> None:
    if not MIN_IMAGES <= count <= most:
        raise ValueError(f"{option} {count}: allowed are {MIN_IMAGES} to {most}")


def _labels_asked(num_images: int) -> Tensor:
    return torch.arange(num_images) % len(LABELS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a model's quality and choose the setting to serve it with.")
    parser.add_argument("--model-repo", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=BACKENDS, default="openvino")
    parser.add_argument("--num-images", type=int, default=10_000, help="reported against the test images")
    parser.add_argument("--sweep-images", type=int, default=2_000, help="for each setting, against held-out images")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="base+residual steps@guidance, by commas")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        settings = list(dict.fromkeys(Setting.parse(text) for text in args.settings.split(",")))
        data = load_fashion_mnist(args.data)
        _check_count("--num-images", args.num_images, len(data.test))
        _check_count("--sweep-images", args.sweep_images, len(data.held_out) // 2)
        version = read_version(args.model_repo, args.model)
        sampler = load_sampler(version, args.backend, args.out / "plans")
    except (ValueError, FileNotFoundError, EngineError) as error:
        parser.error(str(error))
    networks = train_networks(data.train, args.out)
    context = {
        "model": version.digest,
        "networks": networks.fingerprint(),
        "backend": args.backend,
        "seed": args.seed,
    }
    evaluation = Evaluation(sampler, networks.describe, Journal(args.out / "figures.jsonl", context), seed=args.seed)
    result = evaluate(
        evaluation,
        data,
        settings,
        model=f"{version.name} version {version.version}",
        made_by=f"{args.backend} (threads: {torch.get_num_threads()}, batch: {BUCKET})",
        sweep_images=args.sweep_images,
        num_images=args.num_images,
    )
    save_grid(args.out / "samples.png", evaluation.grid(Setting.parse(result.chosen)), num_rows=len(LABELS))
    (args.out / "evaluation.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    (args.out / "evaluation.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
