"""Fetches published data sets: plan first, so that one sees what would come; then fetch.

Every fetch is at one commit. Where a source names none, the current one is looked up and noted,
and a later fetch into the same folder uses it again. Nothing that was fetched is run, and archives
cannot write outside of the folder.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from vlmend.errors import DataError
from vlmend.suites.github_files import GitHub
from vlmend.suites.hub_files import Hub
from vlmend.suites.prepared import Fetched, find_changed, hash_files, read_note, write_note
from vlmend.suites.sources import Source

Say = Callable[[str], None]


def _say_nothing(_line: str) -> None:
    """Report for nobody."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be fetched.

    Attributes:
        name: Name of the source.
        source: Where from.
        folder: Where to.
        revision: The commit.
        server: Whom to ask.
        sizes: Files that are known beforehand -> bytes, None where the server does not say.
    """

    name: str
    source: Source
    folder: Path
    revision: str
    server: GitHub | Hub
    sizes: dict[str, int | None] = field(default_factory=dict[str, "int | None"])

    @property
    def num_bytes(self) -> int | None:
        """Bytes that come over the line; None if nobody knows."""
        known = [size for size in self.sizes.values() if size is not None]
        return sum(known) if known and len(known) == len(self.sizes) else self.source.num_bytes


def wanted_revision(name: str, source: Source, folder: Path, revision: str | None = None) -> str:
    """Which commit, branch or tag would be fetched, as far as nobody needs to be asked.

    Args:
        name: Name of the source.
        source: Where from.
        folder: Where to.
        revision: What the user asks for; by default the commit noted in the folder, else the
            source's own.

    Returns:
        Empty where the current commit is meant.

    Raises:
        DataError: The note in the folder is damaged.
    """
    note = read_note(folder)
    noted = note.revision if note is not None and note.source == name else ""
    return revision or noted or source.revision


def make_plan(
    name: str,
    source: Source,
    folder: Path,
    revision: str | None = None,
    server: GitHub | Hub | None = None,
) -> Plan:
    """Find out what would be fetched, and at which commit.

    Args:
        name: Name of the source.
        source: Where from; not a "manual" one.
        folder: Where to.
        revision: Commit, branch or tag; by default see `wanted_revision`, else the current one.
        server: Whom to ask instead of the public servers.

    Raises:
        DataError: The server cannot be reached or says no, or there is no such revision.
    """
    assert source.kind != "manual", "nothing can be fetched from a manual source"
    wanted = wanted_revision(name, source, folder, revision)
    if source.kind == "hub":
        hub = server or Hub(source.repo)
        assert isinstance(hub, Hub)
        commit, sizes = hub.list_files(wanted or None, source.files)
        return Plan(name, source, folder, commit, hub, sizes)
    github = server or GitHub(source.repo)
    assert isinstance(github, GitHub)
    return Plan(name, source, folder, github.resolve(wanted or "HEAD"), github)


def fetch(plan: Plan, say: Say = _say_nothing) -> Fetched:
    """Fetch a data set, unpack its archives, and note what was fetched.

    What is there already, whole and of that commit, is not fetched again.

    Args:
        plan: From `make_plan`.
        say: Given a line for each step.

    Raises:
        DataError: Something cannot be fetched or unpacked, or is not what was noted before.
        RunError: The folder cannot be written.
    """
    before = read_note(plan.folder)
    if before is not None and (before.source, before.revision) != (plan.name, plan.revision):
        before = None
    if before is not None:
        changed = find_changed(plan.folder, before)
        if not changed:
            say(f"{len(before.files)} files are there already and unchanged")
            return before
        say(f"{len(changed)} files are missing or changed: they are fetched again")
        for name in changed:
            # The hub's library takes a file of the right age and size for the right one.
            (plan.folder / name).unlink(missing_ok=True)
    plan.folder.mkdir(parents=True, exist_ok=True)
    names = _fetch_files(plan, say)
    fetched = Fetched(plan.name, plan.source.url, plan.revision, hash_files(plan.folder, names))
    _compare(plan, before, fetched)
    for name in names:
        if any(fnmatch(name, pattern) for pattern in plan.source.archives):
            say(f"unpacking {name}")
            unpack(plan.folder / name)
    write_note(plan.folder, fetched)
    return fetched


def _fetch_files(plan: Plan, say: Say) -> list[str]:
    """Fetch what the source names; the paths of the files below the folder."""
    source = plan.source
    if isinstance(plan.server, Hub):
        say(f"fetching {len(plan.sizes)} files")
        plan.server.fetch_files(plan.revision, source.files, plan.folder)
        return list(plan.sizes)
    names = list(source.files)
    for name in names:
        say(f"fetching {name}")
        plan.server.fetch_file(plan.revision, name, plan.folder)
    if source.folders:
        say(f"fetching {', '.join(source.folders)} (in one piece with the whole repository)")
        names += plan.server.fetch_folders(plan.revision, source.folders, plan.folder)
    return names


def _compare(plan: Plan, before: Fetched | None, fetched: Fetched) -> None:
    """Refuse files that are not what the source or an earlier note says."""
    pinned = plan.source.sha256 if plan.source.revision in ("", plan.revision) else {}
    expected = {**pinned, **(before.files if before is not None else {})}
    wrong = [n for n, digest in fetched.files.items() if expected.get(n, digest) != digest]
    if wrong:
        raise DataError(
            f"{', '.join(map(repr, wrong[:3]))} of {plan.source.url} at {plan.revision}: another "
            "SHA-256 than noted, so what is published there has changed. Look at it; then delete "
            f"{str(plan.folder)!r} and prepare the data again, or give another --revision."
        )


def unpack(path: Path) -> None:
    """Unpack an archive where it lies; what would lead out of its folder is refused.

    Args:
        path: A zip or tar file, the latter packed in any way that `tarfile` knows.

    Raises:
        DataError: It is none, is damaged, or would write elsewhere.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                        raise zipfile.BadZipFile(f"{name!r} leads out of the folder")
                archive.extractall(path.parent)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(path.parent, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as e:
        raise DataError(
            f"{str(path)!r} cannot be unpacked: {e}. Delete it and prepare the data again."
        ) from e
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be unpacked: {error}. Is the disk full?") from error
