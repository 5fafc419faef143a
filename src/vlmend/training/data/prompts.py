"""Prompts for training at vision exits: of any data set or suite, a picture with each of them.

Harmful prompts come from forget data or from the harmful items of a suite, benign ones from
retain data or a suite's benign items. The model answers them itself, so an answer need not be
known; where one is, it is kept. A prompt without a picture gets one of a folder of benign
pictures, chosen by its id: without any, no exit would make a difference.

Reference: Bachu et al. (ICML 2025, arXiv 2411.04291) train on the requests of RedTeam-2K beside
benign pictures: `load_prompts("redteam-2k=FOLDER", role="harmful", pictures=FOLDER)`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal

from vlmend.errors import ConfigError, DataError, UnknownNameError
from vlmend.evals.run import check_images
from vlmend.images import SUFFIXES
from vlmend.suites.registry import SuiteSpec, find_suite, load_suite, source_name, suite_names
from vlmend.training.data.registry import Role, data_names, get_data, load_training_data
from vlmend.training.data.selection import Collector, Selection
from vlmend.training.examples import Example
from vlmend.types import Conversation, ImageRef, Sample

PromptRole = Literal["harmful", "benign"]
"""What complying with a prompt would be."""

DATA_ROLES: Mapping[PromptRole, Role] = {"harmful": "forget", "benign": "retain"}
"""Which data sets have such prompts."""

REPEATED = "that repeat an earlier prompt"


def _ignore(_line: str) -> None:
    """Report for nobody."""


def load_prompts(
    text: str,
    *,
    role: PromptRole,
    limit: int | None = None,
    pictures: Path | None = None,
    seed: int = 0,
    report: Callable[[str], None] = _ignore,
) -> list[Example]:
    """Load prompts as the command line names them; no model is needed.

    Args:
        text: "NAME" or "NAME=FOLDER_OR_FILE" of a data set or, if no data set has the name, of
            a suite.
        role: Which prompts: those of forget data or the harmful items, or those of retain data
            or the benign items.
        limit: Keep the first `limit` of them only; at least 1.
        pictures: A folder with benign pictures, for prompts that have none; folders in it are
            searched, too.
        seed: Which picture a prompt gets; that depends on it, the prompt's id and the names of
            the pictures alone.
        report: Given lines on how many prompts were taken, and left out and why.

    Returns:
        At least one example, each with a picture. Its answer is the data's (in harmful prompts
        of a suite only a documented harmful one, where another reference is the target), or None.

    Raises:
        UnknownNameError: Neither a data set nor a suite.
        ConfigError: As `load_training_data` and `load_suite`; or prompts without a picture, and
            no folder of pictures.
        DataError: Likewise; or no prompt of this role, a folder without pictures, or a picture
            that cannot be decoded.
    """
    name = source_name(text)
    if name in data_names():
        examples = load_training_data(text, role=DATA_ROLES[role], limit=limit, report=report)
    elif name in suite_names():
        examples = _load_suite_prompts(text, role, limit, report)
    else:
        raise UnknownNameError("source of prompts", name, sorted({*data_names(), *suite_names()}))
    prompts, repeated = _drop_repeated(examples)
    paired = add_pictures(prompts, pictures, seed)
    check_images(Sample(e.id, e.source, e.messages, role) for e in paired)
    given = sum(not example.images for example in prompts)
    line = Selection(paired, {REPEATED: repeated} if repeated else {}).describe()
    beside = f", {given} of them beside a picture of {str(pictures)!r}" if given else ""
    report(f"{name} as {role} prompts: {line}{beside}.")
    return paired


# ---- suites


def _load_suite_prompts(
    text: str, role: PromptRole, limit: int | None, report: Callable[[str], None]
) -> list[Example]:
    spec = find_suite(text)
    if spec.label_kind not in ("mixed", role):
        raise ConfigError(
            f"suite {spec.name!r} holds {spec.label_kind} items only, and was asked for {role} "
            f"prompts. Give it as {spec.label_kind} prompts, or another suite."
        )
    # Of a mixed suite, so many of the role, not of the items.
    samples = load_suite(text, None if spec.label_kind == "mixed" else limit)
    found = Collector()
    for sample in samples:
        if sample.label == role:
            found.add(_build_prompt(sample, spec))
        else:
            found.leave_out(f"that are {sample.label}")
    selection = found.first(limit)
    if not selection.examples:
        raise DataError(
            f"suite {spec.name!r}: {selection.describe()}. It has no {role} prompt; give another."
        )
    if selection.left_out:
        report(f"suite {spec.name}: {selection.describe()}.")
    return selection.examples


def _build_prompt(sample: Sample, spec: SuiteSpec) -> Example:
    """A suite's item as an example: what a harmful one is to be answered with is its target."""
    reference = sample.reference or None
    is_target = sample.label == "harmful" and not spec.harmful_reference
    return Example(
        id=sample.id,
        source=sample.suite,
        messages=sample.messages,
        answer=None if is_target else reference,
        target=reference if is_target else None,
        meta=sample.meta,
    )


