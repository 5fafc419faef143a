"""What `vlmend doctor` looks at: all that can silently falsify numbers measured on a model.

The contract (`vlmend.hooks.contract`) proves where the parts of a model are. The checks here
prove that a picture reaches the answer, that hooks run as often as they should, that a repair
does something; and they say what batching, memory and the model's own settings mean for a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from vlmend.errors import DataError, ModelError, VlmendError
from vlmend.evals.arms import AppliedRepair
from vlmend.evals.batch_invariance import check_batches
from vlmend.hooks.contract import default_conversations, run_contract
from vlmend.hooks.edit import edit_layers
from vlmend.hooks.logits import reading_logits
from vlmend.hooks.tolerances import relative_difference
from vlmend.models.checks import CheckResult
from vlmend.models.encode import render_prompts
from vlmend.models.families import FAMILIES
from vlmend.models.generation import GenerationSettings
from vlmend.models.generators import cache_of
from vlmend.models.load import DTYPES, SPREAD, resolve_device
from vlmend.models.sources import stored_bytes
from vlmend.models.spec import describe_spec
from vlmend.models.vlm import Vlm
from vlmend.types import Conversation, Message, Sample, conversation_images, user

STEPS = 3
"""Tokens that are generated where a check generates."""

LONG_PROMPT = 4096
"""Tokens of a long prompt with its answer: what memory must be left for."""

_TEXTS = (
    "What is this?",
    "Tell me more about this, please, in one sentence.",
    "Which of the colours do you like best?",
)

_ERRORS = (VlmendError, RuntimeError, TypeError, ValueError, KeyError, AttributeError)
"""What a check may die of: that is its finding, the others still run."""

# As transformers names them, in the order of their weight.
_ANSWER_SETTINGS = (
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"),
    *("num_beams", "repetition_penalty", "no_repeat_ngram_size", "length_penalty"),
    *("max_new_tokens", "max_length", "min_new_tokens", "min_length"),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_bos_token_id"),
    *("forced_eos_token_id", "cache_implementation"),
)
"""Entries of a generation config that change answers."""

_NEUTRAL: Mapping[str, object] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
}
"""Values that change nothing of what vlmend does anyway."""

Status = Literal["pass", "note", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        status: "note" is nothing wrong, but something to know.
        evidence: What was measured, or what went wrong.
    """

    check: str
    status: Status
    evidence: str


@dataclass(frozen=True)
class CheckUp:
    """All findings on a model.

    Attributes:
        contract: The clauses, with pictures and without, by what they were run on.
        findings: All other checks, in the order they are shown.
    """

    contract: Mapping[str, Sequence[CheckResult]]
    findings: Sequence[Finding]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        clauses = chain.from_iterable(self.contract.values())
        return all(r.passed for r in clauses) and all(f.status != "FAIL" for f in self.findings)


def check_up(vlm: Vlm, repair: AppliedRepair | None = None) -> CheckUp:
    """Run the contract and all checks on a model.

    Args:
        vlm: The model; it is left as it was.
        repair: A repair to apply: it must change answers, and be gone afterwards.

    Returns:
        The findings; none of them is raised.
    """
    contract = {
        "with a picture": _contract(vlm, images=True),
        "words alone": _contract(vlm, images=False),
    }
    checks: list[tuple[str, Callable[[Vlm], tuple[Status, str]]]] = [
        ("map", _check_map),
        ("parts", _check_parts),
        ("vision exits", _check_exits),
        ("hooks", _check_hooks),
        ("pictures", _check_pictures),
        ("chat template", _check_template),
        ("system turn", _check_system_turn),
        ("batching", _check_batching),
        ("generation", _check_generation),
        ("end of answers", _check_end),
        ("memory", _check_memory),
    ]
    if repair is not None:
        checks.append(("repair", lambda vlm: _check_repair(vlm, repair)))
    return CheckUp(contract, [_run(name, check, vlm) for name, check in checks])


