"""`vlmend diagnose`: where safety is lost, by modality and by layer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmend.cli.audit import RUN_FILES
from vlmend.cli.options import (
    add_model_options,
    add_run_options,
    join_command,
    open_model,
    positive,
    refuse_foreign_folder,
    split_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vlmend.diagnosis.plan import DiagnosisPlan
    from vlmend.evals.arms import Arm
    from vlmend.models.vlm import Vlm

_PLAN_OPTIONS = (
    "exit_suite",
    "vqa_suite",
    "limit",
    "exit_limit",
    "control_items",
    "judge",
    "max_new_tokens",
    "caption_source",
    "caption_tokens",
    "batch_size",
    "maps",
    "question",
    "reward_model",
    "seed",
)
"""Options that are settings of the plan; those left out keep the plan's default."""

_NOT_AT_EXITS = ("control_items", "caption_source", "caption_tokens", "maps", "question")
"""Options of the plan that nothing at vision exits depends on."""


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "diagnose",
        help="see where safety is lost: probes, maps, shifts, exits, layer by layer",
        description="Records activations and answers once and writes a run folder with a page of "
        "probes, maps, shift cosines and vision exits, and its figures as SVG and PDF.",
    )
    add_model_options(parser)
    _add_data_options(parser)
    _add_measure_options(parser)
    add_run_options(parser, out="out/diagnosis", max_new_tokens=None)
    parser.set_defaults(run=run)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    """What is asked."""
    parser.add_argument(
        "--suite",
        type=split_names,
        default=(),
        metavar="A,B",
        help="suites with harmful and benign items with images (organism: its own by default)",
    )
    parser.add_argument(
        "--exit-suite",
        metavar="A",
        help="suite on which vision exits are measured (default: the first harmful of --suite)",
    )
    exits = parser.add_mutually_exclusive_group()
    exits.add_argument("--no-exits", action="store_true", help="leave the vision exits out")
    exits.add_argument(
        "--only",
        choices=("exits",),
        help="the answers at vision exits alone, which is quick (default: everything)",
    )
    parser.add_argument(
        "--repair",
        type=Path,
        metavar="PATH",
        help="artifact of `vlmend repair`: diagnose the repaired model (with --only exits)",
    )
    parser.add_argument(
        "--vqa-suite", metavar="A", help="utility suite: how far answers depend on the picture"
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="first N items of every suite (default: 120)"
    )
    parser.add_argument(
        "--exit-limit",
        type=positive,
        metavar="N",
        help="first N items of --exit-suite and --vqa-suite (default: as --limit)",
    )
    parser.add_argument(
        "--control-items",
        type=positive,
        metavar="N",
        help="harmful items also asked with blank, noise and unrelated pictures (default: 40)",
    )


