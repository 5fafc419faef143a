"""`vlmend data prepare` and `vlmend list suites`, against a local server."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from re import fullmatch

import pytest
from command_line import Command
from data_server import COMMIT, DataServer, serve
from published_tables import build_published, to_bytes

from vlmend.errors import VlmendError
from vlmend.suites import fetching, github_files, sources
from vlmend.suites.github_files import GitHub
from vlmend.suites.hub_files import Hub
from vlmend.suites.registry import get_suite, load_suite, suite_names
from vlmend.suites.sources import AT_HAND, SOURCES, UNPINNED, find_source

XSTEST = build_published()["xstest"]


@pytest.fixture(autouse=True)
def default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("VLMEND_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(github_files, "PAUSE_S", 0.0)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return tmp_path / "data"


@pytest.fixture
def from_server(monkeypatch: pytest.MonkeyPatch) -> Callable[[DataServer], None]:
    """Have XSTest come from the server's repository instead of from GitHub."""

    def use(server: DataServer) -> None:
        source = sources.Source(
            "github", "baker/cakes", COMMIT, files=("xstest_prompts.csv",), num_bytes=38_719
        )
        monkeypatch.setitem(SOURCES, "xstest", source)
        here = GitHub(source.repo, server.url, server.url, server.url)
        monkeypatch.setattr(fetching, "make_plan", partial(fetching.make_plan, server=here))

    return use


def test_a_prepared_suite_is_found_without_a_folder(
    from_server: Callable[[DataServer], None],
    command: Command,
    default_folder: Path,
) -> None:
    with serve({"xstest_prompts.csv": to_bytes(XSTEST.table)}) as server:
        from_server(server)
        planned = command("data", "prepare", "xstest", "--dry-run")
        assert planned.code == 0
        for fact in ("CC-BY-4.0", "38.7 kB", COMMIT, "gated: no", str(default_folder / "xstest")):
            assert fact in planned.out
        assert not (default_folder / "xstest").exists(), "a dry run fetches nothing"
        done = command("data", "prepare", "xstest")
        assert (done.code, "xstest: 450 items" in done.err) == (0, True)
    note = json.loads((default_folder / "xstest" / "vlmend-source.json").read_text())
    assert note["revision"] == COMMIT
    assert [*note["files"]] == ["xstest_prompts.csv"]
    assert len(load_suite("xstest")) == 450
    suites = json.loads(command("list", "suites", "--json").out)
    [listed] = [suite for suite in suites if suite["name"] == "xstest"]
    assert listed["prepared"] == str(default_folder / "xstest")
    assert listed["tested_on"] == "genuine"
    assert listed["num_items"] == 450


def test_a_file_that_the_suite_cannot_read_is_an_error(
    from_server: Callable[[DataServer], None], command: Command, tmp_path: Path
) -> None:
    with serve({"xstest_prompts.csv": to_bytes(XSTEST.table[:-1])}) as server:
        from_server(server)
        done = command("data", "prepare", "xstest", "--to", tmp_path / "here")
    assert done.code == 2
    assert "has 449 rows" in done.err


def test_without_a_connection_one_still_learns_what_it_would_be(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve({}) as gone:
        nobody = Hub("PKU-Alignment/BeaverTails", gone.url)
    monkeypatch.setattr(fetching, "make_plan", partial(fetching.make_plan, server=nobody))
    done = command("data", "prepare", "beavertails")
    assert done.code == 2
    assert "cannot fetch" in done.error_line
    for fact in ("CC BY-NC 4.0", "gated: no", "to: ", SOURCES["beavertails"].revision):
        assert fact in done.out
    assert "size: " in done.out


def test_what_the_server_knows_better_is_said(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources.Source("hub", "baker/cakes", files=("xstest_prompts.csv",))
    monkeypatch.setitem(SOURCES, "xstest", source)
    with serve({"xstest_prompts.csv": to_bytes(XSTEST.table)}) as server:
        here = Hub(source.repo, server.url)
        monkeypatch.setattr(fetching, "make_plan", partial(fetching.make_plan, server=here))
        done = command("data", "prepare", "xstest", "--dry-run")
    assert "at its current commit" in done.out
    assert f"kB, commit {COMMIT}" in done.err


def test_what_no_program_may_fetch_says_what_to_do(command: Command, default_folder: Path) -> None:
    done = command("data", "prepare", "mme")
    assert done.code == 2
    assert "By hand: (1) Ask for the data" in done.error_line
    assert str(default_folder / "mme") in done.error_line
    assert command("data", "prepare", "mme", "--dry-run").code == 0
    assert "needs the folder" in _error_of("mme")
    (default_folder / "mme" / "MME_Benchmark").mkdir(parents=True)
    assert "needs the folder" not in _error_of("mme"), "found in the default place"


def _error_of(suite: str) -> str:
    with pytest.raises(VlmendError) as caught:
        load_suite(suite)
    return str(caught.value)


def test_suites_without_data_and_unknown_ones_are_refused(command: Command) -> None:
    assert "it comes with vlmend" in command("data", "prepare", "organism/text").error_line
    assert "Did you mean 'figstep'" in command("data", "prepare", "figstp").error_line


def test_every_suite_that_needs_a_folder_has_a_source() -> None:
    without = [
        name for name in suite_names() if get_suite(name).needs_folder and not find_source(name)
    ]
    assert not without
    served = {found[0] for name in suite_names() if (found := find_source(name))}
    assert served == set(SOURCES), "a source that serves no suite"


def test_sources_say_all_that_is_needed() -> None:
    for name, source in SOURCES.items():
        if source.kind == "manual":
            assert source.page, name
            assert source.steps, name
        else:
            assert source.repo.count("/") == 1, name
            assert source.files or source.folders, name
            assert fullmatch("[0-9a-f]{40}", source.revision) or name in UNPINNED, name
        assert set(source.sha256) <= {*source.files} or source.folders, name
        assert all(len(digest) == 64 for digest in source.sha256.values()), name
    unpinned = {name for name, s in SOURCES.items() if s.kind != "manual" and not s.revision}
    assert unpinned == UNPINNED, "pinned by now: take it out of the exceptions"
    assert all(SOURCES[name].revision for name in AT_HAND)


def test_the_hint_is_given_for_suites_with_a_source_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "Or fetch it once: vlmend data prepare xstest" in _error_of("xstest")
    monkeypatch.delitem(SOURCES, "xstest")
    assert "data prepare" not in _error_of("xstest")
