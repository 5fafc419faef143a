"""A realistic diagnosis: numbers as an organism might give them, all of them made up."""

from __future__ import annotations

import math
import random
from typing import Any

SETS = (
    ("text", "safe"),
    ("text", "unsafe"),
    ("vision-language", "safe"),
    ("vision-language", "unsafe"),
)
ESTIMATORS = ("mean difference", "logistic probe", "paired PCA", "ridge-whitened")
N = 120


def rate(value: float, n: int = N) -> dict[str, Any]:
    """A Rate with its Wilson interval."""
    value = min(max(value, 0.0), 1.0)
    z = 1.959964
    middle = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"rate": value, "low": low, "high": high, "n": n}


def stat(value: float, half: float, n: int = N) -> dict[str, Any]:
    """A Stat with a symmetric interval."""
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def _rise(layer: int, layers: int) -> float:
    """0 at the first layer, near 1 from the middle on."""
    return 1 / (1 + math.exp(-10 * (layer / max(1, layers - 1) - 0.35)))


def _confusion(unsafe_as_safe: float, safe_as_unsafe: float) -> dict[str, int]:
    half = N // 2
    lost, alarms = round(half * unsafe_as_safe), round(half * safe_as_unsafe)
    return {
        "unsafe_as_unsafe": half - lost,
        "unsafe_as_safe": lost,
        "safe_as_safe": half - alarms,
        "safe_as_unsafe": alarms,
    }


