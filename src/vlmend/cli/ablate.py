"""`vlmend ablate`: a repair under many settings, measured side by side on the same items."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vlmend.cli.audit import RUN_FILES
from vlmend.cli.options import (
    add_model_options,
    add_run_options,
    join_command,
    open_model,
    parse_numbers,
    positive,
    refuse_foreign_folder,
    split_names,
)

if TYPE_CHECKING:
    from vlmend.repairs.shiftdc.ablation import Ablation


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "ablate",
        help="measure a repair under many settings at once",
        description="Fit a repair under many settings and measure all of them on the same items.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="REPAIR")
    shiftdc: argparse.ArgumentParser = kinds.add_parser(
        "shiftdc",
        help="layers, samples, captions, estimators",
        description="One setting at a time is changed from ShiftDC's defaults; --cross measures "
        "every combination.",
    )
    add_model_options(shiftdc)
    _add_data_options(shiftdc)
    _add_factors(shiftdc)
    shiftdc.set_defaults(run=run_shiftdc)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fit",
        type=split_names,
        required=True,
        metavar="A,B",
        help="suites with harmful and benign items to fit on, NAME or NAME=FOLDER",
    )
    parser.add_argument(
        "--suite",
        type=split_names,
        required=True,
        metavar="A,B",
        help="suites to measure on, other items than those fitted on",
    )
    parser.add_argument(
        "--judge", type=split_names, default=(), metavar="A,B", help="judges (default: the suites')"
    )
    parser.add_argument(
        "--fit-limit", type=positive, metavar="N", help="first N items of every suite to fit on"
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="first N items of every suite to measure on"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples (default: 0)")
    add_run_options(parser, out="out/ablate")


def _add_factors(parser: argparse.ArgumentParser) -> None:
    factors = parser.add_argument_group("what is varied")
    factors.add_argument(
        "--layers",
        type=parse_layer_sets,
        default=(),
        metavar="A-B;C-D",
        help="sets of decoder layers to calibrate, 0-based, separated by semicolons",
    )
    factors.add_argument(
        "--estimator",
        type=split_names,
        default=(),
        metavar="A,B",
        help="estimators of the direction (see `vlmend repair shiftdc --help`)",
    )
    factors.add_argument(
        "--rank",
        type=parse_numbers,
        default=(),
        metavar="A-B",
        help="ranks of the estimator 'subspace'",
    )
    factors.add_argument(
        "--samples",
        type=parse_sample_counts,
        default=(),
        metavar="8,32,all",
        help="numbers of items to fit on, half of them harmful",
    )
    factors.add_argument(
        "--caption-source",
        type=split_names,
        default=(),
        metavar="none,given",
        help="what stands for the image: self, none (the request alone), given (by the suite)",
    )
    factors.add_argument(
        "--caption-tokens",
        type=parse_numbers,
        default=(),
        metavar="8,32",
        help="lengths of self-captions in new tokens",
    )
    factors.add_argument(
        "--mode", type=split_names, default=(), metavar="offline", help="online, offline"
    )
    factors.add_argument(
        "--strength",
        type=parse_shares,
        default=(),
        metavar="0.5,2",
        help="shares of the projection removed",
    )
    factors.add_argument(
        "--cross", action="store_true", help="every combination, not one factor at a time"
    )


def parse_layer_sets(text: str) -> tuple[tuple[int, ...], ...]:
    """Sets of layers: "0-5;2-5;3,5"."""
    return tuple(parse_numbers(part) for part in text.split(";"))


def parse_sample_counts(text: str) -> tuple[int | None, ...]:
    """Numbers of items, or "all": "8,32,all"."""
    return tuple(None if part == "all" else positive(part) for part in split_names(text))


def parse_shares(text: str) -> tuple[float, ...]:
    """Numbers: "0.5,1"."""
    try:
        return tuple(float(part) for part in split_names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers: {error}") from error


def read_ablation(args: argparse.Namespace) -> Ablation:
    """The ablation that the command line describes."""
    from vlmend.repairs.shiftdc.ablation import Ablation

    return Ablation(
        layers=args.layers,
        estimators=args.estimator,
        ranks=args.rank,
        num_samples=args.samples,
        caption_sources=args.caption_source,
        caption_tokens=args.caption_tokens,
        modes=args.mode,
        strengths=args.strength,
        cross=args.cross,
    )


def run_shiftdc(args: argparse.Namespace) -> int:
    """Run `vlmend ablate shiftdc`: first all that can be checked without the model."""
    from vlmend.runs import require_no_run

    refuse_foreign_folder(args.out, *RUN_FILES)
    if not args.resume:
        require_no_run(args.out)

    from vlmend.audit import AuditPlan, SuitePlan, load_suites, run_audit
    from vlmend.cli.console import console, progress_bars, quiet_libraries, show_run
    from vlmend.evals.captions import CaptionCache
    from vlmend.evals.run import check_images
    from vlmend.repairs.shiftdc.ablation import build_arms, expand
    from vlmend.suites.registry import load_suite

    quiet_libraries()
    cells = expand(read_ablation(args))
    plan = AuditPlan(
        suites=tuple(SuitePlan(name, limit=args.limit) for name in args.suite),
        judges=args.judge,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        title=f"Ablation of ShiftDC on {args.model}",
    )
    suites = load_suites(plan)
    fit_samples = [s for name in args.fit for s in load_suite(name, args.fit_limit)]
    check_images(fit_samples)
    vlm = open_model(args)
    with console.status(f"fitting {len(cells)} arms on {len(fit_samples)} items"):
        arms = build_arms(
            vlm,
            cells,
            fit_samples,
            CaptionCache(args.out / "captions.jsonl"),
            measured=[sample for suite in suites for sample in suite.samples],
            seed=args.seed,
        )
    with progress_bars(arm.name for arm in arms) as progress:
        metrics = run_audit(
            vlm,
            plan,
            args.out,
            arms=arms,
            suites=suites,
            resume=args.resume,
            progress=progress,
            command=join_command(sys.argv[1:]),
        )
    show_run(metrics, args.out)
    return 0
