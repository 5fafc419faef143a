"""The contract of a family as code: what must hold before a model's numbers mean anything.

The clauses that can be checked without running the model are in `vlmend.models.checks`; the
ones here run it, through the hooks. Tests prove every family on tiny models, and the same
function proves a real checkpoint.

Shapes: B = prompts, T = steps, D = width, V = vocabulary.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vlmend.errors import ConfigError, ModelError
from vlmend.hooks.edit import edit_layers
from vlmend.hooks.exits import VisionReplay, exit_vision_at
from vlmend.hooks.layer_inputs import check_handover, check_picture_columns
from vlmend.hooks.positions import POSITIONS
from vlmend.hooks.record import record_layers, recording
from vlmend.hooks.tolerances import bar_alike, noise_of, relative_difference
from vlmend.models.checks import CheckResult, cheap_checks, run_clause
from vlmend.models.generation import Generation, GenerationSettings
from vlmend.models.generators import generators
from vlmend.models.spec import skipped_blocks
from vlmend.models.vlm import EncodedBatch, Vlm
from vlmend.types import Conversation, ImageRef, user

EDIT_SIZE = 3.0
"""Norm of the test edit in units of the state's own norm: large enough for bfloat16 to see."""

MAX_PROBED_LAYERS = 8
"""Models with more layers are edited at first, middle and last alone, to stay within minutes; that
each layer in between is read by the next one and does something is proven by what it is given."""

Finding = tuple[bool, str]


