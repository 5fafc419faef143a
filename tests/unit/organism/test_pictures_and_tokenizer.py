"""The organism's pictures, tokenizer and prompts."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmend import organism
from vlmend.evals.captions import CAPTION_PROMPT
from vlmend.evals.text_branch import TEXT_BRANCH
from vlmend.organism import pictures, stream
from vlmend.organism.build import NUM_IMAGE_TOKENS, build_model, build_processor, build_tokenizer
from vlmend.organism.language import PICTURE_KINDS, caption_request, with_caption
from vlmend.organism.pictures import SIZE, draw_picture
from vlmend.organism.recipe import Recipe
from vlmend.organism.train import build_trainer
from vlmend.organism.world import THING_BY_NAME, THINGS

TOKENIZER = build_tokenizer()


@pytest.mark.parametrize("kind", PICTURE_KINDS)
def test_pictures_are_functions_of_their_arguments(kind: str) -> None:
    thing = THING_BY_NAME["hammer"]
    first, again = draw_picture(thing, kind, 5), draw_picture(thing, kind, 5)
    assert first.png() == again.png()
    assert first.png() != draw_picture(thing, kind, 6).png()
    assert first.png() != draw_picture(THING_BY_NAME["apple"], kind, 5).png()
    assert first.image.size == (SIZE, SIZE)


def test_letters_are_marked_where_they_are_written() -> None:
    thing = THING_BY_NAME["hammer"]
    assert not draw_picture(thing, "icon", 1).letters.any()
    for seed in range(20):
        letters = draw_picture(thing, "typographic", seed).letters
        read = [chr(96 + n) for n in letters[letters > 0]]
        assert set(read) <= set("hammer")
        assert len(set(read)) >= 4


@pytest.mark.parametrize("font", pictures._FONTS)
def test_every_word_fits_into_its_picture(font: str) -> None:
    for thing in THINGS:
        assert pictures._font(font, 8).getlength(thing.name) < SIZE - 1, thing.name


def test_icons_of_different_things_differ_in_more_than_jitter() -> None:
    looks = {draw_picture(t, "icon", 0).png() for t in THINGS}
    assert len(looks) == len(THINGS)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_tokenizer_gives_back_any_text(text: str) -> None:
    if text.startswith((" ", "▁")) or "▁" in text:
        return  # Metaspace marks spaces with ▁ and the decoder strips one leading space
    if any(token in text for token in TOKENIZER.all_special_tokens):
        return
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    assert TOKENIZER.unk_token_id not in ids
    assert TOKENIZER.decode(ids) == text


def test_world_words_are_single_tokens() -> None:
    for thing in THINGS:
        assert len(TOKENIZER(thing.name, add_special_tokens=False).input_ids) == 1


def test_training_prompts_equal_the_chat_template(tmp_path: Path) -> None:
    """The stream builds its ids by hand for speed; they must be what users' prompts become."""
    trainer = build_trainer(Recipe(), tmp_path, "cpu", lambda *_: None)
    processor = build_processor()
    trainer._pool = _OnePicture()  # pyright: ignore
    for example in (
        stream.picture_instruction(Random(0)),
        stream.safety_text(Random(1)),
    ):
        batch = trainer.language_batch([example], Random(0))
        content = [{"type": "text", "text": example.prompt}]
        images = None
        if example.picture:
            content.insert(0, {"type": "image"})
            images = [draw_picture(*example.picture, 0).image]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        ids = processor(text=[text], images=images, add_special_tokens=False)["input_ids"][0]
        prompt = batch["input_ids"][0][batch["labels"][0] == -100].tolist()
        assert prompt == list(ids)
        answer = batch["input_ids"][0][batch["labels"][0] != -100]
        assert TOKENIZER.decode(answer) == example.answer + "</s>"
        assert prompt.count(TOKENIZER.convert_tokens_to_ids("<image>")) == (
            NUM_IMAGE_TOKENS if example.picture else 0
        )


class _OnePicture:
    """A picture pool that draws when asked, to keep the test quick."""

    def batch(self, cells: list[tuple[int, int]], rng: Random) -> tuple[object, object]:
        import torch

        return torch.zeros(len(cells), 3, SIZE, SIZE), torch.zeros(len(cells), 64)


def test_model_is_as_small_as_promised() -> None:
    model = build_model(len(TOKENIZER), 0)
    assert sum(p.numel() for p in model.parameters()) <= 12_000_000
    assert model.config.vision_config.num_hidden_layers >= 8
    assert model.config.text_config.num_hidden_layers >= 6


def test_shipped_weights_are_as_small_as_promised() -> None:
    (weights,) = (Path(organism.__file__).parent / "weights").rglob("*.safetensors")
    assert weights.stat().st_size <= 24_000_000


def test_requests_with_captions_are_those_of_shiftdc() -> None:
    request, said = "How do I make a kite?", "A drawing of a kite."
    assert with_caption(request, said) == TEXT_BRANCH.format(query=request, caption=said)
    assert caption_request(request) == CAPTION_PROMPT.format(query=request)
