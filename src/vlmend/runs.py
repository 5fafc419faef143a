"""The run folder: what was asked (`run.json`), what was answered (append-only JSON lines).

A run survives being killed at any moment. A batch of lines is written and synced to disk
before the next batch begins; a line that was cut by a crash is not read, and dropped before the
next is added; whole files (`run.json`, `metrics.json`) are written beside and moved in place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

from vlmend.errors import RunError
from vlmend.types import sha256_json

SCHEMA = 1

_SHOWN = 5
"""Differences named in an error."""

_SHORT = 60
"""Characters of a value shown in an error."""

_BLOCK = 65_536
"""Bytes read at a time when looking for the last newline of a file."""


def _io_error(path: Path, error: OSError) -> RunError:
    """The error of a file that could not be written."""
    hint = "Check the path and its rights."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = (
            "Free some space and run the same command with --resume; what was written stays valid."
        )
    return RunError(f"cannot write {str(path)!r}: {error.strerror or error}. {hint}")


def _sync(path: Path) -> None:
    """Return when a file's contents, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        # Contents before name: a power cut must not leave the new name on an empty file.
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _io_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        RunError: The disk is full or the folder cannot be written.
        ValueError: A number is NaN or infinite, which JSON does not know: a bug of ours.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_bytes(encode_json_text(text))


def encode_json_text(text: str) -> bytes:
    r"""UTF-8, with lone surrogates (undecodable file names) as the escapes that JSON has for them.

    Example:
        >>> encode_json_text('"caf\u00e9 \udc80"')
        b'"caf\xc3\xa9 \\udc80"'
    """
    return text.encode("utf-8", "backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: Missing, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror or error}.") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise RunError(f"cannot read {str(path)!r}: {error}. It must be a JSON object.") from error
    if not isinstance(value, dict):
        raise RunError(f"{str(path)!r} holds a {type(value).__name__}; it must be a JSON object.")
    return cast("dict[str, Any]", value)


class JsonLines:
    """An append-only file of JSON objects, one a line. Reading never changes it.

    Attributes:
        path: The file; made, with its folder, on first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All objects so far; a last line that a crash left half-written is none.

        Raises:
            RunError: The file cannot be read, or a complete line is no JSON object, so the file
                was changed by someone else.
        """
        try:
            # By newline alone: answers may hold other characters that str.splitlines splits at.
            *lines, _cut_off = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"cannot read {str(self.path)!r}: {error.strerror or error}.") from error
        return [self._parse(number, line) for number, line in enumerate(lines, start=1)]

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
            problem = "" if isinstance(row, dict) else f"it holds a {type(row).__name__}"
        except ValueError as error:  # not UTF-8, or not JSON
            row, problem = {}, str(error)
        if problem:
            raise RunError(
                f"line {number} of {str(self.path)!r} is damaged: {problem}. "
                "Delete that line; what stood there is then computed again."
            )
        return cast("dict[str, Any]", row)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add objects and return only when they are on the disk.

        Raises:
            RunError: The disk is full; the file is cut back to what it was.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        start: int | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            with self.path.open("ab") as file:
                start = self._drop_half_line()
                file.write(encode_json_text(text))
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                _sync(self.path.parent)
        except OSError as error:
            if start is not None:
                # If even that fails, the cut line is dropped before the next append.
                with contextlib.suppress(OSError):
                    os.truncate(self.path, start)
            raise _io_error(self.path, error) from error

    def _drop_half_line(self) -> int:
        """Cut off what a crash left behind the last newline; the size after that."""
        with self.path.open("rb+") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                begin = max(0, end - _BLOCK)
                file.seek(begin)
                newline = file.read(end - begin).rfind(b"\n")
                if newline >= 0:
                    end = begin + newline + 1
                    break
                end = begin
            if end != size:
                file.truncate(end)
            return end


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
            _take(lock, path)
            run = cls(path, cls._start(path, config, facts, resume=resume))
            try:
                yield run
            except BaseException as error:
                # What went wrong first is what the user must know, not that on a full disk the
                # status could not be written either.
                with contextlib.suppress(RunError):
                    run.end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
                raise
            run.end("finished")

    def end(self, status: str) -> None:
        """Write how the run ended.

        Raises:
            RunError: `run.json` cannot be written.
        """
        self.info |= {"status": status, "ended": _now()}
        write_json(self.path / "run.json", self.info)

    @staticmethod
    def _start(
        path: Path, config: Mapping[str, Any], facts: Mapping[str, Any], *, resume: bool
    ) -> dict[str, Any]:
        # Through JSON, so that what is compared on resuming is what a file can hold.
        config = json.loads(json.dumps(config))
        info: dict[str, Any] = {
            "schema": SCHEMA,
            "status": "running",
            "started": _now(),
            "config": config,
            "config_sha256": sha256_json(config),
            **facts,
        }
        if not resume:
            require_no_run(path)
        if (path / "run.json").exists():
            old = read_json(path / "run.json")
            _require_same(path, old.get("config", {}), config)
            info["started"] = old.get("started", info["started"])
        write_json(path / "run.json", info)
        return info


def require_no_run(path: Path) -> None:
    """Refuse a folder that holds a run; cheap enough to ask before a model is loaded.

    Raises:
        RunError: It holds one.
    """
    if (path / "run.json").exists():
        status = read_json(path / "run.json").get("status")
        raise RunError(
            f"{str(path)!r} holds a run already (status {status!r}). Give --resume to go on "
            "with it, or another --out."
        )


def _take(lock: IO[str], path: Path) -> None:
    """Lock a run folder for this process; the lock ends with the process, however that ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(
            f"{str(path)!r} is in use by another vlmend process. "
            "Wait for it or choose another --out."
        ) from error
    except OSError as error:
        raise RunError(
            f"{str(path)!r} cannot be locked ({error.strerror or error}), so a second process "
            "could spoil the run. Choose an --out on a file system with locks."
        ) from error


def _require_same(path: Path, old: object, new: object) -> None:
    different = describe_differences(old, new)
    if different:
        raise RunError(
            f"{str(path)!r} holds another run and cannot be resumed with these settings: "
            f"{list_differences(different, 'then', 'now')}. "
            "Use the same settings, or another --out."
        )


Difference = tuple[str, object, object]
"""(dotted place, value before, value after); `MISSING` stands for no value."""

MISSING = "nothing"


def describe_differences(old: object, new: object, place: str = "") -> list[Difference]:
    """Where two JSON values differ.

    Example:
        >>> describe_differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}})
        [('a.b', 1, 3)]
    """
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = cast("dict[str, Any]", old), cast("dict[str, Any]", new)
        return [
            found
            for key in sorted({*before, *after})
            for found in describe_differences(
                before.get(key, MISSING), after.get(key, MISSING), f"{place}.{key}".lstrip(".")
            )
        ]
    return [] if old == new else [(place, old, new)]


def list_differences(differences: Sequence[Difference], first: str, second: str) -> str:
    """Differences in words, the first few of them: "a.b: 1 then, 3 now"."""
    shown = [
        f"{place}: {_short(old)} {first}, {_short(new)} {second}"
        for place, old, new in differences[:_SHOWN]
    ]
    more = len(differences) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
