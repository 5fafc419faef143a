"""`vlmend doctor`: what it prints, and its exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Command
from mild_samples import fitted

from vlmend.models.checks import CheckResult
from vlmend.models.load import load_vlm
from vlmend.models.sources import stored_bytes
from vlmend.models.vlm import Vlm

Saved = Callable[[str], Path]

CHECKS = {
    *(
        "room for it",
        "map",
        "parts",
        "vision exits",
        "hooks",
        "pictures",
        "chat template",
        "system turn",
    ),
    *("batching", "generation", "end of answers", "memory"),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One clause instead of the contract, which has tests of its own."""

    def one_clause(*_: object, **__: object) -> list[CheckResult]:
        return [CheckResult("layers are layers", True, "3 of them")]

    monkeypatch.setattr("vlmend.evals.check_up.run_contract", one_clause)


def test_everything_as_json_with_a_repair(saved: Saved, command: Command, tmp_path: Path) -> None:
    repair = fitted(load_vlm(saved("llava")))
    done = command("doctor", saved("llava"), "--repair", repair.save(tmp_path / "mend"), "--json")
    assert done.code == 0, done.out
    facts = json.loads(done.out)
    assert facts["passed"] is True
    assert facts["repair"] == {"name": repair.name, "fingerprint": repair.fingerprint}
    assert {"python", "torch", "transformers", "vlmend"} <= set(facts["versions"])
    assert {row["check"] for row in facts["checks"]} == CHECKS | {"repair"}
    assert {row["on"] for row in facts["contract"]} == {"with a picture", "words alone"}
    assert len(facts["contract"]) == 20 + 15


@pytest.mark.usefixtures("quick")
def test_it_fits_on_one_screen(saved: Saved, command: Command) -> None:
    done = command("doctor", saved("qwen2_5_vl"))
    assert done.code == 0, done.out
    assert len(done.out.splitlines()) <= 48
    shown = " ".join(done.out.split())
    for check in CHECKS:
        assert f" {check} " in f" {shown} "
    assert "contract, with a picture pass 1 of 1 clauses hold" in shown
    assert "FAIL" not in shown


@pytest.mark.usefixtures("quick")
def test_int8_on_request(saved: Saved, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[Vlm] = []
    monkeypatch.setattr("vlmend.models.int8.quantise_int8", turned.append)
    assert command("doctor", saved("llava"), "--quantise", "int8").code == 0
    assert [vlm.name for vlm in turned] == [str(saved("llava"))]
    assert command("doctor", saved("llava"), "--quantise", "none").code == 0
    assert len(turned) == 1
    # Commands that train have no such option: int8 weights cannot be trained.
    assert command("relearn", saved("llava"), "--quantise", "int8").code == 2


@pytest.mark.usefixtures("quick")
def test_one_failed_check_is_exit_code_2(
    saved: Saved, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmend.evals.check_up.torch.equal", lambda *_: True)
    done = command("doctor", saved("llava"))
    assert done.code == 2
    assert "pictures" in done.out
    assert "none is seen" in " ".join(done.out.split())


def test_a_failed_clause_is_exit_code_2_and_named(
    saved: Saved, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> list[CheckResult]:
        return [
            CheckResult("layers are layers", True, "3 of them"),
            CheckResult("hooks hook", False, "layer 2 did not [run]"),
        ]

    monkeypatch.setattr("vlmend.evals.check_up.run_contract", broken)
    done = command("doctor", saved("llava"))
    assert done.code == 2
    assert "1 of 2 clauses hold" in done.out
    assert "layer 2 did not [run]" in done.out


def failed_checks(out: str) -> dict[str, str]:
    facts = json.loads(out)
    assert facts["passed"] is False
    assert "versions" in facts
    return {row["check"]: row["evidence"] for row in facts["checks"] if row["status"] == "FAIL"}


def test_a_model_that_is_refused_is_a_finding_of_the_json(
    saved: Saved, command: Command, tmp_path: Path
) -> None:
    done = command("doctor", tmp_path / "nowhere", "--json")
    assert done.code == 2
    assert "there is no such folder" in failed_checks(done.out)["loading"]
    folder = tmp_path / "wrong"
    shutil.copytree(saved("llava"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_feature_layer": 0}))
    done = command("doctor", folder, "--json")
    assert done.code == 2
    assert "the default exit is an exit" in failed_checks(done.out)["loading"]


@pytest.mark.usefixtures("quick")
def test_a_repair_that_cannot_be_used_is_a_finding(
    saved: Saved, command: Command, tmp_path: Path
) -> None:
    done = command("doctor", saved("llava"), "--repair", tmp_path / "mend", "--json")
    assert done.code == 2
    assert list(failed_checks(done.out)) == ["repair"]
    assert json.loads(done.out)["model"]["family"] == "llava"


def test_a_model_that_does_not_fit_is_not_loaded(
    saved: Saved, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (saved("llava") / "model.safetensors").stat().st_size
    monkeypatch.setattr("vlmend.evals.check_up.free_bytes", lambda _: size - 1)
    monkeypatch.delattr("vlmend.cli.doctor.open_model")
    done = command("doctor", saved("llava"), "--json")
    assert done.code == 2
    assert "so it was not loaded" in failed_checks(done.out)["room for it"]


def test_the_room_that_weights_need_depends_on_the_dtype(saved: Saved) -> None:
    folder = str(saved("llava"))
    numbers = sum(p.numel() for p in load_vlm(folder).model.parameters())
    stored = stored_bytes(folder)
    assert stored is not None
    assert 0 < stored - 4 * numbers < 64_000  # names, shapes and a few buffers
    assert stored_bytes(folder, torch.float32) == 4 * numbers
    assert stored_bytes(folder, torch.bfloat16) == 2 * numbers
    assert stored_bytes("owner/name") is None
