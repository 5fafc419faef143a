"""Every suite by name, and the one way to load one: `load_suite("figstep=/data/figstep")`.

A suite is a `SuiteSpec` in the `SPECS` tuple of its module. Built-in modules stand in
`PROVIDERS` and are imported only when a name of theirs is asked for, or all names are listed.
Other packages offer a suite through an entry point of the group "vlmend.suites" whose name is
the suite's name and whose object is the `SuiteSpec`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal, Protocol

from vlmend.errors import ConfigError, DataError, UnknownNameError
from vlmend.plugins import index_plugins, load_plugin
from vlmend.types import Sample, Verdict

ENTRY_POINT_GROUP = "vlmend.suites"

PROVIDERS: list[tuple[str, str]] = [
    ("advbench", "vlmend.suites.advbench"),
    ("beavertails", "vlmend.suites.beavertails"),
    ("catqa", "vlmend.suites.catqa"),
    ("figstep", "vlmend.suites.figstep"),
    ("hades", "vlmend.suites.hades"),
    ("harmbench-", "vlmend.suites.harmbench"),
    ("hh-rlhf-", "vlmend.suites.hh_rlhf"),
    ("holisafe", "vlmend.suites.holisafe"),
    ("jailbreakbench", "vlmend.suites.jailbreakbench"),
    ("jailbreakv-28k", "vlmend.suites.jailbreakv_28k"),
    ("llava-bench-coco", "vlmend.suites.llava_bench"),
    ("mm-safetybench-", "vlmend.suites.mm_safetybench"),
    ("mm-vet", "vlmend.suites.mm_vet"),
    ("mmbench", "vlmend.suites.mmbench"),
    ("mme", "vlmend.suites.mme"),
    ("mossbench", "vlmend.suites.mossbench"),
    ("nlvr", "vlmend.suites.nlvr"),
    # Above us in the import order, hence by name: the organism's suites need its world.
    ("organism/", "vlmend.organism.suites"),
    ("pku-saferlhf", "vlmend.suites.pku_saferlhf"),
    ("pope-", "vlmend.suites.pope"),
    ("redteam-2k", "vlmend.suites.redteam_2k"),
    ("siuo-", "vlmend.suites.siuo"),
    ("strongreject", "vlmend.suites.strongreject"),
    ("truthfulqa", "vlmend.suites.truthfulqa"),
    ("vlguard-", "vlmend.suites.vlguard"),
    ("vlsbench", "vlmend.suites.vlsbench"),
    ("vqav2", "vlmend.suites.vqav2"),
    ("xstest", "vlmend.suites.xstest"),
]
"""(prefix of the suite names, module that holds them in `SPECS`); `register_lazy` appends."""

OWN_FILE_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
"""A suite that is asked for by a name with such an ending is a file of the user's."""

_registered: dict[str, SuiteSpec] = {}

NO_JUDGE = "none: "
"""How `SuiteSpec.paper_judge` begins where no judge is the paper's; what follows says why."""

TestedOn = Literal["genuine", "genuine-table", "invented", "built-in"]
"""See `SuiteSpec.tested_on`."""

Scores = Callable[[Sequence[Sample], Sequence[Verdict]], Mapping[str, float | None]]
"""Numbers of a paper, from items and their verdicts in the same order."""