def _drop_repeated(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """Data sets have one prompt with several answers; here it is one prompt."""
    first: dict[Conversation, Example] = {}
    for example in examples:
        first.setdefault(example.messages, example)
    return list(first.values()), len(examples) - len(first)


# ---- pictures


def add_pictures(examples: Sequence[Example], folder: Path | None, seed: int) -> list[Example]:
    """Put a picture of a folder beside every prompt that has none.

    Args:
        examples: Prompts, with or without pictures.
        folder: The pictures; not looked at where every prompt has one.
        seed: Which picture a prompt gets, see `load_prompts`.

    Returns:
        The same prompts in the same order. The picture stands before the words of the last
        message; `meta["beside"]` is its name in the folder.

    Raises:
        ConfigError: There is a prompt without a picture, and no folder.
        DataError: The folder cannot be read or has no pictures.
    """
    without = [example for example in examples if not example.images]
    if not without:
        return list(examples)
    if folder is None:
        raise _no_pictures(without, len(examples))
    names = find_pictures(folder)

    def pair(example: Example) -> Example:
        name = Random(f"{seed}/{example.id}").choice(names)
        *before, last = example.messages
        picture = ImageRef(path=folder / name)
        asked = replace(last, content=(picture, *last.content))
        meta = {**example.meta, "beside": name}
        return replace(example, messages=(*before, asked), meta=meta)

    return [example if example.images else pair(example) for example in examples]


def _no_pictures(without: Sequence[Example], total: int) -> ConfigError:
    source = without[0].source
    others = [name for name in data_names() if get_data(name).modality == "image"]
    return ConfigError(
        f"{len(without)} of {total} prompts of {source!r} have no picture, the first is "
        f"{without[0].id!r}. A vision exit makes no difference to a prompt without one. Give a "
        "folder of benign pictures to put beside them (--pictures FOLDER), or data with pictures "
        f"({', '.join(others)}, or a suite)."
    )


def find_pictures(folder: Path) -> list[str]:
    """The pictures in a folder and in the folders in it, by their names; none is opened.

    Args:
        folder: Where to look. Hidden files and folders are left out.

    Returns:
        At least one path below the folder, with "/", in order.

    Raises:
        DataError: No folder, one that cannot be read, or no pictures in it.
    """
    if not folder.is_dir():
        raise DataError(
            f"{str(folder)!r} is no folder of pictures (looked from {str(Path.cwd())!r}). Give "
            "an existing folder."
        )
    names: list[str] = []
    others: Counter[str] = Counter()
    for root, folders, files in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(root, name) for name in files if not name.startswith(".")):
            if path.suffix.lower() in SUFFIXES:
                names.append(path.relative_to(folder).as_posix())
            else:
                others[path.suffix or "no ending"] += 1
    if not names:
        there = ", ".join(f"{count} of {ending}" for ending, count in others.most_common(3))
        raise DataError(
            f"folder {str(folder)!r} holds no pictures (other files: {there or 'none'}). Allowed "
            f"are {', '.join(SUFFIXES)}. Give a folder with at least one."
        )
    return sorted(names)


def _refuse_folder(error: OSError) -> None:
    raise DataError(
        f"cannot look into {error.filename!r}: {error.strerror or error}. Check the rights of the "
        "folder of pictures."
    ) from error
