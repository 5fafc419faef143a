"""The registry of model families: one frozen `FamilySpec` per file, keyed by model_type.

Adding a family is one file and one line here; the contract tests pick it up.
"""

from __future__ import annotations

from types import MappingProxyType

from vlmend.models.families import llava, llava_next, mllama, qwen2_5_vl
from vlmend.models.spec import FamilySpec

FAMILIES: MappingProxyType[str, FamilySpec] = MappingProxyType(
    {spec.model_type: spec for spec in (llava.SPEC, llava_next.SPEC, mllama.SPEC, qwen2_5_vl.SPEC)}
)
"""Every known family by `config.model_type`."""
