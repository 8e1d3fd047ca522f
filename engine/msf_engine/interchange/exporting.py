"""`msf export`: models of the repository in the layouts of other projects."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from msf_engine import denoiser as denoiser_module
from msf_engine import factorization, noise, schedule, time_embedding
from msf_engine.config import ModelConfig
from msf_engine.denoiser import Denoiser, TimeEmbedding
from msf_engine.diffusion_process import FlowProcess
from msf_engine.errors import ModelRepositoryError
from msf_engine.export import export_onnx
from msf_engine.interchange.checkpoint import WEIGHTS_NAME
from msf_engine.model import DecodeModule
from msf_engine.options import ExportFormat
from msf_engine.plan import PlanSpec, stage_inputs
from msf_engine.repository import ModelVersion
from msf_engine.sampling import latent_shape
from msf_scheduler.stage import Stage

_FILES = Path(__file__).parent / "diffusers_files"
_COMPONENTS = ("base", "residual")  # names of the denoisers in the pipeline, by stage


def export_model(version: ModelVersion, target: ExportFormat, out: Path) -> Path:
    """Write the model into the folder `out`, which appears when all is written. Raises EngineError."""
    if out.exists():
        raise ModelRepositoryError(f"{out} exists; wanted: the name of a new folder")
    write = _WRITERS[target]
    hidden = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write(version, hidden)
        hidden.chmod(0o755)
        hidden.rename(out)
    except BaseException:
        shutil.rmtree(hidden)
        raise
    return out


def _write_diffusers(version: ModelVersion, folder: Path) -> None:
    """Write a pipeline that diffusers loads without this package."""
    config = version.config
    if not isinstance(config.process, FlowProcess):
        raise ModelRepositoryError(f"{version} has a {config.process.kind} process; the format needs: flow")
    model = version.load()
    _copy_modules(folder, _FILES / "pipeline.py", factorization, noise, schedule)
    index: dict[str, Any] = {"_class_name": ["pipeline", "MsfPipeline"], "vae": ["diffusers", "AutoencoderKL"]}
    model.autoencoder.kl.save_pretrained(folder / "vae", safe_serialization=True)
    index |= {component: [None, None] for component in _COMPONENTS}
    for component, stage in zip(_COMPONENTS, config.stages, strict=False):
        index[component] = ["msf_denoiser", "MsfDenoiser"]
        _write_denoiser(folder / component, model.denoiser(stage.name), is_flow_map=config.is_flow_map)
    index["settings"] = _settings(config, version.labels)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n")


def _write_denoiser(folder: Path, denoiser: Denoiser, *, is_flow_map: bool) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    shape: Any = denoiser.config
    fields = {**shape.model_dump(), "time": shape.time.model_dump(), "variant": shape.variant.model_dump()}
    content = {"_class_name": "MsfDenoiser", "denoiser": fields, "is_flow_map": is_flow_map}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    weights = {f"network.{name}": tensor.contiguous() for name, tensor in denoiser.state_dict().items()}
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    _copy_modules(folder, _FILES / "msf_denoiser.py", denoiser_module, time_embedding)


def _copy_modules(folder: Path, main: Path, *modules: ModuleType) -> None:
    """Write modules side by side, with imports of each other: diffusers allows no packages."""
    for file in (main, *(Path(inspect.getfile(module)) for module in modules)):
        (folder / file.name).write_text(
            re.sub(r"^from msf_engine\.(\w+) import", r"from .\1 import", file.read_text(), flags=re.M)
        )


def _settings(config: ModelConfig, labels: tuple[str, ...]) -> dict[str, Any]:
    process, sampling = config.process, config.sampling
    assert isinstance(process, FlowProcess)
    return {
        "labels": list(labels),
        "patch_size": config.autoencoder.patch_size,
        "shift": process.shift,
        "data_at": process.data_at,
        "solver": sampling.solver,
        "default_guidance_scale": sampling.default_guidance_scale,
        "max_guidance_scale": sampling.max_guidance_scale,
        "stages": [
            {
                "shape": latent_shape(config, stage.name),
                "mean": stage.statistics.mean,
                "std": stage.statistics.std,
                "default_num_steps": stage.default_num_steps,
                "conditioning_noise": stage.conditioning_noise,
                "guidance": stage.guidance.model_dump(),
            }
            for stage in config.stages
        ],
    }


class _NamedTimes(nn.Module):
    """A time embedding as a function of those of its inputs that it has."""

    def __init__(self, embedding: TimeEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, *times: Tensor) -> Tensor:
        values = dict(zip(self.embedding.inputs, times, strict=True))
        out: Tensor = self.embedding(
            values["timestep"],
            values.get("cond_level", values["timestep"]),
            values.get("interval"),
            values.get("guidance_scale"),
        )
        return out


class _Pixels(nn.Module):
    """Decoder of latents to pixels, as uint8."""

    def __init__(self, decode: DecodeModule) -> None:
        super().__init__()
        self.decode = decode

    def forward(self, base: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.decode.pixels(base, residual)


def _write_onnx(version: ModelVersion, folder: Path) -> None:
    """Write each network, for any batch, and the time embedding of each denoiser."""
    model, config = version.load(), version.config
    networks: dict[Stage, nn.Module] = {stage: model.denoiser(stage) for stage in config.denoising_stages}
    for stage, network in {**networks, Stage.DECODE: _Pixels(DecodeModule(model)).eval()}.items():
        spec = PlanSpec(str(version), version.network_digest(stage), stage, (1,), stage_inputs(config, stage))
        export_onnx(spec, network, folder / f"{stage}.onnx")


_WRITERS: Mapping[ExportFormat, Callable[[ModelVersion, Path], None]] = {
    "diffusers": _write_diffusers,
    "onnx": _write_onnx,
}