def _run(name: str, check: Callable[[Vlm], tuple[Status, str]], vlm: Vlm) -> Finding:
    try:
        status, evidence = check(vlm)
    except _ERRORS as error:
        return Finding(name, "FAIL", _one_line(error))
    return Finding(name, status, evidence)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)


def _contract(vlm: Vlm, *, images: bool) -> list[CheckResult]:
    try:
        return run_contract(vlm, images=images, steps=STEPS)
    except _ERRORS as error:
        return [CheckResult("the contract can be run", False, _one_line(error))]


# ---- anatomy


def _check_map(vlm: Vlm) -> tuple[Status, str]:
    if FAMILIES.get(vlm.spec.model_type) == vlm.spec:
        return "pass", f"{vlm.spec.title}: a family that vlmend describes; {vlm.spec.source}"
    return "note", (
        f"no family file describes {vlm.spec.model_type!r}: this map was found from what the "
        f"modules do, and proven by the contract. {describe_spec(vlm.spec)}"
    )


def _check_parts(vlm: Vlm) -> tuple[Status, str]:
    spec = vlm.spec
    parts = [
        f"{vlm.num_decoder_layers} decoder layers in {spec.decoder_layers}",
        f"norm {spec.final_norm}",
        f"unembedding {spec.lm_head}",
        f"projector {spec.projector or 'no single module'}",
    ]
    if vlm.image_only_layers:
        parts.append(f"layers {sorted(vlm.image_only_layers)} run only with a picture")
    return "pass", "; ".join(parts)


def _check_exits(vlm: Vlm) -> tuple[Status, str]:
    if not vlm.vision_stacks:
        return "note", f"none: {vlm.spec.no_exits}"
    stacks = ", ".join(
        f"{size} blocks in {path}"
        for path, size in zip(vlm.spec.vision_stacks, vlm.vision_stack_sizes, strict=True)
    )
    last = vlm.num_vision_blocks
    return "pass", f"0 .. {last}, exit {vlm.default_exit} is the model as it is; {stacks}"


# ---- hooks and pictures


def _check_hooks(vlm: Vlm) -> tuple[Status, str]:
    """Every layer that runs, at every pass, over every column: counted."""
    told: list[str] = []
    for images in (True, False):
        encoded = vlm.encode(default_conversations(images))
        idle = frozenset() if images else vlm.image_only_layers
        layers = [i for i in range(vlm.num_decoder_layers) if i not in idle]
        with edit_layers(vlm, dict.fromkeys(layers, torch.clone), "all") as report:
            steps = vlm.generate_steps(encoded, GenerationSettings(max_new_tokens=STEPS))
        passes = steps.logits.shape[1]
        columns = encoded.columns + passes - 1
        what = "with a picture" if images else "words alone"
        wrong = [i for i in layers if (report.calls[i], report.columns[i]) != (passes, columns)]
        if wrong:
            first = wrong[0]
            return "FAIL", (
                f"{what}: the hook of layer {first} ran {report.calls[first]} times over "
                f"{report.columns[first]} columns instead of {passes} times over {columns}"
            )
        told.append(f"{what} {passes} passes over {columns} columns")
    return "pass", f"each layer's hook ran once a pass: {', '.join(told)}"


def _prompts(images: bool) -> list[Conversation]:
    """Prompts of unequal length, with unequal pictures or without."""
    shown = [conversation_images(c) for c in default_conversations(images)]
    return [user(text, *shown[i % len(shown)]) for i, text in enumerate(_TEXTS)]


def _check_pictures(vlm: Vlm) -> tuple[Status, str]:
    """The same words with two pictures must not give the same logits."""
    # One picture per pass: families may differ in how many tokens a format has.
    pictures = [conversation_images(c) for c in default_conversations(images=True)]
    first, second = (
        vlm.forward_prompt(vlm.encode([user(_TEXTS[0], *shown)])) for shown in pictures
    )
    if torch.equal(first, second):
        return "FAIL", "two pictures under the same words give the same logits: none is seen"
    return "pass", f"two pictures move the logits by {relative_difference(first, second):.2g}"


# ---- prompts