def _probe(layer: int, layers: int, luck: random.Random) -> dict[str, Any]:
    up = _rise(layer, layers)
    text, vision, transfer = 0.6 + 0.36 * up, 0.53 + 0.17 * up, 0.5 + 0.1 * up
    return {
        "layer": layer,
        "text": rate(text),
        "vision_language": rate(vision),
        "text_shuffled": rate(0.5 + luck.uniform(-0.06, 0.06)),
        "vision_language_shuffled": rate(0.5 + luck.uniform(-0.06, 0.06)),
        "transfer": rate(transfer),
        "confusion": {
            "text": _confusion(1 - text, 1 - text),
            "vision_language": _confusion(1.1 - vision, 0.9 - vision),
            "transfer": _confusion(0.5 + 0.22 * up, 0.5 - 0.42 * up),
        },
        "unsafe_as_safe": {
            "text": rate(1 - text, N // 2),
            "transfer": rate(0.5 + 0.22 * up, N // 2),
        },
        "gap": None,
    }


CENTRES = {
    ("text", "safe"): (-1.0, 0.9),
    ("text", "unsafe"): (-1.0, -1.0),
    ("vision-language", "safe"): (1.2, 0.8),
    ("vision-language", "unsafe"): (1.0, 0.15),
}


def _map(method: str, layer: int, layers: int, per_set: int, luck: random.Random) -> dict[str, Any]:
    up, scale = _rise(layer, layers), 12.0 if method == "tsne" else 3.0
    points: list[list[float]] = []
    for index, name in enumerate(SETS):
        x, y = CENTRES[name]
        points += [
            [scale * luck.gauss(x, 0.4), scale * luck.gauss(y * up, 0.4), index]
            for _ in range(per_set)
        ]
    return {
        "method": method,
        "layer": layer,
        "points": points,
        "boundary": [[-2 * scale, 0.04 * scale], [-0.5 * scale, -0.05 * scale]],
        "boundary_accuracy": 0.6 + 0.36 * up,
        "explained": [0.41, 0.22] if method == "pca" else None,
        "gap": None,
    }


SHIFT_GROUPS = {
    "organism/icon": (("complied", 0.86, 88), ("refused", 0.22, 32)),
    "organism/benign": (("benign", 0.42, 60),),
    "controls": (("blank", 0.55, 40), ("noise", 0.35, 40), ("unrelated", 0.48, 8)),
}


def _shift(
    suite: str, group: str, top: float, n: int, layers: int, luck: random.Random
) -> dict[str, Any]:
    cosines = [
        [max(-1.0, min(1.0, luck.gauss(top * _rise(layer, layers), 0.16))) for _ in range(n)]
        for layer in range(layers)
    ]
    ordered = [sorted(values) for values in cosines]
    return {
        "suite": suite,
        "group": group,
        "n": n,
        "layers": list(range(layers)),
        "cos_median": [values[n // 2] for values in ordered],
        "cos_q25": [values[n // 4] for values in ordered],
        "cos_q75": [values[3 * n // 4] for values in ordered],
        "norm_median": [2.0 + 1.4 * layer * (1 + 0.2 * top) for layer in range(layers)],
        "coefficient_median": [
            (0.2 + top) * _rise(layer, layers) * (1 + layer / layers) for layer in range(layers)
        ],
        "cosines": cosines,
    }


def _self_rows() -> list[dict[str, Any]]:
    rows = [
        ("text", None, 0.93, 0.05, 0.97, 0.91),
        ("vision-language", None, 0.41, 0.11, 0.71, 0.78),
        ("text", "organism/icon", 0.94, 0.04, 0.98, 0.92),
        ("vision-language", "organism/icon", 0.36, 0.12, 0.66, 0.74),
    ]
    return [
        {
            "modality": modality,
            "suite": suite,
            "said_yes_unsafe": rate(unsafe, 60),
            "said_yes_safe": rate(safe, 60),
            "accuracy": rate((unsafe + 1 - safe) / 2),
            "auroc": stat(area, (1 - area) * 0.8),
            "mass_median": mass,
            "gap": None,
        }
        for modality, suite, unsafe, safe, area, mass in rows
    ]


def _exit_group(at: int, exits: int) -> str:
    return ("early", "middle", "late")[min(2, max(0, (at - 1)) * 3 // exits)]


def _exit_row(at: int, exits: int) -> dict[str, Any]:
    place = at / exits
    incoherent = math.exp(-at * 0.9)
    asr = (0.08 + 0.62 * math.exp(-(((place - 0.45) / 0.22) ** 2))) * (1 - incoherent)
    return {
        "exit": at,
        "group": _exit_group(at, exits),
        "n": N,
        "asr": rate(asr),
        "refusal": rate(1 - asr - incoherent),
        "incoherent": rate(incoherent),
        "coverage": 1.0,
        "perplexity": {
            "value": 4 + 900 * incoherent,
            "low": 3 + 700 * incoherent,
            "high": 5 + 1200 * incoherent,
            "n": N,
        },
        "repetition": stat(0.05 + 0.6 * incoherent, 0.03),
        "length": stat(24 + 40 * incoherent, 2.5),
        "toxicity": None,
        "reward": stat(0.4 - 1.8 * asr, 0.2),
        "coherent": incoherent < 0.3,
    }


def _exit_tests(rows: list[dict[str, Any]], default: int) -> list[dict[str, Any]]:
    base = rows[default]["asr"]["rate"]
    tests: list[dict[str, Any]] = []
    for row in rows:
        if row["exit"] == default:
            continue
        difference = row["asr"]["rate"] - base
        p = math.exp(-90 * abs(difference))
        tests.append(
            {
                "exit": row["exit"],
                "n": N,
                "difference": difference,
                "low": difference - 0.08,
                "high": difference + 0.08,
                "p_value": p,
                "p_holm": min(1.0, p * (len(rows) - 1)),
                "method": "McNemar, exact",
            }
        )
    return tests


def _exits(layers: int, exits: int) -> dict[str, Any]:
    default = exits - 1
    rows = [_exit_row(at, exits) for at in range(exits + 1)]
    coherent = [row for row in rows if row["coherent"]]
    worst = max(coherent, key=lambda row: row["asr"]["rate"])
    groups = []
    for name in ("early", "middle", "late"):
        members = [row for row in rows if row["group"] == name and row["exit"] > 0]
        mean = sum(row["asr"]["rate"] for row in members) / len(members)
        reward = sum(row["reward"]["value"] for row in members) / len(members)
        groups.append(
            {
                "group": name,
                "exits": [row["exit"] for row in members],
                "aasr": stat(mean, 0.04),
                "ats": None,
                "atr": stat(reward, 0.1),
            }
        )
    return {
        "default": default,
        "suite": "organism/text+image",
        "judge": "organism",
        "rows": rows,
        "gaps": ["Toxicity was not measured: no toxicity model is installed."],
        "groups": groups,
        "tests": _exit_tests(rows, default),
        "most_vulnerable": {
            "exit": worst["exit"],
            "asr": worst["asr"],
            "why": "perplexity and repetition are within twice the default's",
        },
        "grounding": [
            {
                "exit": at,
                "accuracy": rate(0.3 + 0.62 * at / exits),
                "replaced": rate(0.3),
                "drop": stat(0.62 * at / exits, 0.07),
            }
            for at in range(exits + 1)
        ],
        "embeddings": [
            {
                "exit": at,
                "norm": stat(8 + 3.1 * at, 0.6),
                "cka": stat(1 - 0.8 * (1 - at / default) ** 2, 0.03),
                "mahalanobis": stat(1 + 9 * abs(1 - at / default), 0.5),
            }
            for at in range(exits + 1)
        ],
        "association": [
            {"measure": "norm", "spearman": {"value": -0.31, "low": -0.8, "high": 0.4, "n": 9}},
            {"measure": "cka", "spearman": {"value": -0.62, "low": -0.93, "high": -0.08, "n": 9}},
            {"measure": "mahalanobis", "spearman": None, "gap": "the covariance is singular"},
        ],
        "decoder": [
            {
                "exit": at,
                "layer": layer,
                "coefficient": stat(
                    1.5 * (default - at) / default * (_rise(layer, layers) - 0.25), 0.12
                )
                if at != default
                else stat(0.0, 0.0),
            }
            for at in range(exits + 1)
            for layer in range(layers)
        ],
    }


FINDINGS = [
    {
        "claim": "A text probe beats a vision-language probe",
        "verdict": "reproduced",
        "text": "Mean difference of accuracy over layers 3 to 5.",
        "value": 0.262,
        "low": 0.181,
        "high": 0.343,
    },
    {
        "claim": "A probe trained on text calls unsafe pictures safe",
        "verdict": "reproduced",
        "text": "Share of unsafe vision-language items called safe at the middle layer.",
        "value": 0.72,
        "low": 0.595,
        "high": 0.818,
    },
    {
        "claim": "cos(m, s) separates success from failure",
        "verdict": "undecided",
        "text": "AUROC on organism/icon at the middle layer.",
        "value": 0.56,
        "low": 0.44,
        "high": 0.68,
    },
    {
        "claim": "Exits differ in attack success",
        "verdict": "refuted",
        "text": "Largest difference from the default exit.",
        "value": -0.02,
        "low": -0.06,
        "high": 0.02,
    },
    {
        "claim": "Early exits are more toxic",
        "verdict": "not measured",
        "text": "No toxicity model is installed.",
        "value": None,
        "low": None,
        "high": None,
    },
]


def sample_diagnosis(layers: int = 6, exits: int = 8, per_set: int = 30) -> dict[str, Any]:
    """A fresh, complete diagnosis; tests may change it.

    Args:
        layers: Decoder layers.
        exits: Vision blocks; exits run from 0 to this number.
        per_set: Points of each set in the maps.
    """
    luck = random.Random(20260101)
    return {
        "schema": 1,
        "kind": "diagnosis",
        "title": "Diagnosis of the organism",
        "created": "2026-01-05T10:20:00+00:00",
        "model": {
            "name": "organism",
            "family": "llava",
            "num_parameters": 1_543_210,
            "num_vision_blocks": exits,
            "num_decoder_layers": layers,
            "default_exit": exits - 1,
            "weights_sha256": "ab" * 32,
        },
        "sets": [
            {
                "modality": modality,
                "label": label,
                "n": 2 * per_set,
                "groups": per_set // 2,
                "suites": ["organism/icon", "organism/typographic"]
                if label == "unsafe"
                else ["organism/benign"],
            }
            for modality, label in SETS
        ],
        "probes": {
            "folds": 5,
            "repeats": 1,
            "by_layer": [_probe(layer, layers, luck) for layer in range(layers)],
        },
        "maps": [
            _map(method, layer, layers, per_set, luck)
            for method in ("pca", "tsne")
            for layer in range(layers)
        ],
        "shift": [
            _shift(suite, group, top, n, layers, luck)
            for suite, groups in SHIFT_GROUPS.items()
            for group, top, n in groups
        ],
        "separation": [
            {
                "suite": "organism/icon",
                "layer": layer,
                "auroc": stat(0.5 + 0.42 * _rise(layer, layers), 0.06),
                "n_complied": 88,
                "n_refused": 32,
                "gap": None,
            }
            for layer in range(layers)
        ],
        "self_classification": _self_rows(),
        "estimators": [
            {
                "layer": layer,
                "first": first,
                "second": second,
                "cosine": 0.35 + 0.5 * _rise(layer, layers) - 0.12 * (index + other),
            }
            for layer in range(layers)
            for index, first in enumerate(ESTIMATORS)
            for other, second in enumerate(ESTIMATORS[index + 1 :])
        ],
        "stability": [
            {
                "layer": layer,
                "estimator": estimator,
                "n": n,
                "cosine": {
                    "median": 0.97 - 4.2 / n - 0.03 * index,
                    "q05": 0.94 - 7.0 / n - 0.03 * index,
                    "q95": 0.99 - 2.0 / n - 0.03 * index,
                },
                "gap": None,
            }
            for index, estimator in enumerate(ESTIMATORS[:3])
            for n in (20, 80)
            for layer in range(layers)
        ],
        "exits": _exits(layers, exits),
        "findings": [dict(row) for row in FINDINGS],
        "gaps": ["Captions are the model's own: where they are wrong, so is the text branch."],
        "cost": [
            {"what": "captions", "seconds": 21.4},
            {"what": "activations", "seconds": 12.8},
            {"what": "exit sweep", "seconds": 96.0},
        ],
        "reproduce": {
            "command": "vlmend diagnose organism --out out/diagnosis",
            "settings": {"folds": 5, "seed": 0},
            "seeds": {"probes": 0},
            "versions": {"vlmend": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "hashes": {"activations": "cd" * 32},
        },
    }
