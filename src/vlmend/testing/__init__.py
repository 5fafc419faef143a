"""Public test support: tiny models of every family, named tolerances, the contracts."""

from vlmend.hooks.contract import run_contract
from vlmend.hooks.tolerances import (
    BFLOAT16_NOISE,
    FLOAT16_NOISE,
    FLOAT32_NOISE,
    FLOAT64_NOISE,
    Tolerance,
    noise_of,
    relative_difference,
)
from vlmend.testing.closeness import assert_close
from vlmend.testing.judge_contract import run_judge_contract
from vlmend.testing.pictures import blank_picture, picture
from vlmend.testing.repair_contract import run_repair_contract
from vlmend.testing.suite_contract import run_suite_contract
from vlmend.testing.tiny import TINY_FAMILIES, save_tiny_vlm, tiny_vlm

__all__ = [
    "BFLOAT16_NOISE",
    "FLOAT16_NOISE",
    "FLOAT32_NOISE",
    "FLOAT64_NOISE",
    "TINY_FAMILIES",
    "Tolerance",
    "assert_close",
    "blank_picture",
    "noise_of",
    "picture",
    "relative_difference",
    "run_contract",
    "run_judge_contract",
    "run_repair_contract",
    "run_suite_contract",
    "save_tiny_vlm",
    "tiny_vlm",
]
