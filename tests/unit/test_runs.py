"""The run folder survives crashes, full disks, second processes and changed settings."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vlmend.runs as runs
from vlmend.errors import RunError
from vlmend.runs import (
    JsonLines,
    RunFolder,
    describe_differences,
    encode_json_text,
    list_differences,
    read_json,
    replacing,
    require_no_run,
    write_json,
)

CONFIG = {"model": "m", "suites": {"a": {"items": 3, "exits": [0, 1]}}, "seed": 1}


def open_run(path: Path, config: dict[str, Any] = CONFIG, *, resume: bool = False) -> Any:
    return RunFolder.open(path, config, {"command": "test"}, resume=resume)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def opened(handle: int) -> Path:
    return Path(f"/proc/self/fd/{handle}").readlink()


def no_space(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- JSON lines


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "deep" / "x.jsonl")
    assert lines.read() == []
    lines.append([{"a": 1}, {"a": 2}])
    lines.append([{"a": 3}])
    assert [row["a"] for row in JsonLines(lines.path).read()] == [1, 2, 3]


@pytest.mark.parametrize(
    "text",
    ["\u2028\u2029\x85\x0b\x0c\x1c", "caf\u00e9 \u4f60\u597d \U0001f600", "a\nb\r\nc\\n", "\udc80"],
    ids=["separators", "unicode", "newlines", "lone surrogate"],
)
def test_any_answer_survives(tmp_path: Path, text: str) -> None:
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append([{"text": text}, {"text": "next"}])
    assert [row["text"] for row in lines.read()] == [text, "next"]
    lines.path.read_bytes().decode("utf-8")  # valid whatever was in it


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_cut_by_a_crash_is_dropped_and_the_next_is_whole(tmp_path: Path, cut: int) -> None:
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append([{"n": 1}, {"n": 2, "text": "abc"}])
    os.truncate(lines.path, lines.path.stat().st_size - cut)
    before = lines.path.read_bytes()
    reopened = JsonLines(lines.path)
    assert [row["n"] for row in reopened.read()] == [1]
    assert lines.path.read_bytes() == before, "reading must not write: the writer may be at work"
    reopened.append([{"n": 3}])
    assert [row["n"] for row in reopened.read()] == [1, 3]


@pytest.mark.parametrize("block", [1, 7, 65_536])
@pytest.mark.parametrize("whole", [0, 2])
def test_a_half_line_longer_than_a_block_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, whole: int
) -> None:
    monkeypatch.setattr(runs, "_BLOCK", block)
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.path.write_bytes(b'{"n": 0}\n' * whole + b'{"text": "' + b"x" * 50)
    lines.append([{"n": 9}])
    assert [row["n"] for row in lines.read()] == [0] * whole + [9]


@pytest.mark.parametrize("damage", [b"{oops}", b"\x00\x00\x00", b"\xff\xfe{}", b"17", b""])
def test_a_damaged_middle_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n' + damage + b'\n{"n": 3}\n')
    with pytest.raises(RunError, match=r"line 2 of .*x\.jsonl' is damaged: .*Delete that line"):
        JsonLines(path).read()


def test_lines_are_on_the_disk_when_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []

    def record(handle: int) -> None:
        path = opened(handle)
        synced.append((path.name, path.stat().st_size if path.is_file() else -1))

    monkeypatch.setattr(os, "fsync", record)
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append([{"n": 1}])
    size = lines.path.stat().st_size
    assert synced == [("x.jsonl", size), (tmp_path.name, -1)], "contents, then the new name"
    lines.append([{"n": 2}])
    assert synced[2:] == [("x.jsonl", 2 * size)]


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append([{"n": 1}])
    before = lines.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(RunError, match=r"x\.jsonl.*No space left.*Free some space.*--resume"):
            lines.append([{"n": 2}])
    assert lines.path.read_bytes() == before
    lines.append([{"n": 3}])
    assert [row["n"] for row in lines.read()] == [1, 3]


def test_a_device_without_space_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.symlink_to("/dev/full")  # every write fails with ENOSPC, truncating fails too
    with pytest.raises(RunError, match="No space left"):
        JsonLines(path).append([{"n": 1}])


LIMITED = """
import resource, sys
from pathlib import Path
from vlmend.errors import RunError
from vlmend.runs import JsonLines
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
lines = JsonLines(Path(sys.argv[1]))
try:
    for n in range(100):
        lines.append([{"n": n, "text": "x" * 90}])
except RunError as error:
    print(n, error)