@dataclass(frozen=True)
class _Case:
    """One model, one batch of unequally long prompts, one cache setting."""

    vlm: Vlm
    conversations: Sequence[Conversation]
    encoded: EncodedBatch
    use_cache: bool
    steps: int

    @property
    def limit(self) -> float:
        return noise_of(self.vlm.dtype).relative

    @property
    def running(self) -> list[int]:
        """Decoder layers that run on this batch."""
        excused = frozenset() if self.encoded.num_images else self.vlm.image_only_layers
        return [i for i in range(self.vlm.num_decoder_layers) if i not in excused]

    @property
    def probed(self) -> list[int]:
        layers = self.running
        if len(layers) <= MAX_PROBED_LAYERS:
            return layers
        return [layers[0], layers[len(layers) // 2], layers[-1]]

    def settings(self, use_cache: bool | None = None) -> GenerationSettings:
        cached = self.use_cache if use_cache is None else use_cache
        return GenerationSettings(max_new_tokens=self.steps, use_cache=cached)

    def logits(self) -> Tensor:
        return self.vlm.forward_prompt(self.encoded, use_cache=self.use_cache)


def run_contract(
    vlm: Vlm,
    *,
    images: bool = True,
    use_cache: bool = True,
    conversations: Sequence[Conversation] | None = None,
    steps: int = 3,
) -> list[CheckResult]:
    """Check every clause of the contract on a model.

    Args:
        vlm: The model; it is left as it was.
        images: Whether the built-in prompts hold a picture; without, and for models without
            vision exits, the clauses about exits do not apply and are left out.
        use_cache: Whether the clauses run with a key-value cache. One of them compares both.
        conversations: Prompts of unequal length instead of the built-in ones.
        steps: Tokens to generate where a clause generates.

    Returns:
        One result per clause; a clause that vlmend itself refuses to run has failed.

    Raises:
        ConfigError: No tolerance is known for the model's dtype.
    """
    noise_of(vlm.dtype)
    prompts = default_conversations(images) if conversations is None else conversations
    case = _Case(vlm, prompts, vlm.encode(prompts), use_cache, steps)
    # transformers installs some permanent hooks at the first pass; it must be over before
    # hooks are counted.
    case.logits()
    clauses: list[tuple[str, Callable[[_Case], Finding]]] = [
        ("recording returns the layers that run", _check_recorded_layers),
        ("recordings have the right shape and dtype", _check_shapes),
        ("each layer is given what the one before it returned", _check_handover),
        ("the last layer, normed and unembedded, gives the logits", _check_logits),
        ("an edit changes its layer and later ones alone", _check_causality),
        ("a zero edit is bit-identical", _check_zero_edit),
        ("cache on equals cache off at every position", _check_cache),
        ("no hook is left behind", _check_hooks_removed),
        ("a left-padded batch equals one by one", _check_padding),
    ]
    if case.encoded.num_images:
        clauses.append(("other pixels change the columns of pictures alone", _check_pixels))
    if case.encoded.num_images and vlm.vision_stacks:
        clauses += [
            ("the exit at the last block equals no exit", _check_last_exit),
            ("every vision block changes what comes after", _check_live_blocks),
            ("an exit runs no block that it skips", _check_blocks_run),
            ("one run of the blocks serves every exit", _check_replay),
        ]
    results = cheap_checks(vlm)
    return results + [run_clause(name, partial(check, case)) for name, check in clauses]


def default_conversations(images: bool) -> list[Conversation]:
    """Two prompts of unequal length, with a picture each or without."""
    texts = ("What is this?", "Tell me more about this, please, in one sentence.")
    return [user(text, *([_picture(seed)] if images else [])) for seed, text in enumerate(texts)]


def _picture(seed: int) -> ImageRef:
    # Unequal formats, so that tiling and windows differ between the prompts.
    size = ((48, 40), (40, 56))[seed % 2]
    blocks = np.random.default_rng(seed).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(blocks, "RGB").resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return ImageRef(data=buffer.getvalue())


def _push(states: Tensor) -> Tensor:
    """The test edit: a fixed direction, scaled to the states, (B, K, D) -> (B, K, D)."""
    direction = torch.ones_like(states)
    direction[..., ::2] = -1.0
    scale = states.norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True)
    return states + EDIT_SIZE * scale * direction


# ---- reading


def _check_recorded_layers(case: _Case) -> Finding:
    found = list(record_layers(case.vlm, case.encoded))
    return found == case.running, f"recorded {found}, running {case.running}"


def _check_shapes(case: _Case) -> Finding:
    batch, columns, width = case.encoded.batch_size, case.encoded.columns, case.vlm.hidden_size
    last = record_layers(case.vlm, case.encoded)
    whole = record_layers(case.vlm, case.encoded, position="prompt")
    good = all(
        state.shape == (batch, width)
        and state.dtype == case.vlm.dtype
        and whole[layer].shape == (batch, columns, width)
        and torch.equal(whole[layer][:, -1], state)
        for layer, state in last.items()
    )
    shapes = {tuple(state.shape) for state in last.values()}
    return good, f"prompt_last {shapes}, prompt {(batch, columns, width)}, {case.vlm.dtype}"


def _check_handover(case: _Case) -> Finding:
    return check_handover(case.vlm, case.encoded)


def _check_pixels(case: _Case) -> Finding:
    return check_picture_columns(case.vlm, case.encoded)


def _check_logits(case: _Case) -> Finding:
    vlm = case.vlm
    states, logits = _record_with_logits(case)
    with torch.no_grad():
        final = vlm.unembed(states[case.running[-1]])
    # Generation hands out float32 logits, whatever the model's dtype.
    difference = relative_difference(bar_alike(final.float(), logits), logits)
    return difference <= case.limit, f"relative difference {difference:.2g}"


# ---- editing


def _check_causality(case: _Case) -> Finding:
    base, base_logits = _record_with_logits(case)
    for layer in case.probed:
        with edit_layers(case.vlm, {layer: _push}) as report:
            states, logits = _record_with_logits(case)
        report.require_all_edited()
        expected = _push(base[layer][:, None])[:, 0]
        if not torch.equal(states[layer], expected):
            return False, f"layer {layer} is not what the edit made of it"
        moved = [i for i in case.running if not torch.equal(states[i], base[i])]
        if moved != [i for i in case.running if i >= layer]:
            return False, f"an edit at layer {layer} moved layers {moved}"
        if torch.equal(logits, base_logits):
            return False, f"an edit at layer {layer} left the logits as they were"
    return True, f"edits at layers {case.probed}"


def _record_with_logits(case: _Case) -> tuple[dict[int, Tensor], Tensor]:
    with recording(case.vlm) as kept:
        logits = case.logits()
    missing = sorted(set(case.running) - set(kept))
    if missing:
        raise ModelError(f"layers {missing} did not run.")
    return dict(kept), logits


def _check_zero_edit(case: _Case) -> Finding:
    base = case.vlm.generate_steps(case.encoded, case.settings())
    for position in POSITIONS:
        functions = dict.fromkeys(case.running, torch.clone)
        with edit_layers(case.vlm, functions, position) as report:
            steps = case.vlm.generate_steps(case.encoded, case.settings())
        report.require_all_edited()
        same = torch.equal(steps.token_ids, base.token_ids)
        if not same or not torch.equal(steps.logits, base.logits):
            return False, f"a zero edit of {position!r} changes the logits"
    return True, f"positions {', '.join(POSITIONS)} at {len(case.running)} layers"


def _check_cache(case: _Case) -> Finding:
    """Edits must mean the same with and without a cache, step by step."""
    vlm, layer = case.vlm, case.running[len(case.running) // 2]
    worst = 0.0
    base = vlm.generate_steps(case.encoded, case.settings(True)).logits[:, 0]
    for position in POSITIONS:
        with edit_layers(vlm, {layer: _push}, position) as cached_report:
            cached = vlm.generate_steps(case.encoded, case.settings(True))
        with edit_layers(vlm, {layer: _push}, position):
            fresh = vlm.generate_steps(case.encoded, case.settings(False))
        # Once a near-tie is decided differently the sequences part; up to there they agree.
        compared = _common_steps(cached.token_ids, fresh.token_ids)
        for row, count in enumerate(compared):
            difference = relative_difference(cached.logits[row, :count], fresh.logits[row, :count])
            worst = max(worst, difference)
        if worst > case.limit:
            return False, f"{position!r}: relative difference {worst:.2g} (limit {case.limit:.2g})"
        expected = _expected_columns(case, position, cached.logits.shape[1])
        if cached_report.columns[layer] != expected:
            found = cached_report.columns[layer]
            return False, f"{position!r} edited {found} columns instead of {expected}"
        if torch.equal(cached.logits[:, 0], base) != (position == "generated"):
            return False, f"{position!r} acts on the wrong step"
    return True, f"worst relative difference {worst:.2g}"


def _common_steps(first: Tensor, second: Tensor) -> list[int]:
    """Per row, the steps whose inputs are equal in both: up to the first unequal token."""
    length = min(first.shape[1], second.shape[1])
    counts: list[int] = []
    for row in first[:, :length] == second[:, :length]:
        unequal = (~row).nonzero()
        counts.append(length if not len(unequal) else int(unequal[0]) + 1)
    return counts


def _expected_columns(case: _Case, position: str, steps: int) -> int:
    """Columns edited with a cache: the prompt is seen once, each new token but the last once."""
    prompt, generated = case.encoded.columns, steps - 1
    return {
        "prompt_last": 1,
        "prompt": prompt,
        "generated": generated,
        "all": prompt + generated,
    }[position]


# ---- leaving nothing behind


class _BreakOffError(Exception):
    """Raised on purpose in the middle of a forward pass."""


def _check_hooks_removed(case: _Case) -> Finding:
    vlm = case.vlm

    def break_off(_states: Tensor) -> Tensor:
        raise _BreakOffError

    def pass_on(
        conversations: Sequence[Conversation], settings: GenerationSettings, call_next: Any
    ) -> list[Generation]:
        return call_next(conversations, settings)

    before = _traces(vlm)
    contexts: list[Callable[[], AbstractContextManager[Any]]] = [
        lambda: recording(vlm),
        lambda: edit_layers(vlm, {0: torch.clone}),
        lambda: vlm.using(pass_on),
    ]
    if vlm.vision_stacks:
        contexts += [lambda: exit_vision_at(vlm, 0), lambda: VisionReplay(vlm)]
    for fail in (False, True):
        try:
            with ExitStack() as stack:
                for context in contexts:
                    stack.enter_context(context())
                if fail:
                    stack.enter_context(edit_layers(vlm, {0: break_off}))
                vlm.generate(case.conversations, case.settings())
                if fail:
                    return False, "an error inside an edit was swallowed"
        except _BreakOffError:
            pass
        left = _traces(vlm)
        if left != before:
            when = "failure" if fail else "success"
            return False, f"after {when}: {left} instead of {before}"
    return True, f"{len(contexts)} contexts, after success and after failure"


def _traces(vlm: Vlm) -> tuple[object, ...]:
    """Everything that a context could leave behind."""
    modules: list[nn.Module] = list(vlm.model.modules())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
    patched = sum("forward" in vars(m) for m in modules)
    methods = ("generate", "prepare_inputs_for_generation")
    mended = sum(name in vars(m) for m in modules for name in methods)
    own_settings = [id(part.generation_config) for part in generators(vlm.model)]
    return hooks, patched + mended, vlm.middlewares, vlm.prompt_columns, own_settings


# ---- batching


def _check_padding(case: _Case) -> Finding:
    vlm = case.vlm
    if len(set(case.encoded.prompt_lengths.tolist())) == 1:
        raise ConfigError("the prompts are equally long, so nothing is padded. Vary them.")
    states, logits = _record_with_logits(case)
    worst = 0.0
    for row, conversation in enumerate(case.conversations):
        encoded = vlm.encode([conversation])
        single = _Case(vlm, [conversation], encoded, case.use_cache, case.steps)
        own_states, own_logits = _record_with_logits(single)
        pairs = [(logits[row], own_logits[0])]
        pairs += [(states[layer][row], own_states[layer][0]) for layer in case.running]
        worst = max(worst, *(relative_difference(a, b) for a, b in pairs))
    evidence = f"worst relative difference {worst:.2g} (limit {case.limit:.2g})"
    return worst <= case.limit, evidence


# ---- exits


def _check_last_exit(case: _Case) -> Finding:
    vlm = case.vlm
    base = case.logits()
    last, default = vlm.num_vision_blocks, vlm.default_exit
    for layer in (default, last):
        with exit_vision_at(vlm, layer):
            if not torch.equal(case.logits(), base):
                return False, f"exit {layer} differs from no exit"
    return True, f"exits {default} and {last} equal no exit"


def _check_live_blocks(case: _Case) -> Finding:
    """Exits up to the default one all differ: each block between them does something."""
    vlm = case.vlm
    found: dict[int, Tensor] = {}
    for layer in vlm.distinct_exits:
        with exit_vision_at(vlm, layer):
            found[layer] = case.logits()
    exits = sorted(found)
    for before, after in pairwise(exits):
        if torch.equal(found[before], found[after]):
            return False, f"exits {before} and {after} are the same: a block between is dead"
    return True, f"{len(exits)} exits differ"


def _check_blocks_run(case: _Case) -> Finding:
    vlm = case.vlm
    for layer in range(vlm.num_vision_blocks + 1):
        with exit_vision_at(vlm, layer):
            ran = _blocks_run(case)
        skipped = skipped_blocks(vlm.vision_stack_sizes, layer)
        if ran != [i for i in range(vlm.num_vision_blocks) if i not in skipped]:
            return False, f"exit {layer} runs blocks {ran}"
    return True, f"exits 0 .. {vlm.num_vision_blocks}"


def _blocks_run(case: _Case) -> list[int]:
    """Blocks of which a part ran, in their order; a block that is cut is called all the same."""
    ran: dict[int, None] = {}
    with ExitStack() as stack:
        for index, block in enumerate(case.vlm.vision_blocks):
            part = next(block.children())
            handle = part.register_forward_pre_hook(lambda *_, index=index: ran.setdefault(index))
            stack.callback(handle.remove)
        case.logits()
    return list(ran)


def _check_replay(case: _Case) -> Finding:
    vlm = case.vlm
    exits = range(vlm.num_vision_blocks + 1)
    expected_logits: list[Tensor] = []
    for layer in exits:
        with exit_vision_at(vlm, layer):
            expected_logits.append(case.logits())
    worst = 0.0
    with VisionReplay(vlm) as replay:
        for layer in exits:
            replay.exit = layer
            worst = max(worst, relative_difference(case.logits(), expected_logits[layer]))
    first = vlm.vision_stack_sizes[0]
    # Later stacks run once for the whole encoder and once per exit that cuts the first one.
    expected = [1] * first + [1 + first] * (vlm.num_vision_blocks - first)
    if replay.block_runs != expected or replay.records != 1:
        return False, f"block runs {replay.block_runs}, {replay.records} record(s)"
    return worst <= case.limit, f"block runs {replay.block_runs}, difference {worst:.2g}"