def _check_template(vlm: Vlm) -> tuple[Status, str]:
    own = getattr(vlm.processor, "chat_template", None)
    source = "the model's own" if own else "from the family file"
    (conversation, *_) = default_conversations(images=True)
    (text,) = render_prompts(vlm.processor, [conversation], vlm.spec)
    ids = vlm.encode([conversation]).inputs["input_ids"]
    tokens = f"{ids.shape[1]} tokens"
    if vlm.image_token_id is not None:
        count = int((ids == vlm.image_token_id).sum())
        if not count:
            return "FAIL", f"no image token {vlm.image_token_id} in the ids of {text!r}"
        tokens = f"{tokens}, {count} of a picture"
    return "pass", f"{source}; {text!r}: {tokens}"


def _check_system_turn(vlm: Vlm) -> tuple[Status, str]:
    said = Message("system", ("Be brief.",))
    try:
        vlm.encode([(said, *user(_TEXTS[0]))])
    except (DataError, ModelError) as error:
        return "note", f"not possible: {_one_line(error)}"
    return "pass", "possible"


# ---- what changes answers


def _check_batching(vlm: Vlm) -> tuple[Status, str]:
    prompts = [*_prompts(images=True), *_prompts(images=False)]
    samples = [
        Sample(id=f"prompt {i}", suite="doctor", messages=prompt, label="benign")
        for i, prompt in enumerate(prompts)
    ]
    found = check_batches(vlm, samples, GenerationSettings(max_new_tokens=2 * STEPS))
    if found.problem:
        return "FAIL", found.problem
    if found.changed:
        return "note", (
            f"{len(found.changed)} of {found.num_items} answers of {2 * STEPS} tokens change in a "
            f"batch of {found.largest_batch}: near-ties. Use --batch-size 1 or --dtype float32 "
            "where single answers must not depend on it"
        )
    return "pass", (
        f"{found.num_items} prompts are answered alike alone and in batches of "
        f"{found.largest_batch}"
    )


def _check_generation(vlm: Vlm) -> tuple[Status, str]:
    """What the model's own config would do; vlmend uses none of it."""
    given = cast("dict[str, Any]", vlm.model.generation_config.to_diff_dict())
    own = [
        f"{name}={given[name]!r}"
        for name in _ANSWER_SETTINGS
        if given.get(name) is not None and given[name] != _NEUTRAL.get(name)
    ]
    ours = "vlmend: greedy unless a temperature is given, no penalties"
    if not own:
        return "pass", f"{ours}; the model's own config asks for nothing else"
    return "note", f"{ours}; not used of the model's own config: {', '.join(own)}"


def _check_end(vlm: Vlm) -> tuple[Status, str]:
    ids = vlm.eos_token_ids
    if not ids:
        return "note", "no end-of-sequence token is known: every answer runs to its limit"
    names = cast("list[Any]", vlm.tokenizer.convert_ids_to_tokens(ids))
    ends = ", ".join(f"{token!r} ({i})" for token, i in zip(names, ids, strict=True))
    padding = f"padding {vlm.tokenizer.pad_token!r} on the left"
    if any(name is None for name in names):
        return "FAIL", f"answers end with {ends}, and the tokenizer lacks one of them; {padding}"
    return "pass", f"answers end with {ends}; {padding}"


# ---- memory


def check_room(name: str, dtype: str, device: str) -> Finding:
    """Compare what the weights of a saved model take with what is free, before it is loaded.

    Args:
        name: As for `load_vlm`.
        dtype: As for `load_vlm`.
        device: As for `load_vlm`.

    Raises:
        ConfigError: Unknown device.
    """
    check = "room for it"
    if device == SPREAD:
        return Finding(check, "note", "spread: as much as fits is put on each device")
    asked = DTYPES.get(dtype)
    needed = stored_bytes(name, asked if isinstance(asked, torch.dtype) else None)
    if needed is None:
        return Finding(check, "note", "what it takes is known once it is loaded: it is no folder")
    # A model is read into main memory, wherever it goes from there.
    places = dict.fromkeys((torch.device("cpu"), resolve_device(device)))
    free = {place: free_bytes(place) for place in places}
    told = ", ".join(
        f"free on {place}: {'not known' if size is None else _amount(size)}"
        for place, size in free.items()
    )
    short = [str(place) for place, size in free.items() if size is not None and size < needed]
    if not short:
        return Finding(check, "pass", f"weights {_amount(needed)}; {told}")
    return Finding(
        check,
        "FAIL",
        f"weights {_amount(needed)}; {told}. Too little on {' and '.join(short)}, so it was not "
        "loaded. Take --dtype bfloat16, --device spread or a larger machine.",
    )


