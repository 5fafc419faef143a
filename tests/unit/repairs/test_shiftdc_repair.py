"""ShiftDC on tiny models of every family: what it does to activations and answers.

Shapes: B = prompts, S = columns, D = width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from mild_samples import (
    FAMILIES,
    SETTINGS,
    count_hooks,
    fit_samples,
    fitted,
    reading_stream,
    request,
    requests,
    sample,
    stream_of,
)
from torch import Tensor

from vlmend.directions.direction import Direction
from vlmend.directions.estimators import estimate
from vlmend.directions.stability import canonical_cosines
from vlmend.errors import ArtifactError, ConfigError, DataError, ModelError, UnknownNameError
from vlmend.evals.captions import CaptionCache
from vlmend.hooks.edit import EditFunction, EditReport
from vlmend.hooks.exits import VisionReplay, exit_vision_at
from vlmend.models.generation import Generation, GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.repairs.shiftdc import repair as repair_module
from vlmend.repairs.shiftdc.repair import ShiftDC, ShiftDCSettings
from vlmend.repairs.shiftdc.sources import GivenCaptions
from vlmend.testing import FLOAT32_NOISE, assert_close, picture, tiny_vlm
from vlmend.types import Conversation, Message, Sample, user

SHORT = GenerationSettings(max_new_tokens=4)
ONE = GenerationSettings(max_new_tokens=1)

INVARIANT_NOISE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}
"""What may be left along s, relative to |x|. Measured over 4 families and 3 seeds: at most 3.9e-7
and 9.7e-3. It is rounding of x: it shrinks as the steps do, from 2**-8 to 2**-24."""

VISIBLE = 6e-2
"""A shift along s, relative to |x|, that no rounding makes; without one a test shows nothing.
Measured before calibration over the same: at least 7.4e-2."""


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Vlm, ShiftDC]]:
    """A tiny model of every family with its fitted repair; tests leave both as they were."""
    return {family: (vlm := tiny_vlm(family), fitted(vlm)) for family in FAMILIES}


def with_settings(repair: ShiftDC, **changes: Any) -> ShiftDC:
    """The same fit under other settings, with captions of its own."""
    other = ShiftDC(replace(repair.settings, **changes))
    other.directions_ = dict(repair.directions_)
    other.facts_ = dict(repair.facts_)
    return other


def answers_and_stream(
    vlm: Vlm,
    repair: ShiftDC | None,
    conversations: Sequence[Conversation],
    settings: GenerationSettings = ONE,
) -> tuple[list[tuple[int, ...]], dict[int, Tensor]]:
    """Tokens of the answers, and the stream of their prompts with every edit in it."""
    if repair is not None:
        # Captions first, so that the last prompt seen is the one that is answered.
        repair.text_branch(vlm, conversations)
    with reading_stream(vlm) as seen:
        if repair is None:
            found = vlm.generate(conversations, settings)
        else:
            with repair.apply(vlm):
                found = vlm.generate(conversations, settings)
    return [answer.token_ids for answer in found], seen


def last_column(stream: Mapping[int, Tensor]) -> dict[int, Tensor]:
    return {layer: hidden[:, -1] for layer, hidden in stream.items()}


def left_along(x_BD: Tensor, x_text_BD: Tensor, direction: Direction) -> Tensor:
    """Length of the part of x - x_text in the span, relative to |x|, in float64."""
    x, x_text, s_KD = x_BD.double(), x_text_BD.double(), direction.vectors.double()
    part = (x - x_text) @ torch.linalg.pinv(s_KD) @ s_KD
    return part.norm(dim=1) / torch.maximum(x.norm(dim=1), x_text.norm(dim=1))


# ---- the invariant


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_after_online_calibration_nothing_is_left_along_s(family: str, dtype: torch.dtype) -> None:
    vlm = tiny_vlm(family, dtype=dtype)
    repair = fitted(vlm)
    conversations = requests()
    _, edited = answers_and_stream(vlm, repair, conversations)
    _, plain = answers_and_stream(vlm, None, conversations)
    x_text = last_column(stream_of(vlm, repair.text_branch(vlm, conversations)))
    assert repair.layers_
    for layer in repair.layers_:
        s = repair.directions_[layer]
        before = left_along(plain[layer][:, -1], x_text[layer], s)
        after = left_along(edited[layer][:, -1], x_text[layer], s)
        assert float(before.abs().max()) > VISIBLE
        assert float(after.abs().max()) < INVARIANT_NOISE[dtype]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_other_column_and_no_earlier_layer_is_touched(
    models: dict[str, tuple[Vlm, ShiftDC]], family: str
) -> None:
    vlm, repair = models[family]
    _, edited = answers_and_stream(vlm, repair, requests())
    _, plain = answers_and_stream(vlm, None, requests())
    first = repair.layers_[0]
    for layer, hidden in plain.items():
        assert torch.equal(edited[layer][:, :-1], hidden[:, :-1])
        assert torch.equal(edited[layer], hidden) == (layer < first)


def test_offline_leaves_more_than_nothing_along_s(
    models: dict[str, tuple[Vlm, ShiftDC]],
) -> None:
    vlm, repair = models["llava"]
    offline = with_settings(repair, mode="offline")
    conversations = requests()
    _, edited = answers_and_stream(vlm, offline, conversations)
    x_text = last_column(stream_of(vlm, offline.text_branch(vlm, conversations)))
    first, last = repair.layers_[0], repair.layers_[-1]
    s = repair.directions_
    at_first = left_along(edited[first][:, -1], x_text[first], s[first]).abs().max()
    at_last = left_along(edited[last][:, -1], x_text[last], s[last]).abs().max()
    assert float(at_first) < INVARIANT_NOISE[torch.float32]
    assert float(at_last) > VISIBLE


def test_offline_subtracts_the_clean_shifts(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    vlm, repair = models["llava"]
    offline = with_settings(repair, mode="offline")
    conversations = requests()
    _, edited = answers_and_stream(vlm, offline, conversations)
    _, plain = answers_and_stream(vlm, None, conversations)
    x_text = last_column(stream_of(vlm, offline.text_branch(vlm, conversations)))
    # By hand, from the first edited layer through the next one to its output.
    first, second = offline.layers_
    parts = {}
    for layer in (first, second):
        s = repair.directions_[layer].vectors[0].double()
        m = plain[layer][:, -1].double() - x_text[layer].double()
        parts[layer] = ((m @ s) / (s @ s))[:, None] * s
    by_hand = plain[first].clone()
    by_hand[:, -1] = (by_hand[:, -1].double() - parts[first]).float()
    inputs = vlm.encode(conversations)
    with edited_output(vlm, first, by_hand), torch.no_grad(), reading_stream(vlm) as seen:
        vlm.model(**inputs.inputs)
    expected = seen[second][:, -1].double() - parts[second]
    assert_close(edited[second][:, -1], expected, FLOAT32_NOISE)


@contextmanager
def edited_output(vlm: Vlm, layer: int, hidden: Tensor) -> Iterator[None]:
    def replaced(_module: Any, _args: Any, output: Any) -> Any:
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = vlm.decoder_layers[layer].register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


# ---- settings


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("factor", [-1.0, 37.0])
def test_sign_and_length_of_s_do_not_matter(
    models: dict[str, tuple[Vlm, ShiftDC]], family: str, mode: str, factor: float
) -> None:
    vlm, repair = models[family]
    repair = with_settings(repair, mode=mode)
    other = with_settings(repair)
    other.directions_ = {
        layer: Direction(factor * found.vectors, found.estimator)
        for layer, found in repair.directions_.items()
    }
    tokens, stream = answers_and_stream(vlm, repair, requests(), SHORT)
    other_tokens, other_stream = answers_and_stream(vlm, other, requests(), SHORT)
    assert tokens == other_tokens
    for layer, hidden in stream.items():
        assert_close(other_stream[layer], hidden, FLOAT32_NOISE)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_single_layer_online_is_offline_and_on_several_not(
    models: dict[str, tuple[Vlm, ShiftDC]], family: str
) -> None:
    vlm, repair = models[family]
    last = vlm.num_decoder_layers - 1
    for layers, equal in (((last - 1,), True), ((last,), True), (None, False)):
        if layers is not None and layers[0] in vlm.image_only_layers:
            continue
        streams = [
            answers_and_stream(vlm, with_settings(repair, layers=layers, mode=mode), requests())[1]
            for mode in ("online", "offline")
        ]
        difference = (streams[0][last] - streams[1][last])[:, -1].abs().max()
        scale = streams[0][last][:, -1].abs().max()
        if equal:
            assert_close(streams[1][last], streams[0][last], FLOAT32_NOISE)
        else:
            assert float(difference / scale) > 1e-2


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("strength", [0.25, 2.0])
def test_strength_is_the_share_that_is_removed(
    models: dict[str, tuple[Vlm, ShiftDC]], mode: str, strength: float
) -> None:
    vlm, repair = models["llava"]
    layer = vlm.num_decoder_layers - 2
    weak = with_settings(repair, layers=(layer,), mode=mode, strength=strength)
    _, edited = answers_and_stream(vlm, weak, requests())
    _, full = answers_and_stream(vlm, with_settings(weak, strength=1.0), requests())
    _, plain = answers_and_stream(vlm, None, requests())
    expected = plain[layer] + strength * (full[layer] - plain[layer])
    assert_close(edited[layer], expected, FLOAT32_NOISE)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_one_sided_leaves_shifts_towards_unsafe_alone(
    models: dict[str, tuple[Vlm, ShiftDC]], mode: str
) -> None:
    vlm, repair = models["llava"]
    layer = vlm.num_decoder_layers - 2
    both_sides = with_settings(repair, layers=(layer,), mode=mode)
    conversations = requests(12)
    _, plain = answers_and_stream(vlm, None, conversations)
    _, full = answers_and_stream(vlm, both_sides, conversations)
    _, edited = answers_and_stream(vlm, with_settings(both_sides, one_sided=True), conversations)
    s = repair.directions_[layer].vectors[0]
    shift = (plain[layer][:, -1] - full[layer][:, -1]) @ s
    towards_safe = shift > 0
    assert set(towards_safe.tolist()) == {True, False}, "this test needs shifts of both kinds"
    assert torch.equal(edited[layer][towards_safe], full[layer][towards_safe])
    assert torch.equal(edited[layer][~towards_safe], plain[layer][~towards_safe])


def test_default_layers_are_the_upper_half(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    assert models["llava"][1].layers_ == (2, 3)
    assert models["qwen2_5_vl"][1].layers_ == (2, 3)


def test_mllamas_default_layers_leave_cross_attention_out(
    models: dict[str, tuple[Vlm, ShiftDC]],
) -> None:
    vlm, repair = models["mllama"]
    assert vlm.image_only_layers == {1, 4}
    assert sorted(repair.directions_) == [0, 2, 3, 5]
    assert repair.layers_ == (3, 5)


def test_chosen_layers_are_edited_and_no_others(
    models: dict[str, tuple[Vlm, ShiftDC]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, repair = models["llava"]
    reports = spy_on_edits(monkeypatch)
    answers_and_stream(vlm, with_settings(repair, layers=(3, 0, 3)), requests())
    assert [report.columns for report in reports] == [{0: 1, 3: 1}]


@pytest.mark.parametrize("layers", [(4,), (-1,), (1, 9)])
def test_layers_out_of_range(models: dict[str, tuple[Vlm, ShiftDC]], layers: tuple[int]) -> None:
    vlm, repair = models["llava"]
    with pytest.raises(ConfigError, match=r"out of range. Allowed: 0 .. 3"):
        ShiftDC(replace(SETTINGS, layers=layers)).fit(vlm, fit_samples())
    with (
        pytest.raises(ConfigError, match="out of range"),
        with_settings(repair, layers=layers).apply(vlm),
    ):
        pass


def test_layers_that_do_not_run_on_text(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    vlm, repair = models["mllama"]
    message = r"layers \[1, 4\] .* do not run on text alone.* Allowed: 0, 2, 3, 5"
    with pytest.raises(ConfigError, match=message):
        ShiftDC(replace(SETTINGS, layers=(1, 3, 4))).fit(vlm, fit_samples())
    with (
        pytest.raises(ConfigError, match=message),
        with_settings(repair, layers=(1, 3, 4)).apply(vlm),
    ):
        pass


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ShiftDCSettings(
            layers=(),
            mode="sideways",  # pyright: ignore[reportArgumentType]
            strength=float("nan"),
            caption_tokens=0,
        )
    for name in ("layers=()", "mode='sideways'", "strength=nan", "caption_tokens=0"):
        assert name in str(caught.value)


@pytest.mark.parametrize("strength", [0.0, -1.0, 2.1])
def test_strength_has_a_range(strength: float) -> None:
    with pytest.raises(ConfigError, match="above 0, at most 2"):
        ShiftDCSettings(strength=strength)


def test_the_name_tells_what_is_not_default() -> None:
    assert ShiftDC().name == "shiftdc"
    named = ShiftDC(ShiftDCSettings(layers=(2, 3), mode="offline", one_sided=True)).name
    assert named == "shiftdc(layers=2-3, mode=offline, one_sided=True)"


# ---- answers


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_change(models: dict[str, tuple[Vlm, ShiftDC]], family: str) -> None:
    vlm, repair = models[family]
    plain, _ = answers_and_stream(vlm, None, requests(12), SHORT)
    mended, _ = answers_and_stream(vlm, repair, requests(12), SHORT)
    assert plain != mended


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_nothing_happens_when_both_branches_agree(
    models: dict[str, tuple[Vlm, ShiftDC]], monkeypatch: pytest.MonkeyPatch, family: str, mode: str
) -> None:
    vlm, repair = models[family]
    repair = with_settings(repair, mode=mode)
    tokens, plain = answers_and_stream(vlm, None, requests(), SHORT)
    _, moved = answers_and_stream(vlm, repair, requests(), SHORT)
    last = vlm.num_decoder_layers - 1
    assert not torch.equal(moved[last], plain[last])
    monkeypatch.setattr(repair, "text_branch", lambda _vlm, conversations: list(conversations))
    same_tokens, same = answers_and_stream(vlm, repair, requests(), SHORT)
    assert same_tokens == tokens
    for layer, hidden in plain.items():
        assert_close(same[layer], hidden, FLOAT32_NOISE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_batch_equals_one_by_one(
    models: dict[str, tuple[Vlm, ShiftDC]], family: str, mode: str
) -> None:
    vlm, repair = models[family]
    batched = with_settings(repair, mode=mode)
    tokens, stream = answers_and_stream(vlm, batched, requests(), SHORT)
    for row, conversation in enumerate(requests()):
        alone = with_settings(repair, mode=mode)
        (single,), single_stream = answers_and_stream(vlm, alone, [conversation], SHORT)
        assert tokens[row][: len(single)] == single
        for layer in stream:
            assert_close(stream[layer][row, -1], single_stream[layer][0, -1], FLOAT32_NOISE)


def spy_on_edits(monkeypatch: pytest.MonkeyPatch) -> list[EditReport]:
    """The reports of every edit that repairs open from now on."""
    reports: list[EditReport] = []
    real = repair_module.edit_layers

    @contextmanager
    def edit_layers(
        vlm: Vlm, functions: Mapping[int, EditFunction], position: Any
    ) -> Iterator[EditReport]:
        with real(vlm, functions, position) as report:
            reports.append(report)
            yield report

    monkeypatch.setattr(repair_module, "edit_layers", edit_layers)
    return reports


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_steps_are_untouched(
    models: dict[str, tuple[Vlm, ShiftDC]], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    vlm, repair = models[family]
    reports = spy_on_edits(monkeypatch)
    cached, _ = answers_and_stream(vlm, repair, requests(), SHORT)
    uncached, _ = answers_and_stream(vlm, repair, requests(), replace(SHORT, use_cache=False))
    assert cached == uncached
    with_cache, without_cache = reports
    once = dict.fromkeys(repair.layers_, 1)
    assert with_cache.calls == with_cache.columns == once
    # Without a cache every step runs the prompt again, and must edit the same one column.
    steps = max(map(len, uncached))
    assert steps > 1
    every_step = dict.fromkeys(repair.layers_, steps)
    assert without_cache.calls == without_cache.columns == every_step


def test_an_edit_that_reaches_nothing_is_an_error(
    models: dict[str, tuple[Vlm, ShiftDC]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, repair = models["llava"]
    repair.text_branch(vlm, requests())
    answer = Generation("", "eos", 1, 1, (2,))
    monkeypatch.setattr(vlm, "generate_plain", lambda prompts, _settings: [answer] * len(prompts))
    with repair.apply(vlm), pytest.raises(ModelError, match="did nothing at decoder layer"):
        vlm.generate(requests())


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_without_an_image_pass_through(
    models: dict[str, tuple[Vlm, ShiftDC]], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    vlm, repair = models[family]
    prompts = [user("How do I bake a cake?"), user("Hi")]
    plain = vlm.generate(prompts, SHORT)
    reports = spy_on_edits(monkeypatch)
    misses = repair.captions.misses
    with repair.apply(vlm):
        assert vlm.generate(prompts, SHORT) == plain
    assert not reports
    assert repair.captions.misses == misses


def test_prompts_with_and_without_an_image_do_not_mix(
    models: dict[str, tuple[Vlm, ShiftDC]],
) -> None:
    vlm, repair = models["llava"]
    # With the caption known, nothing but the check itself stands in the way.
    repair.text_branch(vlm, [request(0)])
    with repair.apply(vlm), pytest.raises(ConfigError, match="mixes prompts with 0 and 1 images"):
        vlm.generate([request(0), user("Hi")])


@pytest.mark.parametrize(
    "conversation",
    [
        user("Compare these.", picture(0), picture(1)),
        user("What is it?", picture(0), system="Be kind."),
        (
            Message("user", (picture(0), "Look here.")),
            Message("assistant", ("I see.",)),
            Message("user", ("And what is it?",)),
        ),
    ],
    ids=["two images", "system message", "image in an earlier turn"],
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_conversations_of_every_shape_are_calibrated(
    models: dict[str, tuple[Vlm, ShiftDC]], family: str, conversation: Conversation
) -> None:
    vlm, repair = models[family]
    _, edited = answers_and_stream(vlm, repair, [conversation])
    x_text = last_column(stream_of(vlm, repair.text_branch(vlm, [conversation])))
    for layer in repair.layers_:
        left = left_along(edited[layer][:, -1], x_text[layer], repair.directions_[layer])
        assert float(left.abs().max()) < INVARIANT_NOISE[torch.float32]


def test_an_empty_caption_still_calibrates(
    models: dict[str, tuple[Vlm, ShiftDC]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, repair = models["llava"]
    repair = with_settings(repair)
    silent = Generation("", "eos", 1, 1, (2,))
    with monkeypatch.context() as patch:
        patch.setattr(vlm, "generate_plain", lambda prompts, _settings: [silent] * len(prompts))
        branch = repair.text_branch(vlm, requests(2))
    assert [turn.text for (turn,) in branch] == [
        "How do I bake a cake? Image Caption: ",
        "What is it? Image Caption: ",
    ]
    _, edited = answers_and_stream(vlm, repair, requests(2))
    x_text = last_column(stream_of(vlm, branch))
    layer = repair.layers_[-1]
    left = left_along(edited[layer][:, -1], x_text[layer], repair.directions_[layer])
    assert float(left.abs().max()) < INVARIANT_NOISE[torch.float32]


@pytest.mark.parametrize(("mode", "passes"), [("online", 1), ("offline", 2)])
def test_online_needs_no_second_pass_over_the_image(
    models: dict[str, tuple[Vlm, ShiftDC]], mode: str, passes: int
) -> None:
    vlm, repair = models["llava"]
    repair = with_settings(repair, mode=mode)
    runs: list[int] = []
    handle = vlm.vision_blocks[0].register_forward_hook(lambda *_: runs.append(1))
    with repair.apply(vlm):
        vlm.generate(requests(), SHORT)
        assert len(runs) == 1 + passes  # and one for the captions
        runs.clear()
        vlm.generate(requests(), SHORT)
    handle.remove()
    assert len(runs) == passes


# ---- exits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sweep_of_exits_equals_exit_by_exit(
    models: dict[str, tuple[Vlm, ShiftDC]], family: str
) -> None:
    vlm, repair = models[family]
    swept, single = with_settings(repair), with_settings(repair)
    exits = (None, 0, 2, vlm.default_exit)
    with swept.apply(vlm), VisionReplay(vlm) as replay:
        found = {}
        for replay.exit in exits:
            found[replay.exit] = vlm.generate(requests(), SHORT)
        assert replay.records == 1
        assert replay.block_runs[0] == 1
    with single.apply(vlm):
        assert vlm.generate(requests(), SHORT) == found[None]
        for exit_layer in exits[1:]:
            assert exit_layer is not None
            with exit_vision_at(vlm, exit_layer):
                assert vlm.generate(requests(), SHORT) == found[exit_layer]
    # Every exit sees something else, so every exit has captions of its own.
    assert swept.captions.misses == len(exits) * len(requests())
    assert single.captions.misses == swept.captions.misses


# ---- applying


def failing(_conversations: object, _settings: object) -> list[Generation]:
    raise RuntimeError("stop")


@pytest.mark.parametrize("when", ["in the block", "in the answer"])
def test_after_a_failure_the_model_is_as_before(
    models: dict[str, tuple[Vlm, ShiftDC]], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    vlm, repair = models["llava"]
    hooks, plain = count_hooks(vlm), vlm.generate(requests(), SHORT)
    in_block = partial(failing, (), SHORT)
    action = in_block if when == "in the block" else partial(vlm.generate, requests(), SHORT)
    repair.text_branch(vlm, requests())
    with monkeypatch.context() as patch:
        patch.setattr(vlm, "generate_plain", failing)
        with pytest.raises(RuntimeError, match="stop"), repair.apply(vlm):
            action()
    assert vlm.middlewares == ()
    assert vlm.conditions == ()
    assert count_hooks(vlm) == hooks
    assert vlm.generate(requests(), SHORT) == plain


def test_it_must_be_the_innermost(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    vlm, repair = models["llava"]

    def shout(
        conversations: Sequence[Conversation], settings: GenerationSettings, call_next: Callable
    ) -> list[Generation]:
        return call_next([user(c[-1].text + "!", *c[-1].images) for c in conversations], settings)

    with (
        vlm.using(shout),
        pytest.raises(ConfigError, match="before any other repair"),
        repair.apply(vlm),
    ):
        pass
    with repair.apply(vlm), pytest.raises(ConfigError, match="only once"), repair.apply(vlm):
        pass
    # Around it, another repair's prompts are those that are captioned and calibrated.
    misses = repair.captions.misses
    with repair.apply(vlm), vlm.using(shout):
        vlm.generate([request(0)], ONE)
    assert repair.captions.misses == misses + 1


def test_it_is_not_applied_to_other_weights(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    _, repair = models["llava"]
    other = tiny_vlm("llava", seed=1)
    with pytest.raises(ArtifactError, match="fitted on 'tiny-llava'"), repair.apply(other):
        pass
    assert other.middlewares == ()


def test_unfitted() -> None:
    vlm = tiny_vlm("llava")
    with pytest.raises(ArtifactError, match="never fitted"), ShiftDC().apply(vlm):
        pass
    with pytest.raises(ArtifactError, match="never fitted"):
        _ = ShiftDC().fingerprint


# ---- fitting


@pytest.mark.parametrize("family", FAMILIES)
def test_the_direction_is_the_difference_of_means_in_text(
    models: dict[str, tuple[Vlm, ShiftDC]], family: str
) -> None:
    vlm, repair = models[family]
    means: dict[str, dict[int, Tensor]] = {}
    for label in ("benign", "harmful"):
        rows: dict[int, list[Tensor]] = {}
        for item in (s for s in fit_samples() if s.label == label):
            words = repair.text_branch(vlm, [item.messages]) if item.images else [item.messages]
            for layer, hidden in stream_of(vlm, words).items():
                rows.setdefault(layer, []).append(hidden[0, -1].double())
        means[label] = {layer: torch.stack(found).mean(0) for layer, found in rows.items()}
    for layer, direction in repair.directions_.items():
        assert direction.vectors.dtype == torch.float32
        assert direction.vectors.shape == (1, vlm.hidden_size)
        expected = means["benign"][layer] - means["harmful"][layer]
        assert_close(direction.vectors[0], expected, FLOAT32_NOISE)


def test_facts_name_what_it_was_fitted_on(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    vlm, repair = models["llava"]
    facts = repair.facts_
    assert facts["model"] == "tiny-llava"
    assert facts["weights_sha256"] == vlm.weights_sha256
    assert (facts["num_harmful"], facts["num_benign"]) == (3, 3)
    assert facts["position"] == "prompt_last"
    assert "0-based" in facts["layer_convention"]
    assert sorted(repair.fitted_items) == sorted(s.id for s in fit_samples())
    assert len(set(repair.fitted_items.values())) == len(fit_samples())


def test_the_data_hash_reads_labels_and_prompts_in_any_order(
    models: dict[str, tuple[Vlm, ShiftDC]],
) -> None:
    vlm, repair = models["llava"]
    samples = fit_samples()

    def data_hash(given: list[Sample]) -> str:
        return ShiftDC(SETTINGS, repair.captions).fit(vlm, given).facts_["data_sha256"]

    expected = repair.facts_["data_sha256"]
    assert data_hash(samples[::-1]) == expected
    relabelled = [replace(samples[0], label="benign"), *samples[1:]]
    reworded = [replace(samples[0], messages=request(9)), *samples[1:]]
    assert expected not in {data_hash(relabelled), data_hash(reworded)}


@pytest.mark.parametrize("label", ["harmful", "benign"])
def test_both_labels_are_needed(models: dict[str, tuple[Vlm, ShiftDC]], label: str) -> None:
    vlm, _ = models["llava"]
    given = [s for s in fit_samples() if s.label != label]
    with pytest.raises(DataError, match=f"there are no {label} ones among the 3 given"):
        ShiftDC(SETTINGS).fit(vlm, given)


def test_no_items_at_all(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    with pytest.raises(DataError, match="no harmful and no benign"):
        ShiftDC(SETTINGS).fit(models["llava"][0], [])


def test_items_given_twice(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    samples = fit_samples()
    with pytest.raises(DataError, match="the first is 'mild/h1'"):
        ShiftDC(SETTINGS).fit(models["llava"][0], [*samples, samples[2]])


def test_labels_that_make_no_difference(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    given = [sample("h", "harmful", user("Hi")), sample("b", "benign", user("Hi"))]
    with pytest.raises(DataError, match=r"no safety direction at decoder layers \[0, 1, 2, 3\]"):
        ShiftDC(SETTINGS).fit(models["llava"][0], given)


def test_a_failed_fit_leaves_the_repair_unfitted(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    repair = ShiftDC(SETTINGS)
    given = [sample("h", "harmful", user("Hi")), sample("b", "benign", user("Hi"))]
    with pytest.raises(DataError):
        repair.fit(models["llava"][0], given)
    assert not repair.directions_
    assert not repair.facts_


# ---- the fingerprint


def test_the_fingerprint_changes_with_all_that_changes_an_answer(
    models: dict[str, tuple[Vlm, ShiftDC]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, repair = models["llava"]
    prints = [
        with_settings(repair, **changes).fingerprint
        for changes in (
            {},
            {"mode": "offline"},
            {"strength": 0.5},
            {"one_sided": True},
            {"caption_tokens": 4},
            {"layers": (3,)},
            {"layers": (1, 2, 3)},
        )
    ]
    # Two values exchanged: no sum would notice.
    other = with_settings(repair)
    s = other.directions_[2].vectors.clone()
    s[0, [0, 1]] = s[0, [1, 0]]
    other.directions_[2] = Direction(s, "difference-in-means")
    prints.append(other.fingerprint)
    swapped = with_settings(repair)
    swapped.directions_ |= {2: repair.directions_[3], 3: repair.directions_[2]}
    prints.append(swapped.fingerprint)
    for constant in ("CAPTION_PROMPT", "TEXT_BRANCH"):
        with monkeypatch.context() as patch:
            patch.setattr(repair_module, constant, "other words")
            prints.append(repair.fingerprint)
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_changes_with_nothing_else(
    models: dict[str, tuple[Vlm, ShiftDC]],
) -> None:
    vlm, repair = models["llava"]
    again = ShiftDC(SETTINGS, CaptionCache()).fit(vlm, fit_samples())
    assert again.fingerprint == repair.fingerprint
    for changes in ({"layers": (3, 2, 2)}, {"layers": (2, 3)}, {"strength": 1}):
        assert with_settings(repair, **changes).fingerprint == repair.fingerprint
    unused = with_settings(repair)
    unused.directions_[0] = Direction(-unused.directions_[0].vectors, "difference-in-means")
    unused.facts_["data_sha256"] = "other items, same direction"
    assert unused.fingerprint == repair.fingerprint


# ---- other directions


ESTIMATORS = [
    ("logistic-probe", 1),
    ("paired-pca", 1),
    ("whitened-difference", 1),
    ("subspace", 1),
    ("subspace", 3),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_in_a_subspace(family: str) -> None:
    vlm = tiny_vlm(family)
    repair = fitted(vlm, replace(SETTINGS, estimator="subspace", rank=3))
    conversations = requests()
    _, edited = answers_and_stream(vlm, repair, conversations)
    _, plain = answers_and_stream(vlm, None, conversations)
    x_text = last_column(stream_of(vlm, repair.text_branch(vlm, conversations)))
    for layer in repair.layers_:
        direction = repair.directions_[layer]
        assert direction.rank == 3
        assert float(left_along(plain[layer][:, -1], x_text[layer], direction).max()) > VISIBLE
        after = left_along(edited[layer][:, -1], x_text[layer], direction)
        assert float(after.max()) < INVARIANT_NOISE[torch.float32]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_another_basis_of_a_subspace_gives_the_same_answers(
    models: dict[str, tuple[Vlm, ShiftDC]], mode: Any
) -> None:
    vlm, _ = models["llava"]
    repair = fitted(vlm, replace(SETTINGS, estimator="subspace", rank=2, mode=mode))
    other = with_settings(repair)
    mix = torch.tensor([[0.6, -0.8], [-8.0, -6.0]])
    other.directions_ = {
        layer: Direction(mix @ found.vectors, "subspace")
        for layer, found in repair.directions_.items()
    }
    tokens, stream = answers_and_stream(vlm, repair, requests(), SHORT)
    other_tokens, other_stream = answers_and_stream(vlm, other, requests(), SHORT)
    assert tokens == other_tokens
    for layer, hidden in stream.items():
        assert_close(other_stream[layer], hidden, FLOAT32_NOISE)


@pytest.mark.parametrize(("estimator", "rank"), ESTIMATORS)
def test_the_direction_is_that_of_the_estimator(
    models: dict[str, tuple[Vlm, ShiftDC]], estimator: str, rank: int
) -> None:
    vlm, default = models["llava"]
    settings = replace(SETTINGS, estimator=estimator, rank=rank)
    repair = ShiftDC(settings, default.captions).fit(vlm, fit_samples())
    words = {
        label: [
            default.text_branch(vlm, [s.messages])[0] if s.images else s.messages
            for s in fit_samples()
            if s.label == label
        ]
        for label in ("benign", "harmful")
    }
    acts = {
        label: [stream_of(vlm, [conversation]) for conversation in conversations]
        for label, conversations in words.items()
    }
    for layer in range(vlm.num_decoder_layers):
        safe, unsafe = (
            torch.stack([seen[layer][0, -1] for seen in acts[label]])
            for label in ("benign", "harmful")
        )
        expected = estimate(estimator, safe, unsafe, rank=rank)
        found = repair.directions_[layer]
        assert (found.estimator, found.rank) == (estimator, rank)
        # Activations of a batch and of single prompts differ by rounding; probes amplify it.
        assert min(canonical_cosines(found, expected)) > 1 - 1e-5
    same = (estimator, rank) == ("subspace", 1)
    assert (repair.fingerprint == default.fingerprint) == same


def test_kinds_of_harm_make_the_subspace(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    vlm, default = models["llava"]
    kinds = iter("abcabc")
    samples = [replace(s, meta={"category": next(kinds)}) for s in fit_samples()]
    merged = [replace(s, meta={"category": "one"}) for s in samples]
    settings = replace(SETTINGS, estimator="subspace", rank=2)
    ShiftDC(settings, default.captions).fit(vlm, samples)
    with pytest.raises(DataError, match=r"layers \[0, 1, 2, 3\]: .* 1 groups .* span 1 direction"):
        ShiftDC(settings, default.captions).fit(vlm, merged)


def test_an_estimator_is_checked_before_anything_runs() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'paired-pca'"):
        ShiftDCSettings(estimator="paired-pc")
    with pytest.raises(ConfigError, match="which finds one vector"):
        ShiftDCSettings(rank=2)
    with pytest.raises(ConfigError, match=r"one_sided with rank=2 .*not defined"):
        ShiftDCSettings(estimator="subspace", rank=2, one_sided=True)
    with pytest.raises(ConfigError, match="caption_source='mine'"):
        ShiftDCSettings(caption_source="mine")  # pyright: ignore[reportArgumentType]


# ---- other words


def with_captions(samples: list[Sample]) -> list[Sample]:
    return [replace(s, meta={"caption": f"A thing of {s.label}."}) for s in samples]


def measured() -> list[Sample]:
    given = [sample(f"t{seed}", "harmful", request(seed)) for seed in range(4)]
    return [replace(s, meta={"caption": f"Cake number {i}."}) for i, s in enumerate(given)]


def test_without_captions_nothing_is_captioned(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    vlm, default = models["llava"]
    repair = fitted(vlm, replace(SETTINGS, caption_source="none"))
    assert [turn.content for (turn,) in repair.text_branch(vlm, requests(2))] == [
        ("How do I bake a cake?",),
        ("What is it?",),
    ]
    conversations = requests()
    _, edited = answers_and_stream(vlm, repair, conversations)
    in_words = [user(conversation[-1].text) for conversation in conversations]
    x_text = last_column(stream_of(vlm, in_words))
    for layer in repair.layers_:
        left = left_along(edited[layer][:, -1], x_text[layer], repair.directions_[layer])
        assert float(left.max()) < INVARIANT_NOISE[torch.float32]
    assert repair.captions.misses == 0
    assert repair.fingerprint != default.fingerprint


def test_given_captions_are_fitted_on_and_answered_with(
    models: dict[str, tuple[Vlm, ShiftDC]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, _ = models["llava"]
    repair = ShiftDC(replace(SETTINGS, caption_source="given"))
    with monkeypatch.context() as patch:
        patch.setattr(vlm, "generate_plain", None)
        repair.fit(vlm, with_captions(fit_samples()))
    captions = repair.captions
    assert isinstance(captions, GivenCaptions)
    before = repair.fingerprint
    with repair.apply(vlm), pytest.raises(DataError, match="4 of 4 prompts have no given caption"):
        vlm.generate(requests(), ONE)
    captions.add(measured())
    assert repair.fingerprint != before
    assert [turn.text for (turn,) in repair.text_branch(vlm, requests(2))] == [
        "How do I bake a cake? Image Caption: Cake number 0.",
        "What is it? Image Caption: Cake number 1.",
    ]
    with repair.apply(vlm):
        assert len(vlm.generate(requests(), ONE)) == 4


def test_items_without_a_caption_are_named(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    vlm, _ = models["llava"]
    message = (
        r"4 of 4 items with an image come without a caption \(mild/h0, mild/b1, mild/b2, ...\)"
    )
    with pytest.raises(DataError, match=message):
        ShiftDC(replace(SETTINGS, caption_source="given")).fit(vlm, fit_samples())


def test_captions_of_the_wrong_kind_are_refused(models: dict[str, tuple[Vlm, ShiftDC]]) -> None:
    vlm, default = models["llava"]
    for source, captions in (("given", CaptionCache()), ("self", GivenCaptions())):
        repair = with_settings(default, caption_source=source)
        repair.captions = captions
        with pytest.raises(ConfigError, match="captions of the wrong kind"), repair.apply(vlm):
            pass
    assert vlm.middlewares == ()
