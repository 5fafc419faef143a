"""Maps that are proposed from what modules did: on evidence made by hand, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from shown_map import map_in

from vlmend.errors import ModelError
from vlmend.models.discover import Call, Evidence, Shape, propose_spec
from vlmend.models.spec import UNKNOWN

STATES: Shape = (1, 9, 32)
PICTURE: Shape = (1, 16, 32)
LOGITS: Shape = (1, 9, 99)
CONFIG = {"text": {"num_layers": 3}, "vision": {"depth": 4, "patch": 3, "blocks": True}}


def call(
    path: str, given: Shape | None, made: Shape | None, by: str | None = None, *, tup: bool = False
) -> Call:
    return Call(path, given, made, by, as_tuple=tup)


def run_list(path: str, order: Sequence[int], shape: Shape, *, tup: bool = False) -> list[Call]:
    return [call(f"{path}.{number}", shape, shape, tup=tup) for number in order]


def decoder_calls(order: Sequence[int] = (0, 1, 2)) -> list[Call]:
    layers = run_list("decoder", order, STATES)
    last = f"decoder.{order[-1]}"
    head = call("head", STATES, LOGITS, "norm")
    return [call("words", None, STATES), *layers, call("norm", STATES, STATES, last), head]


def vision_calls(order: Sequence[int] = (0, 1, 2, 3)) -> list[Call]:
    return [call("patches", (1, 3, 32, 32), PICTURE), *run_list("encoder", order, PICTURE)]


PROJECTOR = [call("bridge", PICTURE, PICTURE), call("bridge.inner", PICTURE, PICTURE)]


def evidence(**changes: Any) -> Evidence:
    made = Evidence(
        model_type="made_up",
        title="MadeUp",
        lists={"encoder": 4, "decoder": 3},
        lm_head="head",
        width=32,
        on_text=tuple(decoder_calls()),
        on_image=(*vision_calls(), *PROJECTOR, *decoder_calls()),
        config=CONFIG,
    )
    return replace(made, **changes)


def with_picture(*before_decoder: Call) -> tuple[Call, ...]:
    return (*before_decoder, *decoder_calls())


def test_a_plain_family() -> None:
    spec = propose_spec(evidence())
    assert spec.decoder_layers == "decoder"
    assert spec.final_norm == "norm"
    assert spec.lm_head == "head"
    assert spec.vision_stacks == ("encoder",)
    # The whole projector, not its last part.
    assert spec.projector == "bridge"
    assert spec.decoder_layer_count == "text.num_layers"
    assert spec.vision_block_counts == ("vision.depth",)
    assert spec.image_only_layers is None
    assert not spec.tuple_blocks
    assert not spec.no_exits


def test_what_is_given_the_whole_prompt_is_no_projector() -> None:
    # It comes after pictures stand among the words, such as a dropout over both.
    after = call("drop", STATES, STATES)
    calls = with_picture(*vision_calls(), *PROJECTOR, after)
    assert propose_spec(evidence(on_image=calls)).projector == "bridge"


def test_names_play_no_part() -> None:
    names = {"decoder": "vision_tower", "encoder": "language_model", "bridge": "lm_head"}

    def rename(path: str | None) -> str | None:
        if path is None:
            return None
        first, *rest = path.split(".")
        return ".".join([names.get(first, first), *rest])

    def renamed(calls: Sequence[Call]) -> tuple[Call, ...]:
        return tuple(
            replace(c, path=str(rename(c.path)), given_by=rename(c.given_by)) for c in calls
        )

    plain = evidence()
    spec = propose_spec(
        replace(
            plain,
            lists={str(rename(path)): count for path, count in plain.lists.items()},
            on_text=renamed(plain.on_text),
            on_image=renamed(plain.on_image),
        )
    )
    assert spec.decoder_layers == "vision_tower"
    assert spec.vision_stacks == ("language_model",)
    assert spec.projector == "lm_head"


def test_the_list_that_ends_last_is_the_decoder() -> None:
    words = run_list("mixers", (0, 1), STATES)
    plain = evidence()
    spec = propose_spec(
        replace(
            plain,
            lists={"mixers": 2, **plain.lists},
            on_text=(*words, *plain.on_text),
            on_image=(*vision_calls(), *PROJECTOR, *words, *decoder_calls()),
        )
    )
    assert spec.decoder_layers == "decoder"
    assert spec.vision_stacks == ("encoder",)


def test_layers_that_run_only_with_a_picture() -> None:
    text = tuple(c for c in decoder_calls() if c.path != "decoder.1")
    assert propose_spec(evidence(on_text=text)).image_only_layers == (1,)


def test_a_list_inside_of_another_one_is_a_part() -> None:
    inner = call("decoder.0.experts.0", STATES, STATES)
    plain = evidence()
    spec = propose_spec(
        replace(
            plain,
            lists={**plain.lists, "decoder.0.experts": 1},
            on_text=(*plain.on_text[:1], inner, *plain.on_text[1:]),
        )
    )
    assert spec.decoder_layers == "decoder"


def test_two_stacks_that_follow_one_another() -> None:
    second = run_list("globally", (0, 1), PICTURE)
    spec = propose_spec(
        evidence(
            lists={"globally": 2, "encoder": 4, "decoder": 3},
            on_image=with_picture(*vision_calls(), *second, *PROJECTOR),
            config={**CONFIG, "global_layers": 2},
        )
    )
    assert spec.vision_stacks == ("encoder", "globally")
    assert spec.vision_block_counts == ("vision.depth", "global_layers")


def test_a_resampler_is_no_second_stack() -> None:
    queries: Shape = (1, 5, 32)
    resampler = run_list("resampler", (0, 1), queries)
    spec = propose_spec(
        evidence(
            lists={"resampler": 2, "encoder": 4, "decoder": 3},
            on_image=with_picture(*vision_calls(), *resampler),
        )
    )
    assert spec.vision_stacks == ("encoder",)
    # Its blocks stand side by side: none is all that stands between.
    assert spec.projector is None


def test_blocks_that_return_tuples() -> None:
    blocks = run_list("encoder", range(4), PICTURE, tup=True)
    assert propose_spec(evidence(on_image=with_picture(*blocks, *PROJECTOR))).tuple_blocks


@pytest.mark.parametrize(
    "blocks",
    [
        run_list("encoder", range(3), PICTURE),
        [*run_list("encoder", range(3), PICTURE), call("encoder.3", PICTURE, (1, 4, 32))],
        [*run_list("encoder", range(3), PICTURE), call("encoder.3", None, None)],
    ],
    ids=["one never runs", "one changes the shape", "one is given nothing"],
)
def test_what_is_no_vision_stack(blocks: list[Call]) -> None:
    spec = propose_spec(evidence(on_image=with_picture(*blocks, *PROJECTOR)))
    assert spec.vision_stacks == ()
    assert spec.projector is None
    assert "runs only with a picture" in spec.no_exits


def test_a_list_that_also_runs_on_words_is_no_vision_stack() -> None:
    blocks = run_list("encoder", range(4), STATES)
    plain = evidence()
    spec = propose_spec(replace(plain, on_text=(*blocks, *plain.on_text)))
    assert spec.vision_stacks == ()


def test_blocks_in_another_order_are_proposed_for_the_contract_to_refuse() -> None:
    calls = with_picture(*vision_calls((0, 2, 1, 3)), *PROJECTOR)
    assert propose_spec(evidence(on_image=calls)).vision_stacks == ("encoder",)


def test_an_ordered_stack_goes_before_one_in_another_order() -> None:
    other = run_list("aside", (1, 0), PICTURE)
    spec = propose_spec(
        evidence(
            lists={"aside": 2, "encoder": 4, "decoder": 3},
            on_image=with_picture(*other, *vision_calls(), *PROJECTOR),
        )
    )
    assert spec.vision_stacks == ("encoder",)


@pytest.mark.parametrize(
    "config",
    [{}, {"num_layers": 3, "other_layers": 3, "depth": 4, "blocks": 4}, {"layers": True}],
    ids=["silent", "ambiguous", "no number"],
)
def test_a_config_that_does_not_tell_counts(config: dict[str, Any]) -> None:
    spec = propose_spec(evidence(config=config))
    assert spec.decoder_layer_count is None
    assert spec.vision_block_counts == ()


def test_without_a_decoder_it_says_what_was_looked_at() -> None:
    with pytest.raises(ModelError) as caught:
        propose_spec(evidence(width=64))
    text = str(caught.value)
    assert "encoder (4), decoder (3)" in text
    assert "width 64" in text
    sketch = map_in(text)
    assert (sketch.model_type, sketch.lm_head) == ("made_up", "head")
    assert sketch.decoder_layers == sketch.final_norm == UNKNOWN
    with pytest.raises(ModelError, match="Lists looked at: none"):
        propose_spec(evidence(lists={}))


def test_without_a_norm_it_says_between_what() -> None:
    calls = (*run_list("decoder", range(3), STATES), call("head", STATES, LOGITS, "decoder.2"))
    with pytest.raises(ModelError, match=r"between the last decoder layer 'decoder\.2'") as caught:
        propose_spec(evidence(on_text=calls, on_image=calls))
    sketch = map_in(str(caught.value))
    assert (sketch.decoder_layers, sketch.final_norm) == ("decoder", UNKNOWN)
