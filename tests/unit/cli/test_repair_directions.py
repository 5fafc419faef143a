"""`vlmend repair shiftdc --estimator` and `vlmend ablate shiftdc` on saved tiny models."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Command

from vlmend.cli.ablate import parse_layer_sets, parse_sample_counts, parse_shares
from vlmend.runs import read_json

Saved = Callable[[str], Path]


def test_the_help_names_every_estimator(command: Command) -> None:
    from vlmend.directions.estimators import ESTIMATORS

    words = command("repair", "shiftdc", "--help").out.replace("-\n", "-").split()
    assert set(ESTIMATORS) <= {word.strip(",") for word in " ".join(words).split()}


def test_the_help_of_ablate_is_there_and_light() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from vlmend.cli.main import main\n"
        "for words in (['ablate'], ['ablate', 'shiftdc']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        with contextlib.suppress(SystemExit):\n"
        "            main([*words, '--help'])\n"
        "    assert 'usage: vlmend ablate' in out.getvalue()\n"
        "print(sorted({'torch', 'transformers', 'sklearn', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--estimator", "logistic-prob"), "Did you mean 'logistic-probe'"),
        (("--rank", "2"), "which finds one vector"),
        (
            ("--estimator", "subspace", "--rank", "2", "--one-sided"),
            "the safe side of a subspace is not defined",
        ),
    ],
)
def test_a_wrong_direction_is_found_before_the_model(
    tmp_path: Path, command: Command, options: tuple[str, ...], words: str
) -> None:
    done = command(
        *("repair", "shiftdc", "no/such/model", "--suite", "organism/fit", *options),
        *("--out", tmp_path / "out"),
    )
    assert done.code == 2
    assert words in done.error_line
    assert not (tmp_path / "out").exists()


def test_a_subspace_is_fitted_and_saved(saved: Saved, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "mend"
    done = command(
        *("repair", "shiftdc", saved("llava"), "--suite", "organism/fit", "--limit", 16),
        *("--caption-tokens", 2, "--estimator", "subspace", "--rank", 2, "--out", out),
    )
    assert done.code == 0, done.err
    facts = read_json(out / "vlmend.json")
    assert facts["settings"]["estimator"] == "subspace"
    assert facts["settings"]["rank"] == 2
    assert "estimator=subspace, rank=2" in done.err


# ---- ablate


def ablate(model: Path | str, out: Path, *options: object) -> tuple[object, ...]:
    return (
        *("ablate", "shiftdc", model, "--fit", "organism/fit", "--fit-limit", 8),
        *("--suite", "organism/icon", "--limit", 3, "--max-new-tokens", 2, "--out", out),
        *options,
    )


def test_an_ablation_is_a_run(saved: Saved, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    options = ("--layers", "2-3;3", "--samples", "4,all", "--mode", "offline")
    done = command(*ablate(saved("llava"), out, *options))
    assert done.code == 0, done.err
    metrics = read_json(out / "metrics.json")
    arms = [
        "base",
        "shiftdc",
        "shiftdc(layers=2-3)",
        "shiftdc(layers=3)",
        "shiftdc(samples=4)",
        "shiftdc(mode=offline)",
    ]
    assert [arm["name"] for arm in metrics["arms"]] == arms
    assert {cell["arm"] for cell in metrics["cells"]} == set(arms)
    assert {r["after"] for r in metrics["comparisons"]} == set(arms[1:])
    assert "shiftdc(samples=4)" in done.out
    assert "<html" in (out / "report.html").read_text("utf-8")

    before = (out / "responses.jsonl").read_bytes()
    again = command(*ablate(saved("llava"), out, *options))
    assert again.code == 2
    assert "--resume" in again.error_line
    resumed = command(*ablate(saved("llava"), out, *options, "--resume"))
    assert resumed.code == 0, resumed.err
    assert (out / "responses.jsonl").read_bytes() == before
    other = command(*ablate(saved("llava"), out, "--strength", "0.5", "--resume"))
    assert other.code == 2
    json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--estimator", "paired-pc"), "Did you mean 'paired-pca'"),
        (("--estimator", "subspace"), "Name ranks"),
        (("--samples", "1"), "from 1 item(s) was asked for"),
        (("--strength", "9"), "strength=9.0"),
        (("--mode", "sideways"), "mode='sideways'"),
        (("--caption-source", "mine"), "caption_source='mine'"),
        (("--judge", "nobody"), "unknown judge"),
    ],
)
def test_a_wrong_ablation_is_found_before_the_model(
    tmp_path: Path, command: Command, options: tuple[str, ...], words: str
) -> None:
    done = command(*ablate("no/such/model", tmp_path / "out", *options))
    assert done.code == 2
    assert words in done.error_line
    assert not (tmp_path / "out").exists()


def test_measured_items_are_not_fitted_on(saved: Saved, tmp_path: Path, command: Command) -> None:
    done = command(
        *("ablate", "shiftdc", saved("llava"), "--fit", "organism/fit", "--fit-limit", 4),
        *("--suite", "organism/fit", "--limit", 4, "--caption-tokens", 2),
        *("--out", tmp_path / "out"),
    )
    assert done.code == 2
    assert "was fitted on items that are to be measured" in done.error_line


def test_pictures_without_words_have_no_direction(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    done = command(*ablate(saved("llava"), tmp_path / "out", "--caption-source", "none"))
    assert done.code == 2
    assert "'shiftdc(caption_source=none)' on 8 items cannot be fitted" in done.error_line
    assert "harm is in the picture alone" in done.error_line


def test_lists_are_parsed() -> None:
    assert parse_layer_sets("0-2;3,1") == ((0, 1, 2), (1, 3))
    assert parse_sample_counts("8,all") == (8, None)
    assert parse_shares("0.5,2") == (0.5, 2.0)
    for parse, text in (
        (parse_layer_sets, "0-2;;3"),
        (parse_sample_counts, "8,some"),
        (parse_shares, "half"),
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)
