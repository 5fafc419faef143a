"""Every family passes the whole contract: dtypes x text or image x cache on or off.

The families that a file describes go through the whole grid. Those that are discovered are proven
in float32 on text and images with a cache (`test_support_table.py`); here follow a run without a
cache, and one in bfloat16.
"""

from __future__ import annotations

import pytest
import torch

from vlmend.models.families import FAMILIES
from vlmend.models.support import read_support
from vlmend.testing import TINY_FAMILIES, run_contract, tiny_vlm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

NOT_IN_FLOAT64 = {"kosmos-2"}
"""transformers (5.23) makes its causal mask in float32, of the lowest number of float64."""

DISCOVERED = [
    family
    for family, row in read_support().items()
    if not row.described and {row.uses["record"].result, row.uses["edit"].result} == {"pass"}
]
"""Families without a file that the table says can be recorded and edited."""


def require_contract(family: str, dtype: torch.dtype, *, images: bool, use_cache: bool) -> None:
    if family not in FAMILIES:
        tiny_vlm(family)  # a map is proven in float32, and recalled for other dtypes
    vlm = tiny_vlm(family, dtype=dtype)
    results = run_contract(vlm, images=images, use_cache=use_cache)
    failed = [f"{result.clause}: {result.evidence}" for result in results if not result.passed]
    assert not failed, "\n".join(failed)
    # 6 clauses without running, 9 that run the model, 1 about pictures, 4 about exits.
    assert len(results) == (20 if images and vlm.vision_stacks else 15 + images)


def test_every_registered_family_is_tested() -> None:
    assert set(FAMILIES) <= set(TINY_FAMILIES)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("images", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_contract(family: str, dtype: str, images: bool, use_cache: bool) -> None:
    require_contract(family, DTYPES[dtype], images=images, use_cache=use_cache)


@pytest.mark.parametrize("family", DISCOVERED)
def test_discovered_families_without_a_cache(family: str) -> None:
    require_contract(family, torch.float32, images=True, use_cache=False)


@pytest.mark.parametrize("family", DISCOVERED)
def test_discovered_families_in_bfloat16(family: str) -> None:
    require_contract(family, torch.bfloat16, images=True, use_cache=True)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NOT_IN_FLOAT64))
def test_what_is_called_rounding_vanishes_in_float64(family: str) -> None:
    require_contract(family, torch.float64, images=True, use_cache=True)


def test_some_encoder_is_deeper_and_some_decoder_too() -> None:
    vlms = [tiny_vlm(family) for family in FAMILIES]
    assert all(vlm.num_vision_blocks != vlm.num_decoder_layers for vlm in vlms)