def _add_measure_options(parser: argparse.ArgumentParser) -> None:
    """How it is asked, judged and scored."""
    parser.add_argument(
        "--judge", metavar="NAME", help="judge of harmful requests (default: each suite's own)"
    )
    parser.add_argument(
        "--caption-tokens", type=positive, metavar="N", help="caption length (default: 128)"
    )
    parser.add_argument(
        "--caption-source",
        choices=("self", "given"),
        help="who puts pictures in words: the model, or the suite's own captions (default: self)",
    )
    parser.add_argument(
        "--maps",
        type=split_names,
        metavar="A,B",
        help="of pca, tsne, pacmap (extra 'maps'); default: pca,tsne",
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help="yes/no question of self-classification; {request} stands for the request",
    )
    parser.add_argument(
        "--reward-model",
        metavar="MODEL",
        help="folder or id of a sequence classifier that scores answers (default: none)",
    )
    parser.add_argument(
        "--toxicity",
        nargs="?",
        const="detoxify",
        choices=("detoxify", "organism", "perspective"),
        help="score answers with Detoxify (extra 'judges'), with what stands in for it in the "
        "organism's world, or with the Perspective API, which gets the answers and ends with 2026 "
        "(default: none; without a value: detoxify)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of resampling and maps (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Run the command: first all that can be checked without the model, then the model."""
    from vlmend.runs import require_no_run

    refuse_foreign_folder(args.out, *RUN_FILES)
    if not args.resume:
        require_no_run(args.out)

    from vlmend.cli.console import progress_bars, quiet_libraries
    from vlmend.diagnose import run_diagnosis
    from vlmend.diagnosis.plan import load_plan
    from vlmend.repairs.protocol import read_artifact

    quiet_libraries()
    if args.repair is not None:
        _require_only(args)
        read_artifact(args.repair)
    plan = _build_plan(args)
    loaded = load_plan(plan)
    vlm = open_model(args)
    with progress_bars() as progress:
        record = run_diagnosis(
            vlm,
            plan,
            args.out,
            arm=_load_arm(vlm, args),
            loaded=loaded,
            resume=args.resume,
            progress=progress,
            command=join_command(sys.argv[1:]),
        )
    _show(record, args.out)
    return 0


def _require_only(args: argparse.Namespace) -> None:
    """Refuse a repair in a whole diagnosis before the model is loaded."""
    from vlmend.errors import ConfigError

    if args.only is None:
        raise ConfigError(
            f"--repair {args.repair} was given without --only exits. A whole diagnosis reads "
            "activations of the model without repairs; a repaired one is diagnosed at its vision "
            "exits: add --only exits."
        )


def _load_arm(vlm: Vlm, args: argparse.Namespace) -> Arm:
    """The model as it is, or with the repair that is asked for."""
    from vlmend.cli.audit import load_arms

    return load_arms(vlm, [] if args.repair is None else [args.repair], args.out)[-1]


def _show(record: Mapping[str, Any], out: Path) -> None:
    """Print what was found; write the page and its figures."""
    from vlmend.cli.console import console, print_table, print_unmeasured
    from vlmend.report.diagnosis.page import render_diagnosis
    from vlmend.report.figures import write_figures

    if "sets" in record:
        rows = [_finding_row(finding) for finding in record["findings"]]
        print_table(record["title"], ("claim", "verdict", "value", "95 %"), rows)
    else:
        from vlmend.cli.compare_exits import print_exits
        from vlmend.evals.exit_curves import build_curves
        from vlmend.evals.exit_items import read_exit_items

        curves = [build_curves(suite) for suite in read_exit_items([out])]
        print_exits(curves)
        print_unmeasured([{"suite_kind": suite.kind} for suite in curves])
    page = render_diagnosis(record, out / "report.html")
    figures = write_figures(record, out / "figures")
    for line in (f"report: {page}", f"{len(figures)} figures: {out / 'figures'}"):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _build_plan(args: argparse.Namespace) -> DiagnosisPlan:
    """The plan that the command line asks for; an organism brings its own defaults."""
    from vlmend.diagnosis.plan import DiagnosisPlan
    from vlmend.errors import ConfigError
    from vlmend.organism.presets import DIAGNOSIS
    from vlmend.organism.vocabulary import is_organism

    asked = {name: getattr(args, name) for name in _PLAN_OPTIONS}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    given |= {"toxicity": args.toxicity, "only": args.only}
    title = f"Safety diagnosis of {args.model}"
    if args.only is not None:
        return DiagnosisPlan(title=title, **_only_exits(args, given))
    if args.suite:
        given["suites"] = args.suite
    elif is_organism(args.model):
        given = {**DIAGNOSIS, **given}
    else:
        raise ConfigError(
            "--suite is missing: name suites with harmful and benign items that have images, e.g. "
            "--suite organism/typographic,organism/benign-pictures (see `vlmend list suites`)."
        )
    if args.no_exits:
        given["exit_suite"] = given["vqa_suite"] = None
    elif "exit_suite" not in given:
        given["exit_suite"] = _first_harmful(given["suites"])
    return DiagnosisPlan(title=title, **given)


def _only_exits(args: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a diagnosis of exits alone; what would have no effect there is refused."""
    from vlmend.errors import ConfigError
    from vlmend.organism.presets import DIAGNOSIS
    from vlmend.organism.vocabulary import is_organism

    unused = ["suite"] if args.suite else []
    unused += [name for name in _NOT_AT_EXITS if name in given]
    if unused:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ConfigError(
            f"{options} would have no effect on the answers at exits, and --only {args.only} "
            "measures nothing else. Leave it out; --exit-suite names what is asked."
        )
    if is_organism(args.model):
        given = {k: v for k, v in DIAGNOSIS.items() if k not in _NOT_AT_EXITS} | given
    return given | {"suites": ()}


def _first_harmful(suites: tuple[str, ...]) -> str | None:
    """The first suite that has harmful items."""
    from vlmend.suites.registry import find_suite

    kinds = {name: find_suite(name).label_kind for name in suites}
    return next((name for name, kind in kinds.items() if kind != "benign"), None)


def _finding_row(finding: Mapping[str, Any]) -> tuple[str, str, str, str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    low, high = finding["low"], finding["high"]
    limits = "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"
    return finding["claim"], finding["verdict"], number(finding["value"]), limits
