"""Exit codes and the one line that says what is wrong; bad input of every kind."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Command, contents, write_csv, write_figstep

import vlmend.cli.main as main_module
from vlmend.errors import DataError
from vlmend.suites import advbench


def commands_of(parser: argparse.ArgumentParser) -> list[tuple[str, ...]]:
    """The words of every command and of every command of a command."""
    found: list[tuple[str, ...]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                found += [(word,), *((word, *words) for words in commands_of(below))]
    return found


COMMANDS = commands_of(main_module.build_parser())


def test_the_commands_are_these() -> None:
    assert {" ".join(words) for words in COMMANDS} == {
        *("demo", "audit", "diagnose", "ablate", "ablate shiftdc", "judge", "export", "compare"),
        *("repair", "repair shiftdc", "repair unlearn", "repair layer-ppo", "relearn"),
        *("reward", "reward train", "reward evaluate", "data", "data prepare"),
        *("organism", "organism card", "organism train", "list", "doctor"),
    }


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=" ".join)
def test_every_help_is_there_and_short(words: tuple[str, ...], command: Command) -> None:
    done = command(*words, "--help")
    assert done.code == 0
    assert "usage: vlmend" in done.out
    assert done.err == ""


def test_no_help_imports_torch() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from vlmend.cli.main import main\n"
        f"for words in {COMMANDS!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main([*words, '--help'])\n"
        "print(sorted({'torch', 'transformers', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_printed(command: Command) -> None:
    assert command("--version").out.startswith("vlmend ")


@pytest.mark.parametrize("words", [(), ("audt",), ("audit",), ("audit", "m"), ("repair", "x")])
def test_what_cannot_be_parsed_is_a_usage_error(words: tuple[str, ...], command: Command) -> None:
    done = command(*words)
    assert done.code == 2
    assert "usage: vlmend" in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("the file is empty."), 2, "vlmend list: the file is empty."),
        (PermissionError(13, "Permission denied", "x.csv"), 2, "Permission denied (x.csv)"),
        (KeyboardInterrupt(), 130, "interrupted. What was written stays valid; run the same"),
    ],
)
def test_errors_become_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(main_module.list_names, "run", fail)
    done = command("list", "judges")
    assert done.code == code
    assert words in done.error_line
    assert done.err.count("\n") == 1
    assert "--resume" not in done.err, "list cannot be resumed"


def test_a_bug_of_ours_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(main_module.list_names, "run", fail)
    with pytest.raises(ZeroDivisionError):
        command("list", "judges")


PRINTS = """
import sys
import vlmend.cli.list_names as list_names
from vlmend.cli.main import main
if sys.argv[1] == "plain":
    list_names.run = lambda args: print("[]") or 0
