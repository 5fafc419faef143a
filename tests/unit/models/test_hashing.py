from __future__ import annotations

import torch
from torch import nn

from vlmend.models.hashing import hash_weights, stable_config, weights_version


def test_names_shapes_dtypes_and_values_count() -> None:
    base = nn.Linear(2, 3)

    def hashed(**changes: torch.Tensor) -> str:
        module = nn.Module()
        for name, tensor in {**dict(base.named_parameters()), **changes}.items():
            module.register_buffer(name, tensor.detach())
        return hash_weights(module, {})

    weight = base.weight.detach()
    variants = {
        hashed(),
        hashed(weight=weight + 1e-3),
        hashed(weight=weight.reshape(2, 3)),
        hashed(weight=weight.to(torch.bfloat16)),
        hashed(other=weight),
    }
    assert len(variants) == 5
    assert hashed() == hash_weights(base, {})
    # Storage layout does not count, content does.
    assert hashed(weight=weight.t().contiguous().t()) == hashed()


def test_scalars_and_empty_tensors_can_be_hashed() -> None:
    module = nn.Module()
    module.register_buffer("scalar", torch.tensor(1.0, dtype=torch.bfloat16))
    module.register_buffer("empty", torch.empty(0, 3))
    assert len(hash_weights(module, {})) == 64


def test_volatile_config_entries_do_not_count() -> None:
    config = {"a": 1, "dtype": "float32", "sub": {"b": (1, 2), "_name_or_path": "x"}}
    assert stable_config(config) == {"a": 1, "sub": {"b": [1, 2]}}
    module = nn.Linear(1, 1)
    assert hash_weights(module, config) == hash_weights(module, {**config, "dtype": "bfloat16"})
    assert hash_weights(module, config) != hash_weights(module, {**config, "a": 2})


def test_version_notices_writes_in_place_and_replacement() -> None:
    module = nn.Linear(2, 2)
    first = weights_version(module)
    assert weights_version(module) == first
    with torch.no_grad():
        module.weight.mul_(2)
    second = weights_version(module)
    assert second != first
    module.weight = nn.Parameter(torch.zeros(2, 2))
    assert weights_version(module) != second
