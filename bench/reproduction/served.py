"""Images per second of MSF/2 and the DiTs through the server, at saturation.

    python -m bench.reproduction.served --scale seeds

writes a model version of each contender, with random denoisers (speed does not depend on the weights), serves all of
them with the settings of the environment, and measures them in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from statistics import median

from bench.evaluation.report import markdown_table
from bench.local_stack import local_service
from bench.reproduction.architectures import BASELINE, NUM_CLASSES, SCALES, Architecture, architectures, sampling_of
from bench.service.speed import saturated_rate
from msf_engine.config import LatentStatistics, ModelConfig, SamplingConfig, StageConfig
from msf_engine.model import MsfModel
from msf_engine.repository import read_version, save_version
from msf_scheduler.stage import Stage

GUIDANCE_SCALE = 1.5
STAGE_NAMES: dict[int, tuple[Stage, ...]] = {1: (Stage.DENOISE,), 2: (Stage.BASE, Stage.RESIDUAL)}


def servable_model(architecture: Architecture, template: MsfModel) -> MsfModel:
    """Return a model with random denoisers of the architecture and the template's autoencoder."""
    sampling = sampling_of(architecture, GUIDANCE_SCALE)
    stages = tuple(
        StageConfig(
            name=name,
            denoiser=denoiser,
            statistics=LatentStatistics(mean=(0.0,) * denoiser.in_channels, std=(1.0,) * denoiser.in_channels),
            default_num_steps=num_steps,
            conditioning_noise=sampling.conditioning_noise if denoiser.cond_channels else 0.0,
        )
        for name, denoiser, num_steps in zip(
            STAGE_NAMES[len(architecture.stages)], architecture.stages, sampling.steps, strict=True
        )
    )
    config = ModelConfig(
        image=template.config.image,
        autoencoder=template.config.autoencoder,
        stages=stages,
        sampling=SamplingConfig(solver=sampling.solver, default_guidance_scale=GUIDANCE_SCALE),
    )
    model = MsfModel(config)
    model.autoencoder.load_state_dict(template.autoencoder.state_dict())
    return model.eval()


def measure(url: str, names: list[str], num_rounds: int, num_requests: int, num_clients: int) -> dict[str, list[float]]:
    """Return images per second of each model by round; a round before the first warms up."""
    rates: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(num_rounds + 1):
        for name in names:
            rate = asyncio.run(saturated_rate(url, num_requests, num_clients, name))
            if round_number:
                rates[name].append(rate)
    return rates


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Serve MSF/2 and the DiTs, and measure images per second.")
    parser.add_argument("--scale", choices=SCALES, default="seeds")
    parser.add_argument("--model-repo", type=Path, default=Path("model_repo"), help="repository of the autoencoder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=500, help="images per model and round (default: 500)")
    parser.add_argument("--clients", type=int, default=64, help="requests in flight (default: 64)")
    arguments = parser.parse_args()
    template = read_version(arguments.model_repo, "fashion-mnist").load()
    labels = tuple(str(number) for number in range(NUM_CLASSES))
    every = architectures(SCALES[arguments.scale])
    names = [entry.folder.lower() for entry in every]
    with tempfile.TemporaryDirectory(prefix="msf-") as name:
        folder = Path(name)
        for entry, model_name in zip(every, names, strict=True):
            save_version(folder / "models", model_name, "1", servable_model(entry, template), labels)
        with local_service(folder, MSF_MODEL_REPO=str(folder / "models")) as service:
            rates = measure(service.url, names, arguments.rounds, arguments.requests, arguments.clients)
    baseline = rates[next(name for entry, name in zip(every, names, strict=True) if entry.name == BASELINE)]
    rows = []
    for entry, model_name in zip(every, names, strict=True):
        ratios = [one / other for one, other in zip(rates[model_name], baseline, strict=True)]
        rows.append((entry.name, f"{median(rates[model_name]):.1f}", f"{median(ratios):.2f} x"))
    print(markdown_table(("", "images/s", f"ratio to {BASELINE}"), rows))


if __name__ == "__main__":
    main()