@dataclass(frozen=True, slots=True)
class SuiteSpec:
    """What a suite is, and how it is loaded.

    Attributes:
        name: Unique name, as typed by users; lower case.
        description: One line: what is asked, how.
        licence: Licence of the data, e.g. "MIT".
        citation: BibTeX key, authors, title and venue in one line.
        metric: What its paper reports.
        default_judge: Name of the judge used when none is asked for.
        leak: Whether the harm is readable in the question's text: "yes", "no" or "mixed".
            On a "no" suite no text-only defence is expected to work.
        label_kind: Labels that its samples carry: all "harmful", all "benign" or "mixed".
        needs_folder: Whether the user must name a folder or file with the data.
        load: `load(folder_or_file, limit)` -> samples; called through `load_suite`. With a
            limit it yields the first `limit` samples, after checking the whole table.
        source: Where the data is published; printed when the folder is missing.
        layout: Which files the folder must hold; printed when the folder is missing.
        harmful_reference: Whether `Sample.reference` of a harmful item is the harmful answer that
            attacks aim for, and not a good one.
        purpose: What a compliant answer to its benign items shows: "safety" and "over-refusal"
            count them as answered, "utility" as answered rightly.
        num_items: Samples of the published data; None where that is not fixed.
        unchecked: Which of its files are not held against the published number of rows, because
            that number is not known here; empty where all are.
        tested_on: Whether its loader is tested on "genuine" files, on a "genuine-table" whose
            pictures are stood in for, or on "invented" files in the published layout; "built-in"
            needs no file. `tests/reference` loads those that say "genuine...".
        paper_judge: Name of the judge that its paper used, where that is another one than
            `default_judge`; it may need a model or an endpoint. Where there is no such judge,
            `NO_JUDGE` and why: then `default_judge` is not the paper's.
        breakdown: Keys of `Sample.meta` by which rates are also shown apart.
        macro: The key of `breakdown` over whose values the paper averages rates; none for all
            items alike.
        scores: `scores(samples, verdicts)` -> numbers of the paper that are no rate of verdicts
            (F1, accuracy+ ...), by name; None where they cannot be computed.
    """

    name: str
    description: str
    licence: str
    citation: str
    metric: str
    default_judge: str
    leak: Literal["yes", "no", "mixed"]
    label_kind: Literal["harmful", "benign", "mixed"]
    needs_folder: bool
    load: Callable[[Path | None, int | None], list[Sample]]
    source: str = ""
    layout: str = ""
    harmful_reference: bool = False
    purpose: Literal["safety", "over-refusal", "utility"] = "safety"
    num_items: int | None = None
    tested_on: TestedOn = "invented"
    paper_judge: str = ""
    breakdown: tuple[str, ...] = ()
    macro: str = ""
    scores: Scores | None = None
    unchecked: str = ""


@dataclass(frozen=True, slots=True)
class Skip:
    """What a loader left out, so that a run can say so.

    Attributes:
        count: How many.
        reason: Of what, and why: "rows in which human and assistant do not take turns".
    """

    count: int
    reason: str


class Samples(list[Sample]):
    """The samples of a suite, and what was left out before the last of them.

    A loader that leaves nothing out may return a plain list.

    Attributes:
        skips: What was left out.
    """

    def __init__(self, samples: Iterable[Sample], skips: Iterable[Skip] = ()) -> None:
        """Keep samples with what was left out.

        Args:
            samples: The samples.
            skips: What was left out; those of nothing are dropped.
        """
        super().__init__(samples)
        self.skips = tuple(skip for skip in skips if skip.count)


def register(spec: SuiteSpec) -> None:
    """Add a suite for this process.

    Raises:
        ConfigError: Another suite has that name, or the name cannot be typed as NAME=FOLDER.
    """
    check_name("suite", spec.name)
    if _registered.get(spec.name, spec) is not spec:
        raise ConfigError(f"two suites are named {spec.name!r}; rename one of them.")
    _registered[spec.name] = spec


def register_lazy(prefix: str, module: str) -> None:
    """Have suites whose names start with `prefix` come from `module.SPECS`, imported on demand."""
    if (prefix, module) not in PROVIDERS:
        PROVIDERS.append((prefix, module))


def get_suite(name: str) -> SuiteSpec:
    """Look a suite up by its exact name, or by the path of a file of one's own.

    Raises:
        UnknownNameError: No such suite; says which exist and the nearest one.
        ConfigError: A plug-in offers something else than a suite of its own name, or a file of
            one's own is named like a suite.
        DataError: A name with an ending of `OWN_FILE_ENDINGS` is no file.
    """
    if name.lower().endswith(OWN_FILE_ENDINGS):
        return _own_suite(name)
    plugins = _load_named(name)
    if name in _registered:
        return _registered[name]
    if name not in plugins:
        raise UnknownNameError("suite", name, suite_names())
    return load_plugin("suite", plugins[name], SuiteSpec)


