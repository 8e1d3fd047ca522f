"""Damage to model versions, by name, as copies under way, bad disks and typing errors leave it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], object]  # of a version's folder


def _weights(name: str, value: float) -> Damage:
    """Overwrite a tensor of the base's denoiser, with a right checksum."""

    def apply(folder: Path) -> None:
        file = folder / "base.safetensors"
        weights = load_file(file)
        weights[name].fill_(value)
        save_file(weights, file)
        sign(folder)

    return apply


def _config(change: Callable[[dict[str, Any]], object] = lambda config: None, text: str = "") -> Damage:
    """Give the version a config of its own, which differs from the model's."""

    def apply(folder: Path) -> None:
        config = json.loads((folder.parent / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(text or json.dumps(config))

    return apply


def _replaced(name: str, put: Callable[[Path], object]) -> Damage:
    """Put something else in the place of a file."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        put(folder / name)

    return apply


def _contents(name: str, content: bytes, *, signed: bool = False) -> Damage:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)
        if signed:
            sign(folder)

    return apply


def _of_another_shape(folder: Path) -> None:
    weights = {name: torch.zeros(7) for name in load_file(folder / "residual.safetensors")}
    save_file(weights, folder / "residual.safetensors")
    sign(folder)


def _half_copied(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != "autoencoder.safetensors":
            file.unlink()


def _truncated(folder: Path) -> None:
    file = folder / "residual.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def sign(folder: Path) -> None:
    """Write the checksums of the weights as they are."""
    files = sorted(folder.glob("*.safetensors"))
    lines = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (folder / "SHA256SUMS").write_text("".join(lines))


def _deep(config: dict[str, Any]) -> None:
    config["autoencoder"]["kl"]["x"] = json.loads("[" * 500 + "]" * 500)


IN_FILES: Mapping[str, Damage] = {
    "an empty folder": _emptied,
    "a copy under way": _half_copied,
    "a truncated file": _truncated,
    "an empty file": _contents("base.safetensors", b""),
    "no checksums": lambda folder: (folder / "SHA256SUMS").unlink(),
    "checksums that are no text": _contents("SHA256SUMS", bytes(range(256)) * 8),
    "a checksum of an impossible name": lambda folder: (folder / "SHA256SUMS").write_text(
        (folder / "SHA256SUMS").read_text() + "00  a\0b\n"
    ),
    "a missing file": lambda folder: (folder / "residual.safetensors").unlink(),
    "a folder in the place of a file": _replaced("base.safetensors", Path.mkdir),
    "a pipe in the place of a file": _replaced("base.safetensors", os.mkfifo),
    "a pipe in the place of the checksums": _replaced("SHA256SUMS", os.mkfifo),
    "an endless device": _replaced("SHA256SUMS", lambda file: file.symlink_to("/dev/zero")),
    "a link that leads nowhere": _replaced("base.safetensors", lambda file: file.symlink_to("nowhere")),
    "a link to itself": _replaced("base.safetensors", lambda file: file.symlink_to(file.name)),
    "a config that is no JSON": _config(text="{"),
    "an empty config": _config(text="{}"),
    "a config that is no object": _config(text="[]"),
    "a config with NaN": _config(lambda config: config["sampling"].update(default_guidance_scale=float("nan"))),
    "a config without channels": _config(lambda config: config["autoencoder"]["kl"].pop("latent_channels")),
    "a config with a channel of text": _config(
        lambda config: config["autoencoder"]["kl"].update(block_out_channels="many")
    ),
    "a config of another size": _config(lambda config: config["stages"][0]["denoiser"].update(size=4)),
    "a config of an impossible size": _config(lambda config: config["image"].update(size=2**40)),
    "a pipe in the place of the config": lambda folder: os.mkfifo(folder / "config.json"),
}
IN_WEIGHTS: Mapping[str, Damage] = {  # with right checksums
    "weights that are no safetensors": _contents("base.safetensors", b"PK" + bytes(1000), signed=True),
    "a header longer than the file": _contents("base.safetensors", b"\xff" * 7 + b"\x00" + b"{}", signed=True),
    "a NaN": _weights("out.bias", float("nan")),
    "an infinity": _weights("out.bias", float("inf")),
    "weights that overflow": _weights("out.weight", 3e38),
    "weights of another shape": _of_another_shape,
    "an autoencoder of unknown blocks": _config(
        lambda config: config["autoencoder"]["kl"].update(down_block_types=["Unheard", "Of"])
    ),
    "a deep config": _config(_deep),
}


def _as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def _as_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def _as_loop(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)


IN_FOLDERS: Mapping[str, Damage] = {
    "a file in the place of a folder": _as_file,
    "a folder that links nowhere": _as_link,
    "a folder that links to itself": _as_loop,
}
