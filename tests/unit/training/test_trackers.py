from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from loop_objectives import LineFit, line_streams

from vlmend.errors import MissingExtraError, UnknownNameError
from vlmend.runs import JsonLines
from vlmend.training import trackers
from vlmend.training.loop import LoopSettings, run_loop
from vlmend.training.meter import Meter
from vlmend.training.trackers import check_trackers

SETTINGS = LoopSettings(steps=4, batch_size=2, lr=0.01)


def run(folder: Path, *names: str, stop_after: int = 4) -> None:
    objective = LineFit()

    def interrupt(_batch: object) -> None:
        if objective.calls > stop_after:
            raise KeyboardInterrupt

    objective.before = interrupt
    run_loop(
        objective,
        line_streams(),
        dict(objective.named_parameters()),
        replace(SETTINGS, report_to=names),
        folder,
        meter=Meter(torch.device("cpu")),
        watch=lambda step: {"asr": 0.5, "name": "no number"},
    )


def test_unknown_trackers_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown tracker 'wand'\. Known: .*'wandb'"):
        check_trackers(["wand"])
    check_trackers([])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=f"not installed: pip install {name}"):
        check_trackers([name])


def test_tensorboard_comes_with_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(["tensorboard"])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vlmend\[train\]'"):
        check_trackers(["tensorboard"])


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (where,) = {path.parent for path in folder.rglob("events.out.*")}
    events = accumulators.EventAccumulator(str(where)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "tensorboard", stop_after=2)
    # As if it had been killed before the first checkpoint: all steps are run again.
    (tmp_path / "state.safetensors").unlink()
    run(tmp_path, "tensorboard")
    curves = read_tensorboard(tmp_path)
    for name in ("loss", "terms/left", "terms/right", "lr", "grad_norm", "seconds", "flops"):
        assert [step for step, _ in curves[name]] == [1, 2, 3, 4], name
    assert curves["watch/asr"] == [(0, 0.5), (4, 0.5)]
    assert not {"step", "watch/step", "watch/name", "stopped", "counted"} & curves.keys()
    losses = [row["loss"] for row in JsonLines(tmp_path / "steps.jsonl").read()]
    assert [value for _, value in curves["loss"]] == pytest.approx(losses, rel=1e-6)  # float32


@pytest.fixture(params=["trackio", "wandb"])
def stand_in(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A package with the interface that accelerate uses of both: its name, what it is told."""
    name: str = request.param
    seen: list[tuple[str, Any]] = []
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / f"{name}.py").write_text(
        "calls = []\n"
        "class Run:\n"
        "    def log(self, values, step=None): calls.append(('log', (step, values)))\n"
        "    def finish(self): calls.append(('finish', None))\n"
        "def init(project, **settings):\n"
        "    calls.append(('init', {'project': project, **settings}))\n"
        "    return Run()\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "packages")
    import accelerate.tracking as tracking

    # accelerate asks for the package's version, which a lone module has not.
    monkeypatch.setattr(
        tracking,
        "_available_trackers",
        [*tracking._available_trackers, tracking.LoggerType(name)],
    )
    module: ModuleType = __import__(name)
    module.__dict__["calls"] = seen
    yield name, seen
    del sys.modules[name]


def test_trackers_with_runs_are_told_which(
    tmp_path: Path, stand_in: tuple[str, list[tuple[str, Any]]]
) -> None:
    name, calls = stand_in
    run(tmp_path / "out", name)
    kinds = [kind for kind, _ in calls]
    assert kinds == ["init", *["log"] * 6, "finish"]
    settings = calls[0][1]
    assert settings["project"] == "vlmend"
    assert settings["resume"] == "allow"
    assert settings["name"].startswith("out-")
    # What W&B goes on with is the id; trackio has none.
    assert settings.get("id") == (settings["name"] if name == "wandb" else None)
    assert settings["config"]["loop"]["lr"] == 0.01
    steps = [value for kind, value in calls if kind == "log"]
    assert [step for step, _ in steps] == [0, 1, 2, 3, 4, 4]
    assert all(isinstance(number, float) for _, row in steps for number in row.values())
    assert {"loss", "terms/left"} <= steps[1][1].keys()
    assert steps[-1][1] == {"watch/asr": 0.5}
    # The same training again is the same run.
    calls.clear()
    run(tmp_path / "out", name)
    assert [kind for kind, _ in calls] == ["init", "finish"]
    assert calls[0][1] == settings