def _load_named(name: str) -> dict[str, EntryPoint]:
    """Register the built-in suite of that name, if there is one; all plug-ins by name."""
    for prefix, module in PROVIDERS:
        if name.startswith(prefix):
            _load_provider(module)
    return _plugins()


def suite_names() -> tuple[str, ...]:
    """Names of all suites, sorted: built-in, registered and installed as plug-ins."""
    for _, module in PROVIDERS:
        _load_provider(module)
    return tuple(sorted({*_registered, *_plugins()}))


def load_suite(text: str, limit: int | None = None) -> Samples:
    """Load the samples of a suite as the command line names it.

    Args:
        text: "NAME", or "NAME=FOLDER_OR_FILE" for a suite that reads data files (one that
            `vlmend data prepare` fetched needs no folder); or "FILE.jsonl" for a file of one's
            own, with "=harmful" or "=benign" behind it for rows that do not say (`own_files`).
        limit: Keep the first `limit` samples only; at least 1.

    Returns:
        At least one sample; ids are unique. `skips` says what the loader left out.

    Raises:
        UnknownNameError: No such suite.
        ConfigError: A folder is missing or not wanted, or the limit is below 1.
        DataError: The folder, a file, a row or an image cannot be used, or nothing is in it.
    """
    name, equals, behind = text.partition("=")
    given = behind.strip() if equals else None
    spec = get_suite(name.strip())
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit} is not possible: at least 1, or none for all samples.")
    if name.strip().lower().endswith(OWN_FILE_ENDINGS):
        spec, given = _own_suite(name.strip(), given), None
    elif given is None and spec.needs_folder:
        given = _prepared_folder(spec.name)
    folder = check_folder("suite", spec, given)
    samples = spec.load(folder, limit)
    if not samples:
        where = f" from {str(folder)!r}" if folder else ""
        raise DataError(f"suite {spec.name!r} is empty: no sample was read{where}.")
    check_ids(f"suite {spec.name!r}", "sample", samples)
    return Samples(samples[:limit], samples.skips if isinstance(samples, Samples) else ())


def absolute_source(text: str) -> str:
    """What to ask `load_suite` for to get the same suite from any working folder.

    Args:
        text: As for `load_suite`.

    Example:
        >>> absolute_source("xstest"), absolute_source("figstep=/data/figstep")
        ('xstest', 'figstep=/data/figstep')
    """
    name, equals, behind = (part.strip() for part in text.partition("="))
    if name.lower().endswith(OWN_FILE_ENDINGS):
        return f"{Path(name).expanduser().resolve()}{equals}{behind}"
    return f"{name}={Path(behind).expanduser().resolve()}" if behind else name


def source_name(text: str) -> str:
    """The name of a suite or data set that is asked for as NAME or NAME=FOLDER.

    Example:
        >>> source_name("xstest"), source_name("figstep=/data/figstep")
        ('xstest', 'figstep')
    """
    return text.partition("=")[0].strip()


def find_suite(text: str) -> SuiteSpec:
    """The suite that is asked for as NAME or NAME=FOLDER.

    Raises:
        UnknownNameError: As `get_suite`.
    """
    return get_suite(source_name(text))


class FromFolder(Protocol):
    """Something that is asked for as NAME or NAME=FOLDER: a suite, or a training data set."""

    @property
    def name(self) -> str:
        """Unique name."""
        ...

    @property
    def needs_folder(self) -> bool:
        """Whether the user must name a folder or file with the data."""
        ...

    @property
    def source(self) -> str:
        """Where the data is published."""
        ...

    @property
    def layout(self) -> str:
        """Which files the folder must hold."""
        ...


class Identified(Protocol):
    """Something with an id that is to be unique."""

    @property
    def id(self) -> str:
        """The id."""
        ...


