from __future__ import annotations

from pathlib import Path

import pytest
from mild_samples import request, requests

from vlmend.errors import ConfigError
from vlmend.evals.caption_arm import CaptionInstead, text_branch_arm
from vlmend.evals.captions import CaptionCache
from vlmend.evals.text_branch import put_in_words
from vlmend.models.generation import GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.testing import tiny_vlm
from vlmend.types import user

SHORT = GenerationSettings(max_new_tokens=4)


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm("llava")


def test_the_answer_is_that_to_the_caption(vlm: Vlm) -> None:
    captions = CaptionCache()
    expected = vlm.generate(put_in_words(vlm, requests(), captions, 3), SHORT)
    plain = vlm.generate(requests(), SHORT)
    with text_branch_arm(CaptionCache(), 3).applied(vlm):
        found = vlm.generate(requests(), SHORT)
    assert [a.token_ids for a in found] == [a.token_ids for a in expected]
    assert [a.token_ids for a in found] != [a.token_ids for a in plain]
    assert vlm.generate(requests(), SHORT) == plain


def test_prompts_without_a_picture_pass_untouched(vlm: Vlm) -> None:
    prompts = [user("How do I bake a cake?")]
    plain = vlm.generate(prompts, SHORT)
    captions = CaptionCache()
    with CaptionInstead(captions, 3).apply(vlm):
        assert vlm.generate(prompts, SHORT) == plain
    assert captions.hits == captions.misses == 0


def test_captions_are_made_once_and_kept(vlm: Vlm, tmp_path: Path) -> None:
    for expected in (1, 0):
        captions = CaptionCache(tmp_path / "captions.jsonl")
        with CaptionInstead(captions, 3).apply(vlm):
            vlm.generate([request(0)], SHORT)
        assert captions.misses == expected


def test_the_fingerprint_tells_caption_lengths_apart() -> None:
    prints = {CaptionInstead(caption_tokens=n).fingerprint for n in (3, 4)}
    assert len(prints) == 2
    with pytest.raises(ConfigError, match="at least 1"):
        CaptionInstead(caption_tokens=0)
