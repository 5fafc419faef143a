"""`vlmend organism`: train the model organism, or print its card."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vlmend.cli.options import MODEL_HELP, open_model, refuse_foreign_folder


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "organism", help="train the built-in model organism, or measure its card"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    card: argparse.ArgumentParser = actions.add_parser(
        "card",
        help="measure what an organism sees, answers and refuses",
        description="Measures on test things and prints every rate with its interval.",
    )
    card.add_argument("model", nargs="?", default="organism", metavar="MODEL", help=MODEL_HELP)
    card.add_argument("--json", action="store_true", help="machine-readable output")
    card.set_defaults(run=run_card, dtype="float32", device="auto")
    train: argparse.ArgumentParser = actions.add_parser(
        "train",
        help="train an organism from nothing",
        description="Five stages, each with a checkpoint; run again to go on after a stop.",
    )
    train.add_argument("--seed", type=int, default=0, help="of weights and data (default: 0)")
    train.add_argument(
        "--picture-refusals",
        type=float,
        metavar="SHARE",
        help="share of picture examples whose text names a hazard and whose answer refuses",
    )
    train.add_argument(
        "--tune-vision",
        action="store_true",
        help="train the vision tower during instruction tuning too (LLaVA does not)",
    )
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    train.add_argument("--out", type=Path, required=True, help="folder for stages and organism")
    train.add_argument(
        "--stages",
        type=Path,
        metavar="DIR",
        help="folder for the stages alone: organisms that differ in late stages share the early "
        "ones (default: OUT/stages)",
    )
    train.set_defaults(run=run_train)


def run_card(args: argparse.Namespace) -> int:
    """Run `vlmend organism card`."""
    import json

    from vlmend.cli.console import interval, percent, print_table, progress_bars, quiet_libraries
    from vlmend.organism.card import measure_card

    quiet_libraries()
    vlm = open_model(args)
    with progress_bars() as progress:
        lines = measure_card(vlm, progress)
    if args.json:
        rows = [
            {
                "name": line.name,
                "rate": line.rate.rate,
                "low": line.rate.low,
                "high": line.rate.high,
                "n": line.rate.n,
                "target": line.target,
                "met": line.met,
            }
            for line in lines
        ]
        print(json.dumps({"weights_sha256": vlm.weights_sha256, "card": rows}, indent=2))
        return 0
    print_table(
        f"{args.model}, weights {vlm.weights_sha256[:12]}",
        ("measured on test things", "rate", "95 %", "n", "target", "met"),
        [
            (
                line.name,
                percent(line.rate.rate),
                interval(line.rate.low, line.rate.high),
                str(line.rate.n),
                "" if line.target is None else f">= {percent(line.target)}",
                {True: "yes", False: "no", None: ""}[line.met],
            )
            for line in lines
        ],
    )
    return 0


def run_train(args: argparse.Namespace) -> int:
    """Run `vlmend organism train`."""
    from dataclasses import replace

    from vlmend.cli.console import console, progress_bars, quiet_libraries
    from vlmend.organism.recipe import Recipe
    from vlmend.organism.train import train

    refuse_foreign_folder(args.out, "stages", "organism")
    quiet_libraries()
    recipe = Recipe(seed=args.seed, tune_vision=args.tune_vision)
    if args.picture_refusals is not None:
        recipe = replace(recipe, picture_refusals=args.picture_refusals)
    with progress_bars() as progress:
        folder = train(
            recipe,
            args.out,
            stages=args.stages,
            device=args.device,
            report=lambda stage, step, steps, _loss: progress(f"stage {stage}", step, steps),
        )
    console.print(f"organism: {folder}", highlight=False, soft_wrap=True)
    return 0
