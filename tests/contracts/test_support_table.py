"""The table of supported families says what a run of every use says, and nothing else."""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path

import pytest
from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlmend.errors import ModelError
from vlmend.models.checks import CheckResult
from vlmend.models.families import FAMILIES
from vlmend.models.support import (
    SUPPORT_FILE,
    USES,
    FamilySupport,
    Measured,
    Use,
    read_measured,
    read_support,
)
from vlmend.models.vlm import Vlm
from vlmend.runs import read_json
from vlmend.testing import TINY_FAMILIES, support
from vlmend.testing.absent import ABSENT, ENCODER_DECODER, LACKED_BY_LOWEST, TORCHVISION
from vlmend.testing.support import (
    PAGE,
    as_json,
    measure_family,
    render_page,
    shorten,
)
from vlmend.testing.tiny import STAND_INS

_PINS = (Path(__file__).parents[2] / "constraints-lowest.txt").read_text()
LOWEST = _PINS.partition("transformers==")[2].split()[0]

HOW = "run `python -m vlmend.testing.support --write`"


def test_the_table_holds_every_family_and_use() -> None:
    table = read_support()
    assert sorted(table) == sorted(TINY_FAMILIES), HOW
    assert all(tuple(row.uses) == USES for row in table.values())
    for row in table.values():
        assert all((use.result == "pass") == (not use.reason) for use in row.uses.values())


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_a_run_says_what_the_table_says(family: str, at_the_pin: bool) -> None:
    found, said = measure_family(family), read_support()[family]
    if at_the_pin:
        assert found == said, HOW
    # Another transformers may fail with other words, or where the pinned one does not.
    passes = {use for use in USES if said.uses[use].result == "pass"}
    assert not {use: found.uses[use].reason for use in passes if found.uses[use].result != "pass"}


def test_the_page_shows_the_table() -> None:
    table, measured = read_support(), read_measured()
    assert read_json(SUPPORT_FILE) == as_json(table, measured)
    assert PAGE.read_text("utf-8") == render_page(table, measured), HOW


def test_the_table_says_what_it_was_measured_with(at_the_pin: bool) -> None:
    measured = read_measured()
    if at_the_pin:
        assert measured.transformers == metadata.version("transformers"), HOW
    assert dict(measured.absent) == dict(ABSENT), HOW
    assert measured.lacked_by_lowest == LACKED_BY_LOWEST, HOW
    assert {name: row.stand_in for name, row in read_support().items() if row.stand_in} == (
        dict(STAND_INS)
    ), HOW


# ---- what transformers lists


def test_every_type_that_transformers_lists_has_a_row_or_a_reason(at_the_pin: bool) -> None:
    types = {*TINY_FAMILIES, *FAMILIES}
    assert not types & set(ABSENT)
    if at_the_pin:
        assert set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) <= types | set(ABSENT)
        assert set(ABSENT) <= set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def test_reasons_say_what_transformers_says(at_the_pin: bool) -> None:
    if not at_the_pin:
        pytest.skip("reasons are those of the pinned transformers")
    for kind in ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop"):
        assert ABSENT[kind] == ENCODER_DECODER
        assert AutoConfig.for_model(kind).is_encoder_decoder
    for kind in (kind for kind, reason in ABSENT.items() if reason == TORCHVISION):
        # Pixtral's processor, which this one has, cannot be imported without torchvision.
        assert "pil" not in IMAGE_PROCESSOR_MAPPING_NAMES[kind] or kind == "mistral_large4"


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_what_is_not_genuine_is_marked(family: str, at_the_pin: bool) -> None:
    if not at_the_pin:
        pytest.skip("an older transformers may need torchvision for more")
    model, processor = importlib.import_module(TINY_FAMILIES[family]).BUILDERS[family]()
    ours = any(type(part).__module__.startswith("vlmend.testing") for part in (
        processor, processor.image_processor,
    ))  # fmt: skip
    offered = IMAGE_PROCESSOR_MAPPING_NAMES.get(model.config.model_type)
    lacking = offered is not None and "pil" not in offered
    assert (ours or lacking) == (family in STAND_INS)


def test_the_lowest_transformers_lacks_what_the_page_says() -> None:
    if metadata.version("transformers") != LOWEST:
        pytest.skip(f"for transformers {LOWEST}: make test-lowest")
    lacking: list[str] = []
    for family, module in sorted(TINY_FAMILIES.items()):
        try:
            importlib.import_module(module).BUILDERS[family]()
        except ImportError:
            lacking.append(family)
    assert tuple(lacking) == LACKED_BY_LOWEST


# ---- that a run can say anything else


def _refuses(_family: str, *, seed: int) -> Vlm:
    raise ModelError(f"no map holds: 'x' is off by 1.25e-03 at seed {seed}")


def test_a_model_without_a_map_fails_in_all_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "tiny_vlm", _refuses)
    row = measure_family("aria")
    assert row.uses == dict.fromkeys(
        USES, Use("fails", "no map holds: 'x' is off by (number) at seed 5")
    )


def test_failures_are_told_use_by_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def clauses(_vlm: Vlm, *, images: bool) -> list[CheckResult]:
        return [
            CheckResult("a zero edit is bit-identical", images, "position 'all'"),
            CheckResult("an exit runs no block that it skips", True, "exits 0 .. 3"),
        ]

    def unmoved(*_: object) -> dict[str, float]:
        return {"with a picture": 0.5, "words alone": 0.0}

    monkeypatch.setattr(support, "run_contract", clauses)
    monkeypatch.setattr(support, "repair_effect", unmoved)
    uses = measure_family("llava").uses
    assert uses["record"] == uses["exits"] == uses["ShiftDC"] == Use("pass")
    assert uses["edit"] == Use("fails", "a zero edit is bit-identical: position 'all'")
    still = Use("fails", "words alone: the logits do not move")
    assert uses["unlearn"] == uses["layer-PPO"] == still


def test_the_page_names_what_is_missing_and_why() -> None:
    uses = {use: Use("pass") for use in USES} | {"exits": Use("absent", "no `blocks` at all")}
    measured = Measured("9.8.7", "2031-02-03", {"dull": "is dull", "grey": "is dull"}, ("odd",))
    page = render_page({"odd": FamilySupport("Odd", False, uses, "half of it")}, measured)
    assert "| `odd` * | discovered | pass | pass | absent | pass | pass | pass |" in page
    assert "- `odd`, exits: absent, because `no 'blocks' at all`" in page
    assert "pass: 1 record, 1 edit, 0 exits" in page
    assert "- `odd`: half of it" in page
    assert "on 2031-02-03 with transformers 9.8.7" in page
    assert "- `dull`, `grey`: is dull." in page
    assert "cannot build `odd`;" in page


def test_reasons_hold_no_numbers_that_depend_on_the_processor() -> None:
    assert shorten("off by 0.00123 (limit 2e-05) at\nlayer 3") == (
        "off by (number) (limit (number)) at layer 3"
    )


def test_a_long_reason_ends_with_a_sentence_or_a_word() -> None:
    assert shorten("wide " * 100) == f"{('wide ' * 79).strip()}..."
    assert shorten("It is wide. " * 40) == ("It is wide. " * 33).strip()
