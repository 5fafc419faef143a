"""The run folder: what was asked (`run.json`), what was answered (append-only JSON lines).

A run survives being killed at any moment. A batch of lines is written and synced to disk
before the next batch begins; a line that was cut by a crash is dropped when the folder is
opened again; whole files (`run.json`, `metrics.json`) are written beside and moved in place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Generator, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from vlmend.errors import RunError
from vlmend.types import sha256_json

SCHEMA = 1


def _io_error(path: Path, error: OSError) -> RunError:
    """The error of a file that could not be written."""
    hint = "Check the path and its rights."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = (
            "Free some space and run the same command with --resume; what was written stays valid."
        )
    return RunError(f"cannot write {str(path)!r}: {error.strerror or error}. {hint}")


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A temporary path beside `path` that takes its place only if the block ends well.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise _io_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: Missing, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"cannot read {str(path)!r}: {error}. It must be a JSON object.") from error
    if not isinstance(value, dict):
        raise RunError(f"{str(path)!r} holds a {type(value).__name__}; it must be a JSON object.")
    return cast("dict[str, Any]", value)


class JsonLines:
    """An append-only file of JSON objects, one a line.

    Attributes:
        path: The file; made on first append.
    """

    def __init__(self, path: Path) -> None:
        """Open, and cut off a last line that a crash left half-written."""
        self.path = path
        if path.exists():
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole != len(data):
                os.truncate(path, whole)

    def read(self) -> list[dict[str, Any]]:
        """All objects so far.

        Raises:
            RunError: A complete line is not JSON, so the file was changed by someone else.
        """
        if not self.path.exists():
            return []
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(self.path.read_text("utf-8").splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise RunError(
                    f"line {number} of {str(self.path)!r} is damaged: {error}. "
                    "Delete that line; its item is then answered again."
                ) from error
        return rows

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add objects and return only when they are on the disk.

        Raises:
            RunError: The disk is full; the file is cut back to what it was.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        start = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, start)
            raise _io_error(self.path, error) from error


class RunFolder:
    """A folder that holds one run.

    Attributes:
        path: The folder.
        responses: `responses.jsonl`.
        info: Contents of `run.json`.
    """

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        self.path = path
        self.info = info
        self.responses = JsonLines(path / "responses.jsonl")

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, path: Path, config: Mapping[str, Any], facts: Mapping[str, Any], *, resume: bool
    ) -> Generator[RunFolder]:
        """Start a run, or go on with an interrupted one.

        `run.json` gets the status "running", then "finished", "interrupted" (Ctrl-C) or "failed".

        Args:
            path: The folder; made if missing.
            config: What decides the answers. A resumed run must have the same.
            facts: What else is worth knowing (versions, command line ...).
            resume: Go on where an earlier run with this config stopped.

        Raises:
            RunError: The folder holds a run and `resume` is off, or holds another run, or is
                in use, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("w")
        except OSError as error:
            raise _io_error(path, error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(
                    f"{str(path)!r} is in use by another vlmend process. "
                    "Wait for it or choose another --out."
                ) from error
            run = cls(path, cls._start(path, config, facts, resume=resume))
            status = "failed"
            try:
                yield run
                status = "finished"
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                run.info |= {"status": status, "ended": _now()}
                write_json(path / "run.json", run.info)

    @staticmethod
    def _start(
        path: Path, config: Mapping[str, Any], facts: Mapping[str, Any], *, resume: bool
    ) -> dict[str, Any]:
        file = path / "run.json"
        info: dict[str, Any] = {
            "schema": SCHEMA,
            "status": "running",
            "started": _now(),
            "config": dict(config),
            "config_sha256": sha256_json(config),
            **facts,
        }
        if file.exists():
            old = read_json(file)
            if not resume:
                raise RunError(
                    f"{str(path)!r} holds a run already (status {old.get('status')!r}). Give "
                    "--resume to go on with it, or another --out."
                )
            _require_same(path, old.get("config", {}), dict(config))
            info["started"] = old.get("started", info["started"])
        write_json(file, info)
        return info


def _require_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    different = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if different:
        shown = "; ".join(
            f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in different
        )
        raise RunError(
            f"{str(path)!r} holds another run and cannot be resumed with these settings "
            f"({shown[:600]}). Use the same settings, or another --out."
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
