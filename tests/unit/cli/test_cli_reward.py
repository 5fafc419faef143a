"""`vlmend reward` from end to end on a saved tiny model, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Command, Outcome, contents
from text_classifiers import save_reward
from untrained_organism import save_untrained

from vlmend.cli.reward import _preset
from vlmend.evals.scorers import load_reward
from vlmend.runs import JsonLines, read_json, write_json
from vlmend.training.reward_model import RewardObjective

Saved = Callable[[str], Path]

DATA = ("--data", "organism/preferences", "--limit", 24)
SMALL = ("--steps", 4, "--batch-size", 4, "--lr", "1e-3", "--held-out", 0.3)


def error_of(done: Outcome) -> str:
    """The last line; how many pairs were taken may stand before it."""
    *before, last = done.err.strip().splitlines()
    assert all("preference data: " in line for line in before), done.err
    return last


def test_a_reward_model_is_trained_saved_and_measured(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    model, out = saved("llava"), tmp_path / "reward"
    before = contents(model)
    done = command("reward", "train", model, *DATA, *SMALL, "--out", out)
    assert done.code == 0, done.err
    assert contents(model) == before
    assert "preferred answer scored higher" in done.out
    for kind in ("all", "harm", "help"):
        assert f"\n{kind} " in done.out
    facts = read_json(out / "reward.json")
    assert facts["kind"] == "reward"
    assert facts["base_model"] == str(model)
    assert facts["licences"] == {"organism/preferences": "Apache-2.0"}
    assert facts["data"]["preference"]["count"] + facts["data"]["held_out"]["count"] == 24
    assert facts["settings"] == {"centering": 0.01, "max_tokens": None, "held_out": 0.3}
    assert facts["loop"]["steps"] == facts["ledger"]["steps"] == 4
    assert facts["held_out"]["accuracy"]["n"] == facts["data"]["held_out"]["count"]
    assert load_reward(out).model.config.num_labels == 1

    # The same command again trains nothing and says the same.
    steps = (out / "training" / "steps.jsonl").read_bytes()
    done = command("reward", "train", model, *DATA, *SMALL, "--out", out)
    assert done.code == 0, done.err
    assert (out / "training" / "steps.jsonl").read_bytes() == steps
    assert read_json(out / "reward.json")["weights_sha256"] == facts["weights_sha256"]
    done = command("reward", "train", model, *DATA, *SMALL, "--seed", 1, "--out", out)
    assert done.code == 2
    assert "loop.seed: 0 then, 1 now" in error_of(done)

    result = tmp_path / "pairs.json"
    test = ("--data", "organism/preferences-test", "--limit", 10, "--out", result)
    done = command("reward", "evaluate", out, *test)
    assert done.code == 0, done.err
    assert "Pairs of organism/preferences-test" in done.out
    found = read_json(result)
    assert found["accuracy"]["n"] == 10
    assert found["data"]["preference"]["sources"] == {"organism/preferences-test": 10}


def test_ctrl_c_and_the_same_command_again(
    saved: Saved, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("reward", "train", saved("llava"), *DATA, *SMALL, "--out")
    run = RewardObjective.forward
    calls: list[object] = []

    def interrupted(self: RewardObjective, batch: object) -> object:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, batch)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(RewardObjective, "forward", interrupted)
        done = command(*words, tmp_path / "parts")
    assert done.code == 130
    assert "interrupted. What was written stays valid; run the same command again to" in done.err
    assert not (tmp_path / "parts" / "reward.json").exists()
    assert len(JsonLines(tmp_path / "parts" / "training" / "steps.jsonl").read()) == 2
    assert command(*words, tmp_path / "parts").code == 0
    assert command(*words, tmp_path / "whole").code == 0
    parts, whole = (read_json(tmp_path / name / "reward.json") for name in ("parts", "whole"))
    assert parts["weights_sha256"] == whole["weights_sha256"]
    assert parts["held_out"] == whole["held_out"]


def test_what_is_wrong_is_said_before_the_model_is_loaded(
    saved: Saved, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmend.models.load.load_classifier_base", None)
    model, out = saved("llava"), tmp_path / "out"

    def refused(*words: object) -> str:
        done = command("reward", "train", model, *words, "--out", out)
        assert done.code == 2
        assert not out.exists()
        return error_of(done)

    assert "no preference data was named" in refused()
    assert "is forget data and was asked for as preference data" in refused(
        "--data", "organism/forget-text"
    )
    assert "Did you mean 'organism/preferences'" in refused("--data", "organism/preference")
    assert "held_out=2.0" in refused(*DATA, "--held-out", 2.0)
    assert "lr=0.0" in refused(*DATA, "--lr", 0.0)
    assert "about one thing" in refused("--data", "organism/preferences", "--limit", 1)
    write_json(out / "notes.json", {})
    done = command("reward", "train", model, *DATA, "--out", out)
    assert "holds files that vlmend did not write" in error_of(done)


def test_models_that_are_no_reward_models(saved: Saved, tmp_path: Path, command: Command) -> None:
    two = save_reward(tmp_path / "two", labels=2)
    train = command("reward", "train", two, *DATA, *SMALL, "--out", tmp_path / "out")
    assert train.code == 2
    assert "is a classifier with 2 outputs, and a reward model has one" in error_of(train)
    found = command("reward", "evaluate", two, *DATA)
    assert found.code == 2
    assert "a reward model has one output" in error_of(found)
    found = command("reward", "evaluate", tmp_path / "nowhere", *DATA)
    assert found.code == 2
    assert "there is no such folder" in error_of(found)
    other = command("reward", "train", saved("mllama"), *DATA, *SMALL, "--out", tmp_path / "out")
    assert other.code == 2
    assert "transformers has no text classifier of its kind" in error_of(other)
    assert not (tmp_path / "out").exists()


def test_an_organism_in_a_folder_has_the_preset_too(tmp_path: Path) -> None:
    from vlmend.organism.presets import REWARD

    assert _preset(str(save_untrained(tmp_path / "trained"))) == _preset("organism") == REWARD
    assert _preset("some/model")["data"] == ()


def test_the_preset_of_the_organism_is_complete() -> None:
    from vlmend.organism.presets import REWARD
    from vlmend.training.data.registry import get_data
    from vlmend.training.loop_settings import LoopSettings
    from vlmend.training.reward_settings import RewardSettings

    assert all("preference" in get_data(name).roles for name in REWARD["data"])
    assert LoopSettings(**REWARD["loop"]).steps > 0
    assert RewardSettings(**REWARD["reward"]).held_out > 0
