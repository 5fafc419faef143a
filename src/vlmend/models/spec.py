"""Where the parts of a VLM family are. Data and arithmetic only: no torch.

The one layer convention of vlmend, stated here and used everywhere:

- *Decoder layer i* is 0-based, and "at layer i" means the *output* of decoder layer i: the
  residual stream before layer i + 1, and before the final norm for the last one.
- *Vision exit l* runs from 0 to N, N being the number of vision blocks. h_0 = patch
  embeddings (every block is the identity), h_l = output of block l, counted from 1.
  "Exit at l" makes the blocks above l the identity; everything after the blocks runs
  unchanged. With several stacks the blocks are numbered through, but an exit cuts only the
  stack it lies in: the stacks after it still run, on the state it leaves. So the exit at the
  end of a stack cuts nothing, and exits inside a later stack cut that later stack alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import accumulate
from typing import Any, Literal, cast

from vlmend.errors import ConfigError, ModelError

PictureColumns = Literal["all", "some", "none"]


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """The map of one model family.

    Module paths are dotted and start at the top-level `...ForConditionalGeneration` model;
    config paths are dotted and start at its config.

    Attributes:
        model_type: `config.model_type` of the family, the key of the registry.
        title: Name for people.
        source: Class and documentation that the map was read from.
        decoder_layers: Module path of the list of decoder layers.
        final_norm: Module path of the norm after the last decoder layer.
        lm_head: Module path of the unembedding.
        vision_stacks: Module paths of the lists of vision blocks, in the order they run; none
            where `no_exits` says why.
        projector: Module path of the projector (vision width -> decoder width), or None where no
            one module is all that stands between them.
        decoder_layer_count: Config path of the number of decoder layers, or None where the config
            does not tell.
        vision_block_counts: Config paths of the number of blocks, one per vision stack, or none
            where the config does not tell.
        image_only_layers: Config path of the decoder layers that run only when there is an
            image, the layers themselves, or None when every layer always runs.
        feature_layers: Config path of the vision hidden state(s) that feed the projector
            (0 = patch embeddings, negative counts from the end), or None when the projector
            reads the output of the last block.
        measured_exit: The smallest exit that equals no exit, where that was measured on the model
            instead of read from its config.
        no_exits: Why there are no vision exits; empty where there are.
        chat_template: Jinja template for processors that come without one.
        scaled_logits: Whether the model scales its logits as its decoder's config says; most
            classes that put a tower in front of a decoder leave that out.
        tuple_blocks: Whether vision blocks return a tuple that begins with the states.
        flat_images: Whether the processor takes the images of a batch as one list, and not as
            one list per prompt.
        words_by_tokenizer: Whether prompts without a picture are read by the tokenizer alone,
            because the processor refuses them or warns of them.
        marks_by_processor: Whether the processor writes what stands for a picture, and the chat
            template nothing; such a prompt holds one picture at most.
        always_asked: Inputs of pictures that the model asks for in every prompt; beside words
            alone they hold one blank picture, which no column stands for.
        picture_mask: Input that says by column where a picture stands, in a family without an id
            for that; beside words alone it is zero.
        position_before: Config path of the position before the first one, in a family that loses
            count behind padding while it generates with a cache; vlmend counts for it.
        renamed_inputs: What the processor returns under a name that the model has given up, and
            the model's own name for it.
        pictures_alone: Whether pictures must be encoded one at a time, because the model sees
            what they are padded with in a batch.
        inserter: Module path of what puts pictures among the embedded words, where the decoder
            does that itself; None where it is given them.
        picture_columns: Which columns of a picture change with what it shows: "all" of them;
            "some", where others hold the ends of rows of patches, or codes of a quantiser, which
            may be the same; "none", where the layers look at pictures by cross-attention.
        changed_after: Decoder layers whose output the model changes at the columns of pictures
            before the next layer reads it (DeepStack).
        notes: Quirks worth knowing, one sentence each.
    """

    model_type: str
    title: str
    source: str
    decoder_layers: str
    final_norm: str
    lm_head: str
    vision_stacks: tuple[str, ...]
    projector: str | None
    decoder_layer_count: str | None
    vision_block_counts: tuple[str, ...]
    image_only_layers: str | tuple[int, ...] | None = None
    feature_layers: str | None = None
    measured_exit: int | None = None
    no_exits: str = ""
    chat_template: str | None = None
    scaled_logits: bool = False
    tuple_blocks: bool = False
    flat_images: bool = False
    words_by_tokenizer: bool = False
    marks_by_processor: bool = False
    always_asked: tuple[str, ...] = ()
    picture_mask: str | None = None
    position_before: str | None = None
    renamed_inputs: tuple[tuple[str, str], ...] = ()
    pictures_alone: bool = False
    inserter: str | None = None
    picture_columns: PictureColumns = "all"
    changed_after: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        assert len(self.vision_block_counts) in (0, len(self.vision_stacks)), "one count per stack"
        assert bool(self.vision_stacks) != bool(self.no_exits), "exits, or why there are none"

    @property
    def decoder(self) -> str:
        """Module path of the decoder itself, the owner of the list of layers."""
        return self.decoder_layers.rpartition(".")[0]


PROMPT_FIELDS = (
    "chat_template",
    "flat_images",
    "words_by_tokenizer",
    "marks_by_processor",
    "always_asked",
    "picture_mask",
    "position_before",
    "renamed_inputs",
)
"""What of a map holds for every model of the type, whatever its parts are."""


UNKNOWN = "?"
"""Stands in a sketched map for a path that is not known."""


def sketch_spec(model_type: str, title: str, *, lm_head: str, decoder_layers: str) -> FamilySpec:
    """A map to be filled in by hand, where hardly anything of a model is known."""
    return FamilySpec(
        model_type=model_type,
        title=title,
        source=UNKNOWN,
        decoder_layers=decoder_layers,
        final_norm=UNKNOWN,
        lm_head=lm_head,
        vision_stacks=(),
        projector=None,
        decoder_layer_count=None,
        vision_block_counts=(),
        no_exits=UNKNOWN,
    )


def describe_spec(spec: FamilySpec) -> str:
    """A map as one writes it: all that must be given, and what is not as it is by default."""
    shown = {
        entry.name: getattr(spec, entry.name)
        for entry in fields(spec)
        if entry.default is MISSING or getattr(spec, entry.name) != entry.default
    }
    return f"FamilySpec({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def advise_map(spec: FamilySpec) -> str:
    """What to do about a model that cannot be mapped, for the end of an error."""
    return (
        "Write the right map, as a family file or for `load_vlm(..., family=...)`, starting from "
        f"{describe_spec(spec)}."
    )


def read_config(config: object, path: str) -> Any:
    """Read a dotted path of a model config.

    Raises:
        ModelError: The config has no such value.
    """
    value: Any = config
    for name in path.split("."):
        if not hasattr(value, name):
            raise ModelError(
                f"the model's config has no {path!r} (missing {name!r}). "
                "The family is known under another config layout; update transformers, or "
                "check that config.json is complete."
            )
        value = getattr(value, name)
    return value


def image_only_layers(spec: FamilySpec, config: object) -> frozenset[int]:
    """Decoder layers (0-based) that do not run on text-only input."""
    if spec.image_only_layers is None:
        return frozenset()
    if isinstance(spec.image_only_layers, tuple):
        return frozenset(spec.image_only_layers)
    return frozenset(int(layer) for layer in read_config(config, spec.image_only_layers))


def default_exit(spec: FamilySpec, config: object, stack_sizes: Sequence[int]) -> int:
    """The smallest exit that equals no exit at all.

    It is below N where the projector reads an earlier hidden state (LLaVA 1.5 reads the last
    but one, so exits N - 1 and N are the same), and the end of the first stack where there
    are several.

    Args:
        spec: The family.
        config: The model's config.
        stack_sizes: Number of blocks per vision stack.

    Raises:
        ModelError: The config selects hidden state 0 alone, or one that does not exist.
    """
    if spec.measured_exit is not None:
        return spec.measured_exit
    if spec.feature_layers is None:
        return stack_sizes[0] if stack_sizes else 0
    value = read_config(config, spec.feature_layers)
    count = sum(stack_sizes)
    given = (
        [value] if isinstance(value, int) else [int(item) for item in cast("Sequence[int]", value)]
    )
    if any(not -count - 1 <= layer <= count for layer in given):
        raise ModelError(
            f"the model's config selects vision hidden states {given}, but the encoder has "
            f"{count} blocks. Allowed: {-count - 1} .. {count}."
        )
    if value == 0:
        # transformers takes 0 for "not given", collects no hidden states and fails later.
        raise ModelError(
            "the model's config selects vision hidden state 0, which transformers takes for "
            f"'not given' and fails on. Select 1 .. {count} or a negative index in config.json."
        )
    return max(layer % (count + 1) for layer in given)


def skipped_blocks(stack_sizes: Sequence[int], exit_layer: int) -> range:
    """Blocks (0-based, numbered through) that an exit turns into the identity.

    Args:
        stack_sizes: Number of blocks per vision stack, in the order they run.
        exit_layer: The exit l, 0 .. N.

    Returns:
        The blocks above l of the stack in which l lies.

    Raises:
        ConfigError: The exit is out of range.

    Example:
        >>> skipped_blocks((4,), 1)
        range(1, 4)
        >>> skipped_blocks((4, 2), 4), skipped_blocks((4, 2), 5)
        (range(4, 4), range(5, 6))
    """
    ends = list(accumulate(stack_sizes))
    check_exit(exit_layer, ends[-1])
    end = next(end for end in ends if exit_layer <= end)
    return range(exit_layer, end)


def check_exit(exit_layer: int, num_blocks: int) -> None:
    """Refuse a vision exit outside 0 .. N.

    Raises:
        ConfigError: With the allowed range.
    """
    if num_blocks == 0:
        raise ConfigError(
            f"exit layer {exit_layer} was asked for, but this model has no vision exits: no stack "
            "of vision blocks is known of it (`vlmend doctor` says why). Leave exits out."
        )
    if not 0 <= exit_layer <= num_blocks:
        raise ConfigError(
            f"exit layer {exit_layer} is out of range. Allowed: 0 (patch embeddings) .. "
            f"{num_blocks} (after the last vision block of this model)."
        )


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Refuse decoder layers outside 0 .. L - 1; names every wrong one.

    Raises:
        ConfigError: With the allowed range.
    """
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong:
        raise ConfigError(
            f"decoder layer(s) {', '.join(map(str, wrong))} out of range. Allowed: 0 .. "
            f"{num_layers - 1} (this model has {num_layers} layers, counted from 0)."
        )


def format_layers(layers: Iterable[int]) -> str:
    """Layers as one writes them.

    Example:
        >>> format_layers((5, 0, 1, 2))
        '0-2,5'
    """
    parts: list[list[int]] = []
    for layer in sorted(set(layers)):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
