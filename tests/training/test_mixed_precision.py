from __future__ import annotations

import pytest
import torch

from msf_training.mixed_precision import autocast


@pytest.mark.parametrize("has_products", [True, False])
def test_a_cpu_multiplies_in_bfloat16_only_if_its_hardware_does(
    monkeypatch: pytest.MonkeyPatch, has_products: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_products)
    with autocast(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if has_products else torch.float32)
