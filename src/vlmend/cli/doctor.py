"""`vlmend doctor`: prove that a model is what vlmend takes it for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmend.cli.options import add_model_options, open_model

if TYPE_CHECKING:
    from vlmend.evals.check_up import CheckUp
    from vlmend.models.checks import CheckResult

Row = tuple[str, str, str]


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="prove a model's anatomy before trusting its numbers",
        description="Load a model, run the whole family contract on it with pictures and without, "
        "and check what else can falsify numbers: hooks, pictures, chat template, batching, "
        "generation settings, memory, a repair. Exit code 2 if anything fails.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--repair", type=Path, metavar="PATH", help="also prove that a repair does something"
    )
    parser.add_argument(
        "--json", action="store_true", help="everything, with each clause, as one JSON object"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json

    from vlmend.cli.console import quiet_libraries
    from vlmend.evals.metrics import software_versions

    quiet_libraries()
    facts: dict[str, Any] = {"versions": software_versions()}
    found = _examine(args, facts)
    if args.json:
        print(json.dumps({**facts, **_plain(found)}, indent=2, ensure_ascii=False))
    else:
        _print(args.model, facts, found)
    return 0 if found.passed else 2


def _examine(args: argparse.Namespace, facts: dict[str, Any]) -> CheckUp:
    """All findings; with `--json` that the model is refused is one of them.

    Args:
        args: The command line.
        facts: Filled with what is known of model and repair.

    Raises:
        VlmendError: The model is refused, without `--json`.
    """
    from vlmend.errors import VlmendError
    from vlmend.evals.check_up import CheckUp, Finding, check_room, check_up
    from vlmend.evals.metrics import model_record
    from vlmend.repairs.protocol import load_repair

    room = check_room(args.model, args.dtype, args.device)
    if room.status == "FAIL":
        return CheckUp({}, [room])
    try:
        vlm = open_model(args)
    except VlmendError as error:
        if not args.json:  # one line, as every command says it
            raise
        return CheckUp({}, [room, Finding("loading", "FAIL", str(error))])
    facts["model"] = model_record(vlm)
    repair, refused = None, []
    if args.repair:
        try:
            repair = load_repair(args.repair, vlm)
            facts["repair"] = {"name": repair.name, "fingerprint": repair.fingerprint}
        except VlmendError as error:
            refused = [Finding("repair", "FAIL", str(error))]
    found = check_up(vlm, repair)
    return CheckUp(found.contract, [room, *found.findings, *refused])


def _plain(found: CheckUp) -> dict[str, Any]:
    return {
        "contract": [
            {"clause": r.clause, "on": on, "passed": r.passed, "evidence": r.evidence}
            for on, results in found.contract.items()
            for r in results
        ],
        "checks": [
            {"check": f.check, "status": f.status, "evidence": f.evidence} for f in found.findings
        ],
        "passed": found.passed,
    }


def _print(name: str, facts: dict[str, Any], found: CheckUp) -> None:
    """One screen: a line for each check, one more for each clause that failed."""
    rows: list[Row] = []
    if "model" in facts:
        rows.append(("model", "", _model_line(facts["model"])))
    rows.append(("versions", "", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())))
    for on, results in found.contract.items():
        rows += _contract_rows(on, results)
    rows += [(f.check, f.status, _cut(f.evidence, f.status)) for f in found.findings]
    _print_rows(name, rows)


def _model_line(model: Mapping[str, Any]) -> str:
    return (
        f"{model['family']}, {model['num_parameters']:,} parameters, weights "
        f"{model['weights_sha256'][:12]}, {model['dtype']} on {model['device']}"
    )


def _contract_rows(on: str, results: Sequence[CheckResult]) -> list[Row]:
    failed = [(r.clause, "FAIL", r.evidence) for r in results if not r.passed]
    held = len(results) - len(failed)
    status = "FAIL" if failed else "pass"
    return [(f"contract, {on}", status, f"{held} of {len(results)} clauses hold"), *failed]


_LONGEST = 240
"""Characters of what is well; what failed is shown whole, and `--json` shows all."""


def _cut(text: str, status: str) -> str:
    return text if status == "FAIL" or len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _print_rows(name: str, rows: Sequence[Row]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from vlmend.cli.console import results

    results.print(f"[italic]{escape(name)}[/italic]", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("check", overflow="fold", max_width=40)
    table.add_column("result", no_wrap=True)
    table.add_column("evidence", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    results.print(table)
