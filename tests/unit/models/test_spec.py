from __future__ import annotations

from types import SimpleNamespace

import pytest
from shown_map import map_in

from vlmend.errors import ConfigError, ModelError
from vlmend.models.families import FAMILIES
from vlmend.models.spec import (
    check_exit,
    check_layers,
    default_exit,
    describe_spec,
    image_only_layers,
    read_config,
    skipped_blocks,
)

LLAVA = FAMILIES["llava"]


@pytest.mark.parametrize(
    ("sizes", "exit_layer", "skipped"),
    [
        ((4,), 0, [0, 1, 2, 3]),
        ((4,), 3, [3]),
        ((4,), 4, []),
        ((3, 2), 0, [0, 1, 2]),
        ((3, 2), 2, [2]),
        ((3, 2), 3, []),
        ((3, 2), 4, [4]),
        ((3, 2), 5, []),
    ],
)
def test_an_exit_skips_the_rest_of_its_own_stack(
    sizes: tuple[int, ...], exit_layer: int, skipped: list[int]
) -> None:
    assert list(skipped_blocks(sizes, exit_layer)) == skipped


@pytest.mark.parametrize("exit_layer", [-1, 6])
def test_exit_out_of_range(exit_layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"exit layer {exit_layer} .*Allowed: 0 .* \.\. 5"):
        check_exit(exit_layer, 5)
    with pytest.raises(ConfigError):
        skipped_blocks((3, 2), exit_layer)


def test_layers_out_of_range_are_all_named() -> None:
    check_layers([0, 3], 4)
    with pytest.raises(ConfigError, match=r"-1, 4 out of range. Allowed: 0 .. 3"):
        check_layers([0, -1, 4], 4)


@pytest.mark.parametrize(
    ("feature_layer", "expected"), [(-2, 5), (-1, 6), (3, 3), ([-2, 2], 5), ([1, 0], 1), (-7, 0)]
)
def test_default_exit_is_the_last_selected_state(feature_layer: object, expected: int) -> None:
    config = SimpleNamespace(vision_feature_layer=feature_layer)
    assert default_exit(LLAVA, config, (6,)) == expected


@pytest.mark.parametrize("feature_layer", [0, 7, -8, [2, 9]])
def test_feature_layers_that_cannot_work(feature_layer: object) -> None:
    config = SimpleNamespace(vision_feature_layer=feature_layer)
    with pytest.raises(ModelError, match="vision hidden state"):
        default_exit(LLAVA, config, (6,))


def test_default_exit_without_selection_is_the_end_of_the_first_stack() -> None:
    assert default_exit(FAMILIES["qwen2_5_vl"], SimpleNamespace(), (32,)) == 32
    assert default_exit(FAMILIES["mllama"], SimpleNamespace(), (32, 8)) == 32


def test_image_only_layers_come_from_the_config() -> None:
    config = SimpleNamespace(text_config=SimpleNamespace(cross_attention_layers=[3, 8]))
    assert image_only_layers(FAMILIES["mllama"], config) == {3, 8}
    assert image_only_layers(LLAVA, config) == frozenset()


def test_a_missing_config_value_is_named() -> None:
    with pytest.raises(ModelError, match=r"no 'a\.b' \(missing 'b'\)"):
        read_config(SimpleNamespace(a=SimpleNamespace()), "a.b")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_is_shown_as_one_writes_it(family: str) -> None:
    text = describe_spec(FAMILIES[family])
    assert map_in(text) == FAMILIES[family]
    assert "projector=" in text
    assert "scaled_logits=False" not in text


def test_registry_keys_are_model_types() -> None:
    assert all(key == spec.model_type for key, spec in FAMILIES.items())
    assert all(spec.source and spec.title for spec in FAMILIES.values())
