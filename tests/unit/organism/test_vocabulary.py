"""An organism is told by its language, wherever it is and whatever it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from untrained_organism import save_untrained

from vlmend.organism import weights_folder
from vlmend.organism.build import build_tokenizer
from vlmend.organism.vocabulary import SPECIAL, is_organism, vocabulary
from vlmend.testing import save_tiny_vlm


def test_the_tokenizer_is_of_this_vocabulary() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == list(vocabulary())
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(SPECIAL)))


def test_the_shipped_one_and_one_in_a_folder_are_organisms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_organism("organism")
    assert is_organism(str(weights_folder()))
    assert is_organism(str(save_untrained(tmp_path / "some" / "name")))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_organism("~/some/name")


def test_other_models_are_not_whatever_their_folder_is_called(tmp_path: Path) -> None:
    tiny = save_tiny_vlm("llava", tmp_path / "organism")
    for other in (str(tiny), str(tmp_path), "some/organism", "organisms", ""):
        assert not is_organism(other), other


def _drop_a_word(tokenizer: dict[str, Any]) -> None:
    del tokenizer["model"]["vocab"][300]


def _swap_two_words(tokenizer: dict[str, Any]) -> None:
    rows = tokenizer["model"]["vocab"]
    rows[300], rows[301] = rows[301], rows[300]


def _empty_a_row(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"][300] = []


def _lose_the_model(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"] = None


@pytest.mark.parametrize(
    "change", [_drop_a_word, _swap_two_words, _empty_a_row, _lose_the_model, dict.clear]
)
def test_another_language_or_a_damaged_file_is_none(change: Any, tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    assert is_organism(str(tmp_path))
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    change(tokenizer)
    path.write_text(json.dumps(tokenizer), "utf-8")
    assert not is_organism(str(tmp_path))
    path.write_text("{", "utf-8")
    assert not is_organism(str(tmp_path))