sys.exit(main(["list", "judges"]))
"""


@pytest.mark.parametrize("how", ["table", "plain"])
def test_a_reader_that_goes_away_is_no_error(how: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, how],
        stdout=writer,
        stderr=subprocess.PIPE,
        # Buffered, as a user's is: the error then comes with the last flush.
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


# ---- bad input: one line, code 2, nothing written

Build = Callable[[Path], list[str]]
"""Makes the bad input in a folder, and gives the options that name it."""


def suite(name: str) -> Build:
    return lambda _: ["--suite", name]


def a_missing_image(folder: Path) -> list[str]:
    figstep = write_figstep(folder / "data")
    (figstep / "images/SafeBench-Tiny/query_ForbidQI_1_2_6.png").unlink()
    return ["--suite", f"figstep-tiny={figstep}", "--limit", "3"]


def a_corrupt_image(folder: Path) -> list[str]:
    figstep = write_figstep(folder / "data")
    image = figstep / "images/SafeBench-Tiny/query_ForbidQI_1_2_6.png"
    image.write_bytes(image.read_bytes()[:60])
    return ["--suite", f"figstep-tiny={figstep}", "--limit", "3"]


def a_missing_column(folder: Path) -> list[str]:
    write_figstep(folder / "data", ("dataset", "category_id", "task_id", "category_name"))
    return ["--suite", f"figstep-tiny={folder / 'data'}"]


def an_empty_table(folder: Path) -> list[str]:
    write_csv(folder / "data/harmful_behaviors.csv", ("goal", "target"), [])
    return ["--suite", f"advbench={folder / 'data'}"]


def an_empty_file(folder: Path) -> list[str]:
    (folder / "data").mkdir()
    (folder / "data/harmful_behaviors.csv").touch()
    return ["--suite", f"advbench={folder / 'data'}"]


def a_short_table(folder: Path) -> list[str]:
    write_csv(folder / "data/harmful_behaviors.csv", ("goal", "target"), [["bake", "Sure"]])
    assert advbench.NUM_ROWS > 1
    return ["--suite", f"advbench={folder / 'data'}"]


def a_folder_of_others(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out/thesis.txt").write_text("mine")
    return ["--suite", "organism/text"]


def a_finished_run(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out/run.json").write_text('{"status": "finished"}')
    (folder / "out/metrics.json").write_text("{}")
    return ["--suite", "organism/text"]


def no_artifact(folder: Path) -> list[str]:
    return ["--suite", "organism/text", "--repair", str(folder / "none")]


BEFORE_THE_MODEL: list[tuple[Build, str]] = [
    (suite("organism/icn"), "unknown suite 'organism/icn'.*Did you mean 'organism/icon'"),
    (suite("organism/icon=/x"), "takes no folder"),
    (suite("xstest"), "needs the folder with its data files.*Write xstest=FOLDER"),
    (suite("xstest=/no/such"), "'/no/such' does not exist"),
    (a_missing_image, "1 of 3 images.*row 2: .*query_ForbidQI_1_2_6.png"),
    (a_corrupt_image, "sample 'figstep-tiny/1_2': cannot decode image .*1_2_6.png"),
    (a_missing_column, "instruction"),
    (an_empty_table, "harmful_behaviors.csv"),
    (an_empty_file, "harmful_behaviors.csv.*empty"),
    (a_short_table, "520"),
    (a_folder_of_others, "holds files that vlmend did not write. Choose another --out"),
    (a_finished_run, r"holds a run already \(status 'finished'\). Give --resume"),
    (no_artifact, "is no repair artifact.*No such file"),
    (
        lambda _: ["--suite", "organism/text", "--judge", "organsm"],
        "unknown judge 'organsm'.*Did you mean 'organism'",
    ),
]


@pytest.mark.parametrize(
    ("build", "words"), BEFORE_THE_MODEL, ids=[words for _, words in BEFORE_THE_MODEL]
)
def test_bad_input_is_found_before_the_model_is_loaded(
    build: Build, words: str, tmp_path: Path, command: Command
) -> None:
    options = build(tmp_path)
    before = contents(tmp_path)
    # If it got as far as the model, that would be the error: there is none.
    done = command("audit", tmp_path / "no model", *options, "--out", tmp_path / "out")
    assert done.code == 2
    assert done.error_line.startswith("vlmend audit: ")
    assert re.search(words, done.error_line)
    assert done.out == ""
    assert contents(tmp_path) == before
    assert (tmp_path / "out").exists() == any(name.startswith("out/") for name in before)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("organsim", "unknown model 'organsim'.*Did you mean 'organism'"),
        ("no/such/folder", "unknown model 'no/such/folder'"),
    ],
)
@pytest.mark.parametrize(
    "words_before",
    [("audit",), ("doctor",), ("repair", "shiftdc"), ("organism", "card")],
    ids=" ".join,
)
def test_an_unknown_model(
    words_before: tuple[str, ...], model: str, words: str, tmp_path: Path, command: Command
) -> None:
    options: list[object] = []
    if words_before[0] in ("audit", "repair"):
        options = ["--suite", "organism/text", "--limit", 2, "--out", tmp_path / "out"]
    done = command(*words_before, model, *options)
    assert done.code == 2
    assert re.search(words, done.error_line)
    assert not (tmp_path / "out").exists()


def test_a_folder_beside_is_suggested(tmp_path: Path, command: Command) -> None:
    (tmp_path / "llava-tiny").mkdir()
    (tmp_path / "llava-tiny/config.json").write_text("{}")
    done = command("doctor", tmp_path / "lava-tiny")
    assert done.code == 2
    assert f"Did you mean '{tmp_path / 'llava-tiny'}'?" in done.error_line


@pytest.mark.parametrize(
    "words",
    [("demo",), ("repair", "shiftdc", "m", "--suite", "a"), ("organism", "train")],
    ids=" ".join,
)
def test_no_command_writes_into_a_folder_of_others(
    words: tuple[str, ...], tmp_path: Path, command: Command
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = command(*words, "--out", tmp_path)
    assert done.code == 2
    assert "holds files that vlmend did not write" in done.error_line
    assert list(contents(tmp_path)) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--device", "banana", "unknown device 'banana'"),
        ("--seed", "-1", "seed is -1; allowed: 0 and above"),
        ("--picture-refusals", "2", "picture_refusals is 2.0; allowed: 0 to 0.5"),
    ],
)
def test_what_no_organism_can_be_trained_with(
    option: str, value: str, words: str, tmp_path: Path, command: Command
) -> None:
    done = command("organism", "train", f"{option}={value}", "--out", tmp_path / "out")
    assert done.code == 2
    assert words in done.error_line
    assert not (tmp_path / "out").exists()


def test_bad_input_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlmend.cli.main", "audit", "organism", "--suite", "organsm/icon"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("vlmend audit: unknown suite 'organsm/icon'")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
