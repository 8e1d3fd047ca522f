"""Whatever is wrong with a source, `msf import` says so in one line, and the repository stays as it was."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from msf_engine.errors import EngineError
from msf_engine.interchange.importing import ImportOptions, import_model
from msf_engine.options import Layout
from tests.engine.interchange.peers import HEADS, LABELS, State, small_vae, timm_state, write_pipeline, write_state

Damage = Callable[[Path], object]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("dit") / "pipeline")


def tensors(change: Callable[[State], object], file: str = WEIGHTS) -> Damage:
    def apply(folder: Path) -> None:
        state = load_file(folder / file)
        change(state)
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / file)

    return apply


def fields(file: str, **changes: Any) -> Damage:
    def apply(folder: Path) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))

    return apply


def as_pickle(file: str) -> Damage:
    def apply(folder: Path) -> None:
        (folder / file).rename((folder / file).with_suffix(".bin"))

    return apply


def truncated(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)


TRANSFORMER, SCHEDULER, VAE = "transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"
EMBEDDER = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.weight"
PIPELINES: dict[str, tuple[Damage, str]] = {
    "a missing tensor": (
        tensors(lambda state: state.pop("proj_out_1.bias")),
        r"safetensors: tensor proj_out_1\.bias is missing; of those left, it has",
    ),
    "a block less than its config says": (
        fields(TRANSFORMER, num_layers=4),
        r"tensor transformer_blocks\.3\.norm1\.linear\.weight is missing",
    ),
    "a block more than its config says": (
        fields(TRANSFORMER, num_layers=2),
        r"\d+ unknown tensors: transformer_blocks\.2\..* and \d+ more; wanted: the model's alone",
    ),
    "an extra tensor": (
        tensors(lambda state: state.update(stray=torch.ones(1))),
        r"1 unknown tensors: stray; wanted: the model's alone",
    ),
    "a tensor of another shape": (
        tensors(lambda state: state.update({"proj_out_2.weight": torch.ones(32, 63)})),
        r"tensor proj_out_2\.weight has shape \(32, 63\); wanted: \(32, 64\)",
    ),
    "a tensor of whole numbers": (
        tensors(lambda state: state.update({"proj_out_1.bias": torch.ones(128, dtype=torch.int64)})),
        r"tensor proj_out_1\.bias is torch\.int64; wanted: floating-point numbers",
    ),
    "a tensor that is not finite": (
        tensors(lambda state: state["proj_out_1.bias"].fill_(float("nan"))),
        r"tensor proj_out_1\.bias is not finite; wanted: finite numbers",
    ),
    "unequal copies of an embedder": (
        tensors(lambda state: state[EMBEDDER].mul_(1.001)),
        r"tensor transformer_blocks\.2\.norm1\.emb.*differs from that of block 0; wanted: equal copies in all blocks",
    ),
    "a truncated file": (truncated, r"diffusion_pytorch_model\.safetensors is not a whole safetensors file: .+"),
    "an empty file": (lambda folder: (folder / WEIGHTS).write_bytes(b""), r"is not a whole safetensors file: .+"),
    "a pickle": (
        as_pickle(WEIGHTS),
        r"diffusion_pytorch_model\.bin is a pickle, .*; wanted: diffusion_pytorch_model\.safetensors\. Where you trust",
    ),
    "a pickled autoencoder": (as_pickle(VAE_WEIGHTS), r"vae/diffusion_pytorch_model\.bin is a pickle"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"is not a file; wanted: this file"),
    "weights of another variant": (
        lambda folder: (folder / WEIGHTS).rename(folder / WEIGHTS.replace(".safe", ".fp16.safe")),
        r"is not a file; wanted: this file \(the folder has diffusion_pytorch_model\.fp16\.safetensors\)",
    ),
    "another pipeline": (
        fields("model_index.json", _class_name="StableDiffusionPipeline"),
        r"model_index\.json: _class_name is 'StableDiffusionPipeline'; wanted: DiTPipeline",
    ),
    "another network": (
        fields(TRANSFORMER, _class_name="PixArtTransformer2DModel"),
        r"transformer/config\.json: _class_name is 'PixArtTransformer2DModel': Input should be 'DiTTransformer2DModel'",
    ),
    "another activation": (fields(TRANSFORMER, activation_fn="geglu"), r"activation_fn is 'geglu': Input should be"),
    "other widths": (
        fields(TRANSFORMER, attention_head_dim=8),
        r"tensor proj_out_2\.weight has shape \(32, 64\); wanted: \(32, 32\)",
    ),
    "other classes": (
        fields(TRANSFORMER, num_embeds_ada_norm=7),
        r"class_embedder\.embedding_table\.weight has shape \(6, 64\); wanted: \(8, 64\)",
    ),
    "an output of other channels": (fields(TRANSFORMER, out_channels=5), r"out_channels is 5; wanted: 4, or 8 with"),
    "another scheduler": (
        fields(SCHEDULER, _class_name="EulerDiscreteScheduler"),
        r"_class_name is 'EulerDiscreteScheduler': Input should be 'DDIMScheduler'",
    ),
    "a network that predicts velocities": (
        fields(SCHEDULER, prediction_type="v_prediction"),
        r"prediction_type is 'v_p",
    ),
    "a scheduler that clips": (fields(SCHEDULER, clip_sample=True), r"clip_sample is True: Input should be False"),
    "betas above 1": (fields(SCHEDULER, beta_end=2.0), r"does not fit together: process.*beta_end"),
    "a config that is no JSON": (lambda folder: (folder / VAE).write_text("{"), r"vae/config\.json cannot be read: .+"),
    "a config that is a list": (
        lambda folder: (folder / VAE).write_text("[]"),
        r"vae/config\.json holds list; wanted: an",
    ),
    "no scheduler": (
        lambda folder: shutil.rmtree(folder / "scheduler"),
        r"scheduler_config\.json cannot be read: No such",
    ),
    "another autoencoder": (
        fields(VAE, _class_name="AutoencoderDC"),
        r"vae/config\.json: _class_name is 'AutoencoderDC'; wanted: AutoencoderKL",
    ),
    "an autoencoder of unknown blocks": (fields(VAE, down_block_types=["Odd"] * 2), r"describes no AutoencoderKL: .+"),
    "an autoencoder of other widths": (
        fields(VAE, block_out_channels=[8, 16]),
        r"vae/diffusion_pytorch_model\.safetensors: tensor encoder\.\S+ has shape .*; wanted: ",
    ),
    "a scaling factor of 0": (fields(VAE, scaling_factor=0), r"scaling_factor 0, shift_factor .*; wanted: numbers"),
    "an autoencoder of other latents": (
        lambda folder: small_vae(latent_channels=3).save_pretrained(folder / "vae", safe_serialization=True),
        r"does not fit together: .*(denoise\.denoiser\.in_channels is 4; this latent \(3 channels|statistics)",
    ),
    "a name less than classes": (
        fields("model_index.json", id2label={"0": "ant", "1": "bee"}),
        r"id2label of model_index\.json has 2 names; wanted: 5, as the checkpoint has classes",
    ),
    "names that leave out a class": (
        fields("model_index.json", id2label={"0": "ant", "2": "bee"}),
        r"id2label of model_index\.json has no name for class '1'",
    ),
    "no names": (fields("model_index.json", id2label=None), r"has 5 classes without names; wanted: --labels FILE"),
}


def check_refusal(source: Path, tmp_path: Path, options: ImportOptions, message: str) -> None:
    repository = tmp_path / "repo"
    (repository / "other").mkdir(parents=True)
    with pytest.raises(EngineError) as raised:
        import_model(source, repository, "dit", options)
    text = str(raised.value)
    assert re.search(message, text), text
    assert "\n" not in text.strip()
    assert [file.name for file in repository.rglob("*")] == ["other"]


@pytest.mark.parametrize("case", PIPELINES)
def test_a_damaged_pipeline_is_refused(case: str, whole: Path, tmp_path: Path) -> None:
    damage, message = PIPELINES[case]
    shutil.copytree(whole, tmp_path / "source")
    damage(tmp_path / "source")
    check_refusal(tmp_path / "source", tmp_path, ImportOptions(), message)


class _Harmful:
    """Would create a file if it was unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def truncated_file_of_torch(file: Path) -> None:
    torch.save(timm_state(), file)
    os.truncate(file, file.stat().st_size // 2)


FILES: dict[str, tuple[str, Layout | None, Callable[[Path], object], str]] = {
    "no layout": ("a.safetensors", None, lambda file: write_state(file, timm_state()), "wanted: --layout dit | sit"),
    "another project": (
        "a.safetensors",
        "sit",
        lambda file: write_state(file, {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(3)}),
        r"tensor x_embedder\.proj\.weight is missing; of those left, it has model\.diffusion_model",
    ),
    "projectors of REPA in a SiT": (
        "a.safetensors",
        "sit",
        lambda file: write_state(file, timm_state(projectors=True)),
        r"2 unknown tensors: projectors\.0\.0\.bias, projectors\.0\.0\.weight",
    ),
    "a learned variance in REPA": (
        "a.safetensors",
        "repa",
        lambda file: write_state(file, timm_state()),
        r"tensor final_layer\.linear\.weight is for 8 channels; wanted by layout repa: 4",
    ),
    "blocks of LightningDiT in a SiT": (
        "a.safetensors",
        "sit",
        lambda file: write_state(file, timm_state(lightning=True)),
        r"its blocks have RMS norms, gated MLPs or rotations; wanted: --layout lightningdit",
    ),
    "rotations of other angles": (
        "a.safetensors",
        "lightningdit",
        lambda file: write_state(file, timm_state(lightning=True) | {"feat_rope.freqs_cos": torch.ones(16, 16)}),
        r"tensor feat_rope\.freqs_cos has other angles",
    ),
    "positions of no square": (
        "a.safetensors",
        "sit",
        lambda file: write_state(file, timm_state() | {"pos_embed": torch.ones(1, 15, 64)}),
        r"tensor pos_embed has 15 positions; wanted: a square",
    ),
    "a tensor of other dimensions": (
        "a.safetensors",
        "sit",
        lambda file: write_state(file, timm_state() | {"pos_embed": torch.ones(16, 64)}),
        r"tensor pos_embed has shape \(16, 64\); wanted: 3 dimensions",
    ),
    "a file of unknown type": (
        "a.npz",
        "sit",
        lambda file: file.touch(),
        r"files of type '\.npz' are not read; allowed: ",
    ),
    "a .bin": ("a.bin", "sit", lambda file: file.touch(), r"a\.bin is a pickle, which can run any code"),
    "a pickle that runs code": (
        "a.pt",
        "sit",
        lambda file: torch.save({"model": _Harmful(file.parent / "harmed")}, file),
        r"a\.pt holds more than tensors, or is damaged; wanted: tensors alone: ",
    ),
    "a plain pickle": (
        "a.pt",
        "sit",
        lambda file: file.write_bytes(pickle.dumps(_Harmful(file.parent / "harmed"))),
        r"a\.pt (holds more than tensors|is not a whole file of torch)",
    ),
    "a truncated file of torch": (
        "a.pt",
        "sit",
        truncated_file_of_torch,
        r"a\.pt is not a whole file of torch: .+",
    ),
    "an empty file of torch": ("a.pt", "sit", lambda file: file.touch(), r"a\.pt is not a whole file of torch: .+"),
    "a list of tensors": ("a.pt", "sit", lambda file: torch.save([torch.ones(1)], file), r"a\.pt holds list; wanted: "),
    "settings without tensors": (
        "a.pt",
        "sit",
        lambda file: torch.save({"lr": 1}, file),
        r"a\.pt: lr is int; wanted: a t",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_refused(case: str, whole: Path, tmp_path: Path) -> None:
    name, layout, write, message = FILES[case]
    write(tmp_path / name)
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    options = ImportOptions(whole / "vae", layout, tmp_path / "labels.json", HEADS)
    check_refusal(tmp_path / name, tmp_path, options, message)
    assert not (tmp_path / "harmed").exists()


LABEL_FILES = {
    "too few": ("labels.json", '["a", "b"]', r"has 2 names; wanted: 5, as the checkpoint has classes"),
    "twice the same": ("labels.txt", "a\na\nb\nc\nd", r"has the name 'a' more than once; wanted: distinct names"),
    "an object": ("labels.json", '{"a": 1}', r"is no list of names; wanted: a JSON list, or one name on each line"),
    "no JSON": ("labels.json", "[", r"labels\.json cannot be read: .+"),
    "a blank name": ("labels.txt", "a\n\nb\nc\nd", r"is no list of names"),
}


@pytest.mark.parametrize("case", LABEL_FILES)
def test_labels_that_do_not_fit_are_refused(case: str, whole: Path, tmp_path: Path) -> None:
    name, text, message = LABEL_FILES[case]
    (tmp_path / name).write_text(text)
    check_refusal(whole, tmp_path, ImportOptions(labels=tmp_path / name), message)


def test_the_number_of_heads_is_asked_for_where_the_width_does_not_tell(whole: Path, tmp_path: Path) -> None:
    file = write_state(tmp_path / "sit.safetensors", timm_state())
    check_refusal(
        file, tmp_path, ImportOptions(whole / "vae", "sit"), r"width 64 is none of 384, .*; wanted: --num-heads"
    )


def test_a_file_needs_an_autoencoder(tmp_path: Path) -> None:
    file = write_state(tmp_path / "sit.safetensors", timm_state())
    check_refusal(file, tmp_path, ImportOptions(layout="sit"), r"has no autoencoder; wanted: --vae FOLDER")


def test_an_autoencoder_alone_is_no_model(whole: Path, tmp_path: Path) -> None:
    check_refusal(
        whole / "vae", tmp_path, ImportOptions(), r"holds AutoencoderKL; wanted: a DiTPipeline folder \(an Auto"
    )


def test_an_existing_model_is_never_overwritten(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "dit").mkdir()
    with pytest.raises(EngineError, match="exists; wanted: another --name"):
        import_model(whole, tmp_path, "dit", ImportOptions())
    with pytest.raises(EngineError, match="Invalid --name 'D/T'"):
        import_model(whole, tmp_path, "D/T", ImportOptions())


def test_an_import_that_fails_while_it_writes_leaves_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        import_model(whole, tmp_path / "repo", "dit", ImportOptions())
    assert list((tmp_path / "repo").iterdir()) == []
