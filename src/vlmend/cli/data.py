"""`vlmend data prepare`: fetch a published data set, at a commit that is noted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmend.suites.registry import SuiteSpec
    from vlmend.suites.sources import Source


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "data", help="fetch the data of a suite, at a commit that is noted"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare: argparse.ArgumentParser = actions.add_parser(
        "prepare",
        help="fetch the data of a suite",
        description=(
            "Say what a suite's data is (size, licence, gating, where it goes), fetch it, check "
            "that the suite loads from it, and note the commit and the SHA-256 of every file in "
            "vlmend-source.json. A later prepare fetches the same commit."
        ),
    )
    prepare.add_argument("name", metavar="NAME", help="a suite (see `vlmend list suites`)")
    prepare.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="where to (default: $VLMEND_DATA/NAME, or ~/.cache/vlmend/data/NAME; there the "
        "suite is found without a folder)",
    )
    prepare.add_argument(
        "--revision", metavar="R", help="another commit, branch or tag than the noted one"
    )
    prepare.add_argument(
        "--dry-run", action="store_true", help="say what would be fetched, and fetch nothing"
    )
    prepare.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from vlmend.cli.console import console
    from vlmend.errors import ConfigError, DataError
    from vlmend.suites.fetching import fetch, make_plan, wanted_revision
    from vlmend.suites.prepared import data_folder
    from vlmend.suites.registry import get_suite
    from vlmend.suites.sources import find_source

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    spec = get_suite(args.name)
    found = find_source(spec.name)
    if found is None:
        raise ConfigError(
            f"suite {spec.name!r} has no data to fetch"
            + (f"; get it from {spec.source}." if spec.source else ": it comes with vlmend.")
        )
    name, source = found
    folder: Path = (args.to or data_folder(name)).expanduser()
    steps = [step.replace("{folder}", str(folder)) for step in source.steps]
    if source.kind == "manual":
        _describe(spec, source, folder, "", None)
        if not args.dry_run:
            raise DataError(
                f"{source.url} cannot be fetched by a program. By hand: {_number(steps)}"
            )
        return 0
    # Before anybody is asked: without a connection one still learns what it would be.
    known = (wanted_revision(name, source, folder, args.revision), source.num_bytes)
    _describe(spec, source, folder, *known)
    plan = make_plan(name, source, folder, args.revision)
    if (plan.revision, plan.num_bytes) != known:
        say(f"as the server says: {_size(plan.num_bytes)}, commit {plan.revision}")
    if args.dry_run:
        return 0
    fetch(plan, say)
    say(f"fetched and noted in {folder / 'vlmend-source.json'}")
    if steps:
        say(f"left to do by hand: {_number(steps)}")
    else:
        _check(name, folder, say)
    return 0


def _describe(
    spec: SuiteSpec, source: Source, folder: Path, revision: str, num_bytes: int | None
) -> None:
    """What would be fetched, on standard output."""
    from vlmend.cli.console import print_blocks

    lines = (
        spec.description,
        f"from: {source.url} at {revision or 'its current commit'}"
        if source.kind != "manual"
        else f"from: {source.url}",
        f"licence: {spec.licence}",
        "gated: log in and accept its terms first" if source.gated else "gated: no",
        f"size: {_size(num_bytes)}",
        f"to: {folder}",
    )
    print_blocks([(spec.name, lines)])


def _check(name: str, folder: Path, say: Any) -> None:
    """Load every suite of the source: what was fetched must be what they read."""
    from vlmend.suites.registry import load_suite, suite_names
    from vlmend.suites.sources import find_source

    for suite in suite_names():
        found = find_source(suite)
        if found is not None and found[0] == name:
            say(f"{suite}: {len(load_suite(f'{suite}={folder}'))} items")


def _number(steps: list[str]) -> str:
    return " ".join(f"({number}) {step}" for number, step in enumerate(steps, start=1))


def _size(num_bytes: int | None) -> str:
    """Bytes in decimal units, as download pages give them."""
    if num_bytes is None:
        return "not known beforehand"
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