def check_name(kind: str, name: str) -> None:
    """Refuse a name that cannot be typed as NAME=FOLDER.

    Args:
        kind: What is named, e.g. "suite".
        name: Its name.

    Raises:
        ConfigError: It cannot be typed.
    """
    if not name or "=" in name or "," in name or name != name.strip():
        raise ConfigError(
            f"{kind} name {name!r} cannot be used: it must not be empty and must not hold "
            f"'=', ',' or outer spaces, because {kind}s are asked for as NAME or NAME=FOLDER."
        )


def check_folder(kind: str, spec: FromFolder, given: str | None) -> Path | None:
    """The existing path that the user named, or None for a spec that takes none.

    Args:
        kind: What the spec describes, e.g. "suite".
        spec: What was asked for.
        given: What stands behind the equals sign; None without one.

    Raises:
        ConfigError: A folder is missing or not wanted.
        DataError: It does not exist.
    """
    if not spec.needs_folder:
        if given is not None:
            raise ConfigError(
                f"{kind} {spec.name!r} takes no folder, but {given!r} was given. "
                f"Write just {spec.name}."
            )
        return None
    if not given:
        details = f" It must hold {spec.layout}." if spec.layout else ""
        details += f" Published at {spec.source}." if spec.source else ""
        details += _fetch_hint(spec.name) if kind == "suite" else ""
        raise ConfigError(
            f"{kind} {spec.name!r} needs the folder with its data files and none was given. "
            f"Write {spec.name}=FOLDER.{details}"
        )
    try:
        path = Path(given).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # no rights, name too long; no such home
        raise DataError(f"{kind} {spec.name!r}: cannot look at {given!r}: {error}.") from error
    if not exists:
        raise DataError(
            f"{kind} {spec.name!r}: {given!r} does not exist (looked from {str(Path.cwd())!r}). "
            f"Give an existing folder{f' with {spec.layout}' if spec.layout else ''}."
        )
    return path


def check_ids(where: str, kind: str, items: Iterable[Identified]) -> None:
    """Refuse ids that occur twice: runs resume and pair by id.

    Args:
        where: Whose items they are, e.g. "suite 'figstep'".
        kind: What they are, e.g. "sample".
        items: All of them.

    Raises:
        DataError: Naming the first id that occurs twice.
    """
    seen: set[str] = set()
    for number, item in enumerate(items, start=1):
        if item.id in seen:
            raise DataError(
                f"{where}: {kind} {number} has the id {item.id!r}, which an earlier {kind} has "
                "already. Make the ids unique."
            )
        seen.add(item.id)


def _own_suite(name: str, label: str | None = None) -> SuiteSpec:
    """The suite that a file of the user's is, see `own_files`.

    Raises:
        ConfigError: Another suite has its name, or the label is not known.
        DataError: There is no such file.
    """
    # Here and not above, as the suites are: that module needs the spec from this one.
    from vlmend.suites.own_files import build_spec

    spec = build_spec(name, label)
    if spec.name in {*_load_named(spec.name), *_registered}:
        raise ConfigError(
            f"the suite file {name!r} would be named {spec.name!r}, which is the name of a "
            f"published suite. Rename the file, or write {spec.name}=FOLDER for the published one."
        )
    return spec


def _fetch_hint(name: str) -> str:
    """How a suite's files can be fetched, for an error; empty for a suite without a source."""
    from vlmend.suites.sources import find_source

    return f" Or fetch it once: vlmend data prepare {name}" if find_source(name) else ""


def _prepared_folder(name: str) -> str | None:
    """Where `vlmend data prepare` put the files of a suite; None where it did not."""
    from vlmend.suites.prepared import find_prepared

    folder = find_prepared(name)
    return None if folder is None else str(folder)


def _load_provider(module: str) -> None:
    """Import a module and register its `SPECS`."""
    for spec in importlib.import_module(module).SPECS:
        register(spec)


def _plugins() -> dict[str, EntryPoint]:
    """Installed plug-ins by suite name.

    Raises:
        ConfigError: A name is taken twice; neither is preferred silently.
    """
    ours = dict.fromkeys(_registered, "vlmend")
    return index_plugins("suite", entry_points(group=ENTRY_POINT_GROUP), ours)
