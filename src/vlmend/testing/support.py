"""Runs every use on a tiny model of every family, and writes the table of what is supported.

`python -m vlmend.testing.support --write` writes `models/support.json` and `docs/families.md`.
A use passes when it does on prompts with pictures and on words alone what it should:

- record, edit, exits: the clauses of the contract that are about them;
- ShiftDC: fitted, it moves the logits of prompts with a picture, and no bit of others;
- unlearn, layer-PPO: a step of training moves the logits of both.

All of them must leave the model as it was.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from vlmend.errors import ConfigError, VlmendError
from vlmend.evals.check_up import repair_effect
from vlmend.evals.scorers import Pair
from vlmend.hooks.contract import run_contract
from vlmend.models.checks import CheckResult
from vlmend.models.families import FAMILIES
from vlmend.models.support import (
    SUPPORT_FILE,
    USES,
    FamilySupport,
    Measured,
    Use,
    read_support,
)
from vlmend.models.vlm import Vlm
from vlmend.repairs.layer_ppo.repair import LayerPPO, Reward
from vlmend.repairs.layer_ppo.settings import LayerPPOSettings
from vlmend.repairs.shiftdc.repair import ShiftDC, ShiftDCSettings
from vlmend.repairs.unlearning.repair import Unlearning
from vlmend.repairs.unlearning.settings import UnlearningSettings
from vlmend.runs import write_json
from vlmend.testing.absent import ABSENT, LACKED_BY_LOWEST
from vlmend.testing.pictures import picture
from vlmend.testing.tiny import STAND_INS, TINY_FAMILIES, tiny_vlm
from vlmend.training.examples import Example
from vlmend.training.loop_settings import LoopSettings
from vlmend.types import Label, Sample, user

SEED = 5
"""Weights whose self-captions differ by picture: ShiftDC refuses a model that sees nothing."""

PAGE = Path(__file__).resolve().parents[3] / "docs" / "families.md"

_EXIT_CLAUSES = frozenset(
    {
        "the default exit is an exit",
        "the exit at the last block equals no exit",
        "every vision block changes what comes after",
        "an exit runs no block that it skips",
        "one run of the blocks serves every exit",
    }
)

_EDIT_CLAUSES = frozenset(
    {
        "an edit changes its layer and later ones alone",
        "a zero edit is bit-identical",
        "cache on equals cache off at every position",
        "no hook is left behind",
    }
)
"""Which of the clauses count for which use; all others count for recording."""

_LOOP = LoopSettings(steps=1, batch_size=2, lr=2e-2, schedule="constant", warmup_share=0)

_ERRORS = (
    *(VlmendError, RuntimeError, TypeError, ValueError, AttributeError, LookupError),
    *(ImportError, AssertionError),
)
"""What a use may die of: then it fails, and the others are still run."""

_REASON = 400
"""Characters of a reason, at most."""

# ---- mild data

_ASKED = ("How do I spoil the soup?", "Hide all the socks, please.", "Ring the bell and run.")
_ALLOWED = ("Name a fruit.", "What colour is that tea cup?", "Count to three.")

_BY_LABEL: Mapping[Label, Sequence[str]] = {"harmful": _ASKED, "benign": _ALLOWED}


def _samples() -> list[Sample]:
    """Both labels, with pictures and without, of unequal length."""
    return [
        Sample(
            id=f"mild/{label}/{i}",
            suite="mild",
            messages=user(text, *([picture(number)] if i else [])),
            label=label,
        )
        for label, texts in _BY_LABEL.items()
        for i, text in enumerate(texts)
        for number in [100 + 10 * i + len(text)]
    ]


def _examples(source: str, *, pictures: Sequence[bool]) -> list[Example]:
    texts = _ASKED if source == "forget" or source == "harmful" else _ALLOWED
    return [
        Example(
            id=f"{source}/{i}",
            source=source,
            messages=user(text, *([picture(i)] if shown else [])),
            answer="A cup of tea.",
            target="Sorry, no." if source == "forget" else None,
        )
        for i, text in enumerate(texts)
        for shown in [pictures[i % len(pictures)]]
    ]


class _SmallLetters:
    """Pays for small letters: a reward model that is a rule."""

    name = "small letters"

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        return [sum("a" <= c <= "z" for c in answer) / max(len(answer), 1) for _, answer in pairs]


# ---- the uses


def measure_family(family: str) -> FamilySupport:
    """Run every use on the tiny model of a family.

    Args:
        family: One of `TINY_FAMILIES`.

    Raises:
        ImportError: This transformers lacks the family, or what it needs: nothing was found out.
    """
    try:
        vlm = tiny_vlm(family, seed=SEED)
    except ImportError:
        raise
    except _ERRORS as error:
        none = {use: _failed(error) for use in USES}
        return FamilySupport(family, family in FAMILIES, none, STAND_INS.get(family, ""))
    uses = _contract_uses(vlm)
    runs: dict[str, Callable[[Vlm, Path], Use]] = {
        "ShiftDC": _shiftdc,
        "unlearn": _unlearn,
        "layer-PPO": _layer_ppo if vlm.vision_stacks else _refused,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, run in runs.items():
            uses[name] = _attempt(run, vlm, Path(folder) / name)
            if uses[name].result == "fails":
                vlm = tiny_vlm(family, seed=SEED)  # who knows what it left behind
    # A family file may not fit every model of its type; then the map is discovered.
    described = FAMILIES.get(vlm.spec.model_type) == vlm.spec
    return FamilySupport(vlm.spec.title, described, uses, STAND_INS.get(family, ""))


def _contract_uses(vlm: Vlm) -> dict[str, Use]:
    """Record, edit and exits, from the contract with pictures and without."""
    try:
        results = [
            *run_contract(vlm, images=True),
            *run_contract(vlm, images=False),
        ]
    except _ERRORS as error:
        return dict.fromkeys(("record", "edit", "exits"), _failed(error))
    special = _EXIT_CLAUSES | _EDIT_CLAUSES
    return {
        "record": _judge(r for r in results if r.clause not in special),
        "edit": _judge(r for r in results if r.clause in _EDIT_CLAUSES),
        "exits": _judge(r for r in results if r.clause in _EXIT_CLAUSES)
        if vlm.vision_stacks
        else Use("absent", shorten(vlm.spec.no_exits)),
    }


def _judge(results: Iterable[CheckResult]) -> Use:
    failed = [f"{r.clause}: {r.evidence}" for r in results if not r.passed]
    return Use("fails", shorten("; ".join(failed))) if failed else Use("pass")


def _attempt(run: Callable[[Vlm, Path], Use], vlm: Vlm, folder: Path) -> Use:
    try:
        return run(vlm, folder)
    except _ERRORS as error:
        return _failed(error)


def _refused(vlm: Vlm, folder: Path) -> Use:
    """Layer-PPO on a model without vision exits: vlmend must say so itself."""
    try:
        _layer_ppo(vlm, folder)
    except ConfigError:
        return Use("absent", "it trains at vision exits, and there are none")
    return Use("fails", "it runs without vision exits")


def _failed(error: BaseException) -> Use:
    return Use("fails", shorten(str(error) or repr(error)))


def shorten(text: str) -> str:
    """A reason on one line, without numbers that depend on the processor.

    One that is too long ends with a sentence, if it has one, or with a whole word.
    """
    line = re.sub(r"\d+(\.\d+)?e-\d+|\d+\.\d{2,}", "(number)", " ".join(text.split()))
    if len(line) <= _REASON:
        return line
    cut = line[: _REASON - 3]
    sentences, end, _ = cut.rpartition(". ")
    return f"{sentences}." if end else f"{cut.rpartition(' ')[0]}..."


def _shiftdc(vlm: Vlm, _folder: Path) -> Use:
    repair = ShiftDC(ShiftDCSettings(caption_tokens=3)).fit(vlm, _samples())
    return _require(repair_effect(vlm, repair), {"with a picture": True, "words alone": False})


def _unlearn(vlm: Vlm, folder: Path) -> Use:
    repair = Unlearning(UnlearningSettings(rank=2), _LOOP).fit(
        vlm,
        _examples("forget", pictures=(True, False)),
        _examples("retain", pictures=(True, False)),
        folder=folder,
    )
    return _require(repair_effect(vlm, repair), {"with a picture": True, "words alone": True})


def _layer_ppo(vlm: Vlm, folder: Path) -> Use:
    # By part, not by name: some decoders have one matrix for queries, keys and values.
    settings = LayerPPOSettings(max_new_tokens=3, rank=2, alpha=8.0, modules=("attention",))
    repair = LayerPPO(settings, _LOOP).fit(
        vlm,
        _examples("harmful", pictures=(True,)),
        _examples("benign", pictures=(True,)),
        folder=folder,
        reward=Reward(_SmallLetters(), name="small letters"),
    )
    return _require(repair_effect(vlm, repair), {"with a picture": True, "words alone": True})


def _require(moved: Mapping[str, float], expected: Mapping[str, bool]) -> Use:
    """Logits must move exactly where they should."""
    wrong = [
        f"{what}: the logits {'do not move' if should else 'move'}"
        for what, should in expected.items()
        if bool(moved[what]) != should
    ]
    return Use("fails", "; ".join(wrong)) if wrong else Use("pass")


# ---- the table


def _summary(row: FamilySupport) -> str:
    return ", ".join(f"{name} {use.result}" for name, use in row.uses.items())


def as_json(table: Mapping[str, FamilySupport], measured: Measured) -> dict[str, object]:
    """What `support.json` holds."""
    return {
        "written_by": "python -m vlmend.testing.support --write",
        "measured": measured.record(),
        "families": {family: table[family].record() for family in sorted(table)},
    }


def measured_now() -> Measured:
    """With the installed transformers, today."""
    return Measured(
        transformers=metadata.version("transformers"),
        date=datetime.now(UTC).date().isoformat(),
        absent=ABSENT,
        lacked_by_lowest=LACKED_BY_LOWEST,
    )


def render_page(table: Mapping[str, FamilySupport], measured: Measured) -> str:
    """`docs/families.md`."""
    counts = ", ".join(
        f"{sum(row.uses[use].result == 'pass' for row in table.values())} {use}" for use in USES
    )
    lines = [
        "# Families",
        "",
        "Written by `python -m vlmend.testing.support --write` from a run of every use on a tiny "
        "model of each family: the genuine class, random weights, prompts with pictures and in "
        "words alone, and the genuine processor where it needs no torchvision (the others are "
        f"marked *). Last written on {measured.date} with transformers {measured.transformers}. A "
        "test runs it again; do not edit it.",
        "",
        f"{len(table)} families; of these pass: {counts}. A family without a file is discovered "
        "when a model of it is loaded, and proven on that very model before it is used "
        "(`vlmend doctor MODEL`). So is any other model that transformers lists as "
        "image-text-to-text; whether its map can be proven shows then, and one whose map cannot is "
        "refused, with the clauses that failed and a map to start from "
        "(`load_vlm(..., family=FamilySpec(...))`).",
        "",
        f"| family | map | {' | '.join(USES)} |",
        "|---" * (2 + len(USES)) + "|",
    ]
    notes: list[str] = []
    for family, row in sorted(table.items()):
        cells = [row.uses[use].result for use in USES]
        origin = "file" if row.described else "discovered"
        mark = " *" if row.stand_in else ""
        lines.append(f"| `{family}`{mark} | {origin} | {' | '.join(cells)} |")
        notes += _notes(family, row)
    if notes:
        lines += ["", "## What is not there, and why", "", *notes]
    return "\n".join([*lines, *_stand_ins(table), *_limits(measured), *_absent(measured)]) + "\n"


def _stand_ins(table: Mapping[str, FamilySupport]) -> list[str]:
    marked = [f"- `{name}`: {row.stand_in}" for name, row in sorted(table.items()) if row.stand_in]
    return ["", "## * Stand-ins for processors that need torchvision", "", *marked]


def _limits(measured: Measured) -> list[str]:
    lacking = ", ".join(f"`{family}`" for family in measured.lacked_by_lowest)
    return [
        "",
        "## Versions, names and precisions",
        "",
        f"- The lowest transformers that vlmend supports (pyproject.toml) cannot build {lacking}; "
        "what else an older release gets wrong is in `tests/conftest.py`.",
        "- Kimi-VL exists in this transformers as `kimi_k25` only: checkpoints of the type "
        "`kimi_vl` bring code of their own, which vlmend does not run.",
        "- Weights are loaded in float32, bfloat16 or float16 (`--dtype`); each has a measured "
        "tolerance. `--quantise int8` (torchao) works on a CPU as well.",
        "- Checkpoints of bitsandbytes (0.50.2) do not pass on a CPU: its int8 rounds a prompt by "
        "what else is in the batch, which the clauses on padding and caching refuse, and its 4-bit "
        "weights failed in the first pass.",
    ]


def _absent(measured: Measured) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for family, reason in sorted(measured.absent.items()):
        by_reason.setdefault(reason, []).append(f"`{family}`")
    listed = [f"- {', '.join(names)}: {reason}." for reason, names in by_reason.items()]
    return [
        "",
        "## Listed by transformers, without a row",
        "",
        f"What transformers {measured.transformers} lists as image-text-to-text besides:",
        "",
        *listed,
    ]


def _notes(family: str, row: FamilySupport) -> list[str]:
    """Why something is not there: one line for all uses that have the same reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for name, use in row.uses.items():
        if use.reason:
            by_reason.setdefault((use.result, use.reason), []).append(name)
    return [
        f"- `{family}`, {', '.join(names)}: {result}, because {_plain(reason)}"
        for (result, reason), names in by_reason.items()
    ]


def _plain(reason: str) -> str:
    """A reason that Markdown shows as it is."""
    return f"`{reason.replace('`', chr(39))}`"


def main(argv: Sequence[str] | None = None) -> int:
    """Run every use on every family, or on those named; `--write` stores what came out."""
    parser = argparse.ArgumentParser(prog="python -m vlmend.testing.support")
    parser.add_argument("families", nargs="*", help="run these only (default: all)")
    parser.add_argument("--write", action="store_true", help="store table and page")
    args = parser.parse_args(argv)
    stored = read_support() if SUPPORT_FILE.exists() else {}
    table = {family: row for family, row in stored.items() if family in TINY_FAMILIES}
    for family in args.families or sorted(TINY_FAMILIES):
        row = table[family] = measure_family(family)
        reasons = [f"  {name}: {use.reason}\n" for name, use in row.uses.items() if use.reason]
        sys.stdout.write(f"{family}: {_summary(row)}\n{''.join(reasons)}")
        sys.stdout.flush()
        if args.write:
            write_json(SUPPORT_FILE, as_json(table, measured_now()))
    if args.write:
        PAGE.write_text(render_page(table, measured_now()), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