"""


def test_a_write_that_stops_half_way_is_taken_back(tmp_path: Path) -> None:
    assert resource.RLIMIT_FSIZE
    path = tmp_path / "x.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    count, _, message = done.stdout.partition(" ")
    assert "File too large" in message
    assert path.read_bytes().endswith(b"}\n")
    assert [row["n"] for row in JsonLines(path).read()] == list(range(int(count)))


# ---- whole files


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"n": 1})
    replacement = replacing(path)
    replacement.__enter__().write_text("half")
    assert not replacement.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(RunError, match="No space left"):
        write_json(path, {"n": 2})
    assert read_json(path) == {"n": 1}
    assert files(tmp_path) == {"run.json"}, "no temporary file is left"


def test_contents_are_synced_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: events.append(opened(handle).name))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (events.append("replace"), replace(self, to))[1]
    )
    write_json(tmp_path / "m.json", {})
    assert events == [f"m.json.tmp{os.getpid()}", "replace", tmp_path.name]


def test_what_json_does_not_know_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "m.json", {"asr": float("nan")})
    assert not files(tmp_path)


def test_json_text_is_valid_utf8_whatever_file_names_hold() -> None:
    text = json.dumps({"path": "caf\u00e9/\udcff"}, ensure_ascii=False)
    assert json.loads(encode_json_text(text)) == {"path": "caf\u00e9/\udcff"}


@pytest.mark.parametrize(
    ("content", "words"), [(b"{", "JSON object"), (b"[]", "list"), (b"\xff", "")]
)
def test_unusable_json_names_the_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"x\.json.*{words}"):
        read_json(path)
    with pytest.raises(RunError, match=r"none\.json.*No such file"):
        read_json(tmp_path / "none.json")


# ---- the run


def test_a_run_is_running_then_finished(tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        assert read_json(tmp_path / "r/run.json")["status"] == "running"
        run.responses.append([{"id": "1"}])
    info = read_json(tmp_path / "r/run.json")
    assert info["status"] == "finished"
    assert info["config"] == CONFIG
    assert info["command"] == "test"
    assert info["started"] <= info["ended"]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (RunError, "failed")]
)
def test_how_a_run_ended_is_written(
    tmp_path: Path, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), open_run(tmp_path / "r"):
        raise error
    assert read_json(tmp_path / "r/run.json")["status"] == status


def test_on_a_full_disk_the_first_error_is_the_one_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk() -> None:
        with open_run(tmp_path / "r") as run:
            run.responses.append([{"n": 1}])
            monkeypatch.setattr(os, "fsync", no_space)
            run.responses.append([{"n": 2}])

    with pytest.raises(RunError, match=r"responses\.jsonl"):
        fill_the_disk()
    monkeypatch.undo()
    assert JsonLines(tmp_path / "r/responses.jsonl").read() == [{"n": 1}]
    with open_run(tmp_path / "r", resume=True) as run:
        run.responses.append([{"n": 2}])
    assert read_json(tmp_path / "r/run.json")["status"] == "finished"


def test_an_existing_run_is_not_touched_without_resume(tmp_path: Path) -> None:
    with open_run(tmp_path / "r"):
        pass
    before = (tmp_path / "r/run.json").read_bytes()
    for start in (open_run(tmp_path / "r").__enter__, lambda: require_no_run(tmp_path / "r")):
        with pytest.raises(RunError, match=r"holds a run already \(status 'finished'\).*--resume"):
            start()
    assert (tmp_path / "r/run.json").read_bytes() == before
    require_no_run(tmp_path / "new")


def test_resuming_keeps_the_start_and_the_answers(tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        run.responses.append([{"n": 1}])
    write_json(tmp_path / "r/run.json", {**run.info, "started": "long ago"})
    # Tuples become lists in a file; that is no other configuration.
    same = {**CONFIG, "suites": {"a": {"items": 3, "exits": (0, 1)}}}
    with open_run(tmp_path / "r", same, resume=True) as run:
        assert run.responses.read() == [{"n": 1}]
    assert read_json(tmp_path / "r/run.json")["started"] == "long ago"


def test_resuming_with_other_settings_names_them(tmp_path: Path) -> None:
    with open_run(tmp_path / "r"):
        pass
    before = (tmp_path / "r/run.json").read_bytes()
    other = {**CONFIG, "suites": {"a": {"items": 4, "exits": [0, 1]}}}
    with (
        pytest.raises(RunError, match=r"suites\.a\.items: 3 then, 4 now\. Use the same") as caught,
        open_run(tmp_path / "r", other, resume=True),
    ):
        pass
    assert "exits" not in str(caught.value)
    assert (tmp_path / "r/run.json").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/r.*Check the path"):
        open_run(tmp_path / "file/r").__enter__()


HOLDER = """
import sys
from pathlib import Path
from vlmend.runs import RunFolder
with RunFolder.open(Path(sys.argv[1]), {}, {}, resume=False):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(RunError, match="in use by another vlmend process"):
        open_run(tmp_path, {}, resume=True).__enter__()
    holder.kill()
    holder.communicate()
    assert read_json(tmp_path / "run.json")["status"] == "running"
    with open_run(tmp_path, {}, resume=True):
        pass


def test_a_file_system_without_locks_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(runs.fcntl, "flock", no_locks)
    with pytest.raises(RunError, match=r"cannot be locked.*file system with locks"):
        open_run(tmp_path / "r").__enter__()


# ---- differences


def test_differences_are_found_at_their_place() -> None:
    old = {"a": {"b": [1, 2], "c": 1}, "gone": 1}
    new = {"a": {"b": [1], "c": 1}, "new": None}
    assert describe_differences(old, new) == [
        ("a.b", [1, 2], [1]),
        ("gone", 1, "nothing"),
        ("new", "nothing", None),
    ]
    assert describe_differences(old, old) == []


def test_many_and_long_differences_are_shortened() -> None:
    old = {f"k{i}": "x" * 200 for i in range(8)}
    text = list_differences(describe_differences(old, {}), "then", "now")
    assert text.startswith(f"k0: {'x' * 60}... then, nothing now; k1: ")
    assert text.endswith("; and 3 more")
