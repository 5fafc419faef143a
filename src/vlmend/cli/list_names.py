"""`vlmend list`: what there is to choose from."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WHAT = ("suites", "judges", "data", "families", "repairs")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that can be chosen.

    Attributes:
        name: Its name.
        lines: What is shown of it.
        facts: What `--json` prints of it, besides the name.
        behind: What is typed behind the name, e.g. "=FOLDER".
    """

    name: str
    lines: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    behind: str = ""


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "list", help="list suites, judges, training data, model families or repairs"
    )
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--json", action="store_true", help="print an array of JSON objects")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from vlmend.cli.console import print_blocks

    entries = {
        "suites": list_suites,
        "judges": _judges,
        "data": _data,
        "families": _families,
        "repairs": _repairs,
    }[args.what]()
    if args.json:
        facts = [{"name": entry.name, **entry.facts} for entry in entries]
        sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        return 0
    print_blocks([(entry.name + entry.behind, entry.lines) for entry in entries])
    if args.what == "suites":
        print_blocks([(OWN_FILE, OWN_FILE_LINES)])
    if args.what == "families":
        print_blocks([("measured", (_measured_line(),))])
    return 0


OWN_FILE = "FILE.jsonl"
OWN_FILE_LINES = (
    "your own items: TRL's conversational vision format, LLaVA's or VLGuard's JSON",
    "FILE.jsonl=harmful or FILE.jsonl=benign for rows that have no label of their own",
)


_ROLES = {"forget": "to forget", "retain": "to retain", "preference": "to train rewards on"}
_MODALITIES = {"text": "in words", "image": "with pictures"}
_TESTED_ON = {
    "genuine": "loader tested on the genuine files",
    "genuine-table": "loader tested on the genuine table, with stand-ins for its pictures",
    "invented": "loader tested on invented files in the published layout",
    "built-in": "built in, no files",
}


def list_suites() -> list[Entry]:
    """Every suite, sorted by name."""
    from vlmend.suites.registry import get_suite, suite_names

    return [_suite(get_suite(name)) for name in suite_names()]


def _suite(spec: Any) -> Entry:
    from vlmend.suites.prepared import find_prepared
    from vlmend.suites.sources import find_source

    prepared = find_prepared(spec.name) if spec.needs_folder else None
    source = find_source(spec.name) if spec.needs_folder else None
    facts = {
        "purpose": spec.purpose,
        "num_items": spec.num_items,
        "label_kind": spec.label_kind,
        "leak": spec.leak,
        "default_judge": spec.default_judge,
        "paper_judge": spec.paper_judge or None,
        "metric": spec.metric,
        "licence": spec.licence,
        "tested_on": spec.tested_on,
        "unchecked": spec.unchecked,
        "needs_folder": spec.needs_folder,
        "source": spec.source,
        "layout": spec.layout,
        "fetched_by": None if source is None else source[1].kind,
        "prepared": None if prepared is None else str(prepared),
        "description": spec.description,
        "citation": spec.citation,
    }
    items = "items" if spec.num_items is None else f"{spec.num_items:,} items"
    lines = (
        spec.description,
        f"{spec.purpose}: {items}, {spec.label_kind}; harm readable in the text: {spec.leak}; "
        f"licence: {spec.licence}",
        f"judge: {spec.default_judge}"
        f"{f'; its paper: {spec.paper_judge}' if spec.paper_judge else ''}",
        f"in its paper: {spec.metric}",
        f"{_TESTED_ON[spec.tested_on]}{f'; data: {spec.source}' if spec.source else ''}",
        f"number of rows not checked: {spec.unchecked}" if spec.unchecked else "",
        f"prepared: {prepared}" if prepared is not None else "",
    )
    asks_for_folder = spec.needs_folder and prepared is None
    return Entry(spec.name, lines, facts, "=FOLDER" if asks_for_folder else "")


def _judges() -> list[Entry]:
    from vlmend.judges.registry import get_judge_spec, judge_names

    return [_judge(get_judge_spec(name)) for name in judge_names()]


def _judge(spec: Any) -> Entry:
    revision = "" if spec.target else spec.build("").revision
    facts = {
        "kind": spec.kind,
        "target": spec.target,
        "revision": revision,
        "source": spec.source,
        "licence": spec.licence,
        "description": spec.description,
    }
    lines = (
        spec.description,
        f"TARGET: {spec.target}" if spec.target else f"revision: {revision}",
        f"{spec.kind}: {spec.source}; licence: {spec.licence}" if spec.source else "",
    )
    return Entry(spec.name, lines, facts, "=TARGET" if spec.target else "")


def _data() -> list[Entry]:
    from vlmend.training.data.registry import data_names, get_data

    return [
        Entry(
            spec.name,
            (
                spec.description,
                f"{' and '.join(_ROLES[role] for role in spec.roles)}; "
                f"prompts {_MODALITIES[spec.modality]}; licence: {spec.licence}",
                f"data: {spec.source}" if spec.source else "",
            ),
            {
                "roles": list(spec.roles),
                "modality": spec.modality,
                "licence": spec.licence,
                "source": spec.source,
                "description": spec.description,
            },
            "=FOLDER" if spec.needs_folder else "",
        )
        for spec in map(get_data, data_names())
    ]


def _families() -> list[Entry]:
    from vlmend.models.families import FAMILIES
    from vlmend.models.support import read_measured, read_support

    measured = read_measured()
    entries: list[Entry] = []
    for name, row in sorted(read_support().items()):
        spec = FAMILIES.get(name)
        results = [f"{use} {found.result}" for use, found in row.uses.items()]
        reasons = [f"{use}: {found.reason}" for use, found in row.uses.items() if found.reason]
        facts = {**row.record(), "notes": [] if spec is None else list(spec.notes)}
        lines = (
            f"{row.title}, {'described by a file' if row.described else 'discovered and proven'}",
            ", ".join(results),
            *reasons,
            f"measured with a stand-in, {row.stand_in}" if row.stand_in else "",
            "" if spec is None else " ".join(spec.notes),
        )
        entries.append(Entry(name, lines, facts))
    for name, reason in sorted(measured.absent.items()):
        entries.append(Entry(name, (f"no row: {reason}",), {"absent": reason}))
    return entries


def _measured_line() -> str:
    from vlmend.models.support import read_measured

    measured = read_measured()
    return f"on {measured.date}, with transformers {measured.transformers}; docs/families.md"


def _repairs() -> list[Entry]:
    from vlmend.repairs.protocol import KINDS, get_repair_spec, repair_kinds

    return [
        Entry(name, (f"fit it with: vlmend repair {name}",))
        if name in KINDS
        else Entry(name, (get_repair_spec(name).description, "a plug-in"))
        for name in repair_kinds()
    ]
