from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from msf_engine.errors import ModelRepositoryError
from msf_engine.repository import find_models, read_version, save_version
from msf_scheduler.stage import TWO_STAGES, Stage
from tests.models import LABELS, tiny_model, tiny_repository


def test_a_saved_model_is_loaded_unchanged(repository: Path) -> None:
    (model,) = find_models(repository)
    assert (model.name, model.version, model.labels) == ("tiny", "1", LABELS)
    loaded, saved = model.load(), tiny_model()
    assert model.config == saved.config
    for name, weight in saved.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.bfloat16().float())
    for stage, weights in model.read_time_embeddings().items():
        expected = loaded.denoiser(stage).time.state_dict(prefix="time.")
        assert weights.keys() == expected.keys()
        assert all(np.array_equal(weights[name], weight) for name, weight in expected.items())


def test_a_network_is_named_by_its_weights_and_config_alone(repository: Path) -> None:
    first = read_version(repository, "tiny")
    same = tiny_repository(repository, "other", "3")
    model = tiny_model()
    model.denoiser(Stage.BASE).out.bias.data.add_(1)
    save_version(repository, "tiny", "2", model, LABELS)
    changed = read_version(repository, "tiny", "2")
    for stage in TWO_STAGES:
        assert first.network_digest(stage) == same.network_digest(stage)
        assert (first.network_digest(stage) == changed.network_digest(stage)) is (stage is not Stage.BASE)
    assert len({first.network_digest(stage) for stage in TWO_STAGES}) == 3


def test_a_changed_config_names_another_network(repository: Path) -> None:
    first = read_version(repository, "tiny")
    file = repository / "tiny" / "config.json"
    config = json.loads(file.read_text())
    config["stages"][0]["denoiser"]["num_heads"] = 4
    config["stages"][1]["statistics"]["std"][0] = 2.0
    config["sampling"]["solver"] = "euler"  # of no network
    file.write_text(json.dumps(config))
    changed = read_version(repository, "tiny")
    assert [first.network_digest(stage) == changed.network_digest(stage) for stage in TWO_STAGES] == [
        False,
        True,
        False,
    ]


def test_sha256sum_accepts_the_checksums(repository: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=repository / "tiny" / "1", check=False).returncode == 0


def test_versions_are_ordered_as_numbers_and_the_newest_is_the_default(repository: Path) -> None:
    for version in ("2", "10"):
        save_version(repository, "tiny", version, tiny_model(seed=int(version)), LABELS)
    assert [model.version for model in find_models(repository)] == ["1", "2", "10"]
    assert read_version(repository, "tiny").version == "10"
    assert read_version(repository, "tiny", "2").version == "2"
    with pytest.raises(ModelRepositoryError, match="has no version '3'; it has 1, 2, 10"):
        read_version(repository, "tiny", "3")


def test_a_version_with_another_config_has_its_own_file(repository: Path) -> None:
    model = tiny_model()
    model.config = model.config.model_copy(update={"description": "another"})
    save_version(repository, "tiny", "2", model, LABELS)
    assert [version.config.description for version in find_models(repository)] == ["for tests", "another"]


@pytest.mark.parametrize("part", ["autoencoder", "base", "residual"])
def test_a_flipped_byte_is_an_error(repository: Path, part: str) -> None:
    file = repository / "tiny" / "1" / f"{part}.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelRepositoryError, match=rf"{part}\.safetensors is damaged"):
        read_version(repository, "tiny").load()


@pytest.mark.parametrize("name", ["1/base.safetensors", "labels.json", "config.json", "1/SHA256SUMS"])
def test_the_error_names_a_missing_file(repository: Path, name: str) -> None:
    (repository / "tiny" / name).unlink()
    with pytest.raises(ModelRepositoryError, match=Path(name).name):
        read_version(repository, "tiny").load()


def _forge(file: Path, content: bytes) -> None:
    """Replace a file and its checksum."""
    file.write_bytes(content)
    command = "sha256sum autoencoder.safetensors base.safetensors residual.safetensors > SHA256SUMS"
    subprocess.run(command, shell=True, cwd=file.parent, check=True)


def test_weights_of_another_model_are_an_error(repository: Path, tmp_path: Path) -> None:
    file = repository / "tiny" / "1" / "residual.safetensors"
    save_file({"stranger": torch.zeros(3)}, tmp_path / "other.safetensors")
    _forge(file, (tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(ModelRepositoryError, match=r"residual\.safetensors does not hold this model's weights"):
        read_version(repository, "tiny").load()


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was run",))


def test_a_pickle_is_an_error_and_is_not_loaded(repository: Path) -> None:
    _forge(repository / "tiny" / "1" / "base.safetensors", pickle.dumps(_Bomb()))
    with pytest.raises(ModelRepositoryError, match=r"base\.safetensors does not hold"):
        read_version(repository, "tiny").load()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stages", [], r"stages: .*at least 1 item"),
        ("surprise", 1, r"surprise: Extra inputs are not permitted"),
        ("image", {"size": 16, "channels": 2}, r"image\.channels: .*1, 3 or 4"),
        ("image", {"size": 32, "channels": 1}, r"base\.denoiser\.size is 2; this latent .* needs 4"),
    ],
)
def test_the_error_names_the_field_of_a_wrong_config(repository: Path, key: str, value: object, message: str) -> None:
    file = repository / "tiny" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ModelRepositoryError, match=message) as raised:
        read_version(repository, "tiny")
    assert "config.json" in str(raised.value)


@pytest.mark.parametrize("labels", ['["a", "b"]', '["a", "a", "b"]', '{"a": 1}', "["])
def test_wrong_labels_are_an_error(repository: Path, labels: str) -> None:
    (repository / "tiny" / "labels.json").write_text(labels)
    with pytest.raises(ModelRepositoryError, match=r"labels\.json"):
        read_version(repository, "tiny")


def test_an_empty_or_missing_repository_is_an_error(repository: Path) -> None:
    shutil.rmtree(repository / "tiny" / "1")
    with pytest.raises(ModelRepositoryError, match="has no model"):
        find_models(repository)
    with pytest.raises(ModelRepositoryError, match="is not a folder"):
        find_models(repository / "absent")


@pytest.mark.parametrize("name", ["../tiny", "absent", "", "Tiny"])
def test_an_unknown_name_is_an_error(repository: Path, name: str) -> None:
    with pytest.raises(ModelRepositoryError, match="is not in"):
        read_version(repository, name)
