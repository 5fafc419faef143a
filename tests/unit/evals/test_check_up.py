"""What the check-up of a model finds, and that each check fails where it should."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from mild_samples import count_hooks, fitted, requests

from vlmend.evals import check_up as module
from vlmend.evals.check_up import CheckUp, Finding, check_up, free_bytes
from vlmend.hooks.edit import EditReport
from vlmend.hooks.logits import reading_logits
from vlmend.models.generation import GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.testing import tiny_vlm
from vlmend.types import user


def finding(found: CheckUp, check: str) -> Finding:
    (one,) = (f for f in found.findings if f.check == check)
    return one


@dataclass
class _Repair:
    """Applies what it is given, and takes it off again if it is told to."""

    name: str = "nudge"
    fingerprint: str = "0" * 64
    by: float = 0.0
    stays: bool = False

    @contextmanager
    def apply(self, vlm: Vlm) -> Generator[None]:
        weight = vlm.model.get_output_embeddings().weight.data
        before = weight.clone()
        weight += self.by
        try:
            yield
        finally:
            if not self.stays:
                weight.copy_(before)


@pytest.fixture
def no_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract has tests of its own, and takes most of the time."""

    def passes(*_: Any, **__: Any) -> list[Any]:
        return []

    monkeypatch.setattr(module, "run_contract", passes)


@pytest.mark.parametrize("family", ["llava", "mllama", "blip-2"])
def test_a_sound_model_passes_and_is_left_as_it_was(family: str) -> None:
    vlm = tiny_vlm(family)
    # transformers registers hooks of its own at a first pass
    vlm.generate(requests(1), GenerationSettings(max_new_tokens=1))
    weights, hooks = vlm.weights_sha256, count_hooks(vlm)
    found = check_up(vlm)
    assert found.passed, found
    assert {on: len(results) for on, results in found.contract.items()} == {
        "with a picture": 20,
        "words alone": 15,
    }
    assert (vlm.weights_sha256, count_hooks(vlm)) == (weights, hooks)
    assert (vlm.middlewares, vlm.conditions) == ((), ())
    assert finding(found, "map").status == "pass"


@pytest.mark.usefixtures("no_contract")
def test_a_map_that_was_discovered_is_said_to_be() -> None:
    vlm = tiny_vlm("llava")
    vlm.spec = replace(vlm.spec, source="found from what the modules do")
    found = finding(check_up(vlm), "map")
    assert found.status == "note"
    assert "decoder_layers='model.language_model.layers'" in found.evidence


def test_a_clause_that_cannot_be_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> list[Any]:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(module, "run_contract", refuse)
    found = check_up(tiny_vlm("llava"))
    assert not found.passed
    (result,) = found.contract["words alone"]
    assert (result.passed, result.evidence) == (False, "no kernel for this")


@pytest.mark.usefixtures("no_contract")
def test_a_picture_that_is_not_seen_fails() -> None:
    vlm = tiny_vlm("llava")
    with torch.no_grad():
        assert vlm.projector is not None
        for parameter in vlm.projector.parameters():
            parameter.zero_()
    found = check_up(vlm)
    assert not found.passed
    assert finding(found, "pictures").status == "FAIL"
    assert "none is seen" in finding(found, "pictures").evidence


@pytest.mark.usefixtures("no_contract")
def test_a_hook_that_misses_a_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def once(_vlm: Vlm, functions: Any, _position: str) -> Generator[EditReport]:
        yield EditReport(dict.fromkeys(functions, 9), dict.fromkeys(functions, 1))

    monkeypatch.setattr(module, "edit_layers", once)
    found = finding(check_up(tiny_vlm("llava")), "hooks")
    assert found.status == "FAIL"
    assert "the hook of layer 0 ran 1 times over 9 columns instead of 3 times" in found.evidence


@pytest.mark.usefixtures("no_contract")
def test_settings_of_the_models_own_are_named_unless_they_change_nothing() -> None:
    vlm = tiny_vlm("llava")
    config = vlm.model.generation_config
    config.do_sample, config.num_beams = False, 1
    assert finding(check_up(vlm), "generation").status == "pass"
    config.do_sample, config.temperature, config.repetition_penalty = True, 0.6, 1.1
    found = finding(check_up(vlm), "generation")
    assert found.status == "note"
    assert found.evidence.endswith("do_sample=True, temperature=0.6, repetition_penalty=1.1")


@pytest.mark.usefixtures("no_contract")
def test_an_end_token_that_the_tokenizer_lacks_fails() -> None:
    vlm = tiny_vlm("llava")
    vlm.model.generation_config.eos_token_id = [2, 10**6]
    assert finding(check_up(vlm), "end of answers").status == "FAIL"
    vlm.model.generation_config.eos_token_id = []
    found = finding(check_up(vlm), "end of answers")
    assert (found.status, "runs to its limit" in found.evidence) == ("note", True)


@pytest.mark.usefixtures("no_contract")
def test_a_template_without_a_system_turn_is_noted() -> None:
    vlm = tiny_vlm("llava")
    template = vlm.processor.chat_template
    vlm.processor.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{% endfor %}" + template
    )
    found = finding(check_up(vlm), "system turn")
    assert found.status == "note"
    assert "no system" in found.evidence


@pytest.mark.usefixtures("no_contract")
@pytest.mark.parametrize(
    ("free", "status"), [(10**12, "pass"), (10, "note"), (None, "note")], ids=str
)
def test_memory_is_measured_and_compared(
    free: int | None, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _device: free)
    vlm = tiny_vlm("llava")
    config = vlm.model.config.text_config
    head = config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 4
    found = finding(check_up(vlm), "memory")
    assert found.status == status
    assert f"keys and values {module._amount(per_token)} a token" in found.evidence


def test_free_memory_is_known_where_the_system_tells() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 10**6
    assert free_bytes(torch.device("meta")) is None


# ---- repairs


@pytest.mark.usefixtures("no_contract")
def test_a_repair_must_do_something_and_leave_nothing() -> None:
    vlm = tiny_vlm("llava")
    idle = finding(check_up(vlm, _Repair()), "repair")
    assert (idle.status, "does nothing" in idle.evidence) == ("FAIL", True)
    works = finding(check_up(vlm, _Repair(by=0.25)), "repair")
    assert works.status == "pass", works
    stays = finding(check_up(vlm, _Repair(by=0.25, stays=True)), "repair")
    assert (stays.status, "not gone" in stays.evidence) == ("FAIL", True)


@pytest.mark.usefixtures("no_contract")
def test_a_repair_inside_generation_counts_where_it_acts() -> None:
    vlm = tiny_vlm("llava", seed=5)
    found = finding(check_up(vlm, fitted(vlm)), "repair")
    assert found.status == "pass", found
    assert "with a picture by" in found.evidence
    assert "words alone" not in found.evidence


def test_logits_are_read_pass_by_pass_and_the_hook_goes() -> None:
    vlm = tiny_vlm("llava")
    encoded = vlm.encode([user("Hello"), user("Hello there, you.")])
    before = len(vlm.lm_head._forward_hooks)
    with reading_logits(vlm) as kept:
        steps = vlm.generate_steps(encoded, GenerationSettings(max_new_tokens=2))
    assert torch.equal(torch.stack(kept, 1), steps.logits)
    assert len(vlm.lm_head._forward_hooks) == before
