"""`vlmend doctor`: prove that a model is what vlmend takes it for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vlmend.cli.options import add_model_options, open_model


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="prove a model's anatomy before trusting its numbers",
        description="Load a model and run the whole family contract on it: shape, invariant and "
        "causal effect. Exit code 2 if a clause fails.",
    )
    add_model_options(parser)
    parser.add_argument("--repair", type=Path, metavar="PATH", help="also load and apply a repair")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json

    from vlmend.cli.console import print_table, quiet_libraries
    from vlmend.evals.metrics import model_record, software_versions
    from vlmend.hooks.contract import run_contract
    from vlmend.repairs.protocol import load_repair

    quiet_libraries()
    vlm = open_model(args)
    facts: dict[str, Any] = {"model": model_record(vlm), "versions": software_versions()}
    if args.repair:
        repair = load_repair(args.repair, vlm)
        with repair.apply(vlm):
            facts["repair"] = {"name": repair.name, "fingerprint": repair.fingerprint}
    results = run_contract(vlm)
    passed = all(result.passed for result in results)
    if args.json:
        rows = [{"clause": r.clause, "passed": r.passed, "evidence": r.evidence} for r in results]
        print(json.dumps({**facts, "contract": rows, "passed": passed}, indent=2))
        return 0 if passed else 2
    lines = [(f"{key}", str(value)) for key, value in facts["model"].items()]
    lines += [(f"{key} version", value) for key, value in facts["versions"].items()]
    lines += [(f"repair {key}", value) for key, value in facts.get("repair", {}).items()]
    print_table(f"{args.model}", ("fact", "value"), lines)
    rows = [(r.clause, "pass" if r.passed else "FAIL", r.evidence) for r in results]
    print_table("Contract", ("clause", "result", "evidence"), rows)
    return 0 if passed else 2