def _check_memory(vlm: Vlm) -> tuple[Status, str]:
    """What the weights take, what a token costs, and what is left."""
    weights = sum(t.numel() * t.element_size() for t in _tensors_of(vlm.model))
    token = _cache_per_token(vlm)
    needed = token * LONG_PROMPT
    told = (
        f"weights {_amount(weights)}; keys and values {_amount(token)} a token, "
        f"{_amount(needed)} for {LONG_PROMPT} tokens"
    )
    free = free_bytes(vlm.device)
    if free is None:
        return "note", f"{told}; what is free on {vlm.device} is not known"
    status: Status = "pass" if free > needed else "note"
    short = "" if free > needed else ": too little for one long prompt"
    return status, f"{told}; free on {vlm.device}: {_amount(free)}{short}"


def _tensors_of(model: Any) -> Iterable[Tensor]:
    return chain(model.parameters(), model.buffers())


def _cache_per_token(vlm: Vlm) -> int:
    """Bytes that a cache grows by per prompt token, measured on one prompt."""
    encoded = vlm.encode([user(" ".join(_TEXTS))])
    with torch.no_grad():
        cache = cache_of(vlm.model(**encoded.inputs, use_cache=True))
    held = {
        id(value): value.numel() * value.element_size()
        for layer in getattr(cache, "layers", ())
        for value in vars(layer).values()
        if isinstance(value, Tensor)
    }
    return sum(held.values()) // encoded.columns


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free where a model is; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    # Memory that the system would give back counts as free; the rest of the file does not.
    (available,) = (line for line in lines if line.startswith("MemAvailable:"))
    return int(available.split()[1]) * 1024


def _amount(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


# ---- a repair


def repair_effect(vlm: Vlm, repair: AppliedRepair) -> dict[str, float]:
    """How far a repair moves the logits that the first token of answers is chosen by.

    Args:
        vlm: The model.
        repair: What to apply, and take off again.

    Returns:
        The relative difference "with a picture" and for "words alone"; 0 where every bit is the
        same.

    Raises:
        ModelError: It is not gone after it is taken off.
    """
    moved: dict[str, float] = {}
    for images, what in ((True, "with a picture"), (False, "words alone")):
        base = _answer_logits(vlm, None, images)
        repaired = _answer_logits(vlm, repair, images)
        if not torch.equal(_answer_logits(vlm, None, images), base):
            raise ModelError(f"{repair.name} is not gone after it was taken off ({what}).")
        moved[what] = relative_difference(repaired, base)
    return moved


def _check_repair(vlm: Vlm, repair: AppliedRepair) -> tuple[Status, str]:
    """It must move the logits that answers are chosen by, and leave none moved behind."""
    moved = [f"{what} by {size:.2g}" for what, size in repair_effect(vlm, repair).items() if size]
    if not moved:
        return "FAIL", f"{repair.name} does nothing: the logits are the same with and without it"
    return "pass", (
        f"{repair.name} ({repair.fingerprint[:12]}) moves the logits {', '.join(moved)}; "
        "gone after it is taken off"
    )


def _answer_logits(vlm: Vlm, repair: AppliedRepair | None, images: bool) -> Tensor:
    """(B, V) that the first token of answers is chosen by, whatever works inside generation."""
    applied = nullcontext() if repair is None else repair.apply(vlm)
    with applied, reading_logits(vlm) as kept:
        vlm.generate(_prompts(images), GenerationSettings(max_new_tokens=1))
    return kept[-1]
