"""Options that several commands share: parsing of exits, layers and counts; opening the model."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vlmend.audit import Exits
    from vlmend.evals.shards import Shard
    from vlmend.models.vlm import Vlm

_LARGEST_NUMBER = 9999
"""Highest layer or exit one can ask for; a slip of the finger must not fill the memory."""

MODEL_HELP = "'organism', a folder with a saved model, or a Hugging Face id"


def add_model_options(
    parser: argparse.ArgumentParser, *, required: bool = True, quantise: bool = True
) -> None:
    """MODEL, --dtype, --device and --quantise.

    Args:
        parser: Where to.
        required: Whether MODEL must be given.
        quantise: Whether the command works on weights that cannot be trained.
    """
    parser.add_argument("model", metavar="MODEL", nargs=None if required else "?", help=MODEL_HELP)
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="weights are loaded in this dtype (default: auto, what the checkpoint says)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:N, or spread: a large model over GPUs, memory and disk "
        "(default: auto)",
    )
    if quantise:
        parser.add_argument(
            "--quantise",
            choices=("none", "int8"),
            default="none",
            help="int8: turn the linear maps of layers and blocks into int8 (needs torchao; "
            "default: none)",
        )


def add_run_options(
    parser: argparse.ArgumentParser, *, out: str, max_new_tokens: int | None = 64
) -> None:
    """--max-new-tokens, --batch-size, --out and --resume.

    Args:
        parser: Where to.
        out: Default run folder.
        max_new_tokens: Default answer length; None where a plan has its own.
    """
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=max_new_tokens,
        metavar="N",
        help="answer length (default: 64)",
    )
    parser.add_argument(
        "--batch-size",
        type=parse_batch_size,
        default=None,
        metavar="auto|N",
        help="prompts a batch, halved when memory runs out (default: auto)",
    )
    parser.add_argument("--out", type=Path, default=Path(out), help="run folder")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def open_model(args: argparse.Namespace) -> Vlm:
    """Load the model that the command line names."""
    from vlmend.models.load import load_vlm

    vlm = load_vlm(args.model, dtype=args.dtype, device=args.device)
    if getattr(args, "quantise", "none") == "int8":
        from vlmend.models.int8 import quantise_int8

        quantise_int8(vlm)
    return vlm


def parse_exits(text: str) -> Exits:
    """Exits: "default", "all", or numbers and ranges: "0,3,6" or "0-8"."""
    if text == "default" or text == "all":
        return text
    return parse_numbers(text)


def parse_numbers(text: str) -> tuple[int, ...]:
    """Numbers and ranges, "0,3,6" or "10-31", ascending and without repeats."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no list of numbers. Write for example 0,3,6 or 10-31"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > _LARGEST_NUMBER:
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} is no range: write the smaller number first, and none above "
                f"{_LARGEST_NUMBER}"
            )
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def parse_batch_size(text: str) -> int | None:
    """A number of prompts, or "auto"."""
    return None if text == "auto" else positive(text)


def parse_shard(text: str) -> Shard:
    """One share of a run, "2/4"."""
    from vlmend.errors import ConfigError
    from vlmend.evals.shards import Shard

    try:
        return Shard.parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    """A whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def split_names(text: str) -> tuple[str, ...]:
    """Names separated by commas, none of them twice."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("at least one name is needed")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise argparse.ArgumentTypeError(f"{twice[0]!r} is named twice")
    return names


def refuse_foreign_folder(out: Path, *expected: str, option: str = "--out") -> None:
    """Refuse to write into a folder that holds something else than we wrote ourselves.

    Args:
        out: The output folder.
        expected: File names of which one marks the folder as ours.
        option: What named the folder.

    Raises:
        RunError: It is a file, or a non-empty folder of someone else.
    """
    from vlmend.errors import RunError

    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise RunError(f"{str(path)!r} is a file. Give a folder as {option}.")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in expected):
        raise RunError(
            f"{str(out)!r} holds files that vlmend did not write. Choose another {option}."
        )


def join_command(argv: Sequence[str]) -> str:
    """A command line as one would type it."""
    import shlex

    return shlex.join(["vlmend", *argv])
