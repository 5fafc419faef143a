"""ShiftDC as a repair: a safety direction, fitted in text, applied inside `generate`.

Applying it wraps generation: caption the image (cached), run the text branch's prompt once to
get one number per item and layer, then answer with the last prompt token calibrated at
the chosen layers during prefill. Decode steps are untouched.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095).

Deviation:
    1. `mode="online"` (default) recomputes the projection at each layer on the already calibrated
       stream, so the invariant <x - x_text, s> = 0 holds at every chosen layer, and no second
       vision-language pass is needed. `mode="offline"` is the authors' code: shifts are measured
       on clean passes and all subtracted in one run.
    2. `one_sided=True` corrects only shifts towards safe. Off by default.
    3. Captions are limited to 128 new tokens by default (the paper's ablation; 1024 in its main
       table).
    4. Layers default to L//2 .. L-1; the paper starts in the middle and ends at the last. Layers
       that do not run on text (Mllama's cross-attention) have no direction and are left out.
    5. The direction is fitted on the suites that the user names, not on the paper's 160 + 160
       items; items without an image are taken as they are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from vlmend.errors import ArtifactError, ConfigError, DataError
from vlmend.evals.captions import CAPTION_PROMPT, CaptionCache
from vlmend.evals.text_branch import TEXT_BRANCH, put_in_words, record_text_branch
from vlmend.hooks.edit import EditFunction, edit_layers
from vlmend.hooks.record import record_layers
from vlmend.models.generation import GenerateCall, Generation, GenerationSettings
from vlmend.models.spec import check_layers
from vlmend.models.vlm import Vlm
from vlmend.repairs.protocol import ARTIFACT_FILE, prompt_sha256, read_artifact
from vlmend.repairs.shiftdc.projection import (
    calibrate_online,
    coefficient,
    correct_offline,
    difference_in_means,
)
from vlmend.runs import replacing, write_json
from vlmend.types import Conversation, Sample, conversation_images, sha256_json

_SCHEMA = 1

_TENSORS = "direction.safetensors"

_REQUIRED = (
    "schema",
    "settings",
    "tensors_sha256",
    "model",
    "weights_sha256",
    "num_decoder_layers",
    "items",
)
"""What `vlmend.json` must hold to be used."""


@dataclass(frozen=True)
class ShiftDCSettings:
    """Settings of ShiftDC.

    Attributes:
        layers: Decoder layers to calibrate (0-based); None for L//2 .. L-1.
        mode: "online" or "offline", see the module docstring.
        strength: Share of the projection removed, above 0 up to 2; 1 as published.
        one_sided: Correct only shifts towards safe.
        caption_tokens: Length limit of self-captions in new tokens.

    Raises:
        ConfigError: Naming every setting that is out of range.
    """

    layers: tuple[int, ...] | None = None
    mode: Literal["online", "offline"] = "online"
    strength: float = 1.0
    one_sided: bool = False
    caption_tokens: int = 128

    def __post_init__(self) -> None:
        wrong: list[str] = []
        if self.mode not in ("online", "offline"):
            wrong.append(f"mode={self.mode!r} (allowed: online, offline)")
        if not 0 < self.strength <= 2:
            wrong.append(f"strength={self.strength} (allowed: above 0, at most 2)")
        if self.caption_tokens < 1:
            wrong.append(f"caption_tokens={self.caption_tokens} (allowed: >= 1)")
        if self.layers is not None and not self.layers:
            wrong.append("layers=() (allowed: at least one layer, or None for L//2 .. L-1)")
        if wrong:
            raise ConfigError(f"ShiftDC settings out of range: {'; '.join(wrong)}.")


@dataclass
class ShiftDC:
    """The ShiftDC repair.

    Attributes:
        settings: How it is fitted and applied.
        captions: Where self-captions are kept.
        directions_: Safety direction s per decoder layer, (D,) float32; every layer that ran.
        facts_: What it was fitted on: model, weights, items with prompt hashes, counts.
    """

    settings: ShiftDCSettings = ShiftDCSettings()
    captions: CaptionCache = field(default_factory=CaptionCache)
    directions_: dict[int, Tensor] = field(default_factory=dict[int, Tensor], init=False)
    facts_: dict[str, Any] = field(default_factory=dict[str, Any], init=False)

    @property
    def name(self) -> str:
        """The name "shiftdc", with the settings that differ from the default."""
        default = asdict(ShiftDCSettings())
        changed = [
            f"{key}={value}"
            for key, value in asdict(self.settings).items()
            if value != default[key]
        ]
        return f"shiftdc({', '.join(changed)})" if changed else "shiftdc"

    @property
    def layers_(self) -> tuple[int, ...]:
        """The decoder layers that are calibrated, ascending.

        Raises:
            ArtifactError: Not fitted.
        """
        self._require_fitted()
        if self.settings.layers is not None:
            return tuple(sorted(set(self.settings.layers)))
        count: int = self.facts_["num_decoder_layers"]
        return tuple(layer for layer in range(count // 2, count) if layer in self.directions_)

    @property
    def fitted_items(self) -> Mapping[str, str]:
        """Sample id -> prompt hash of every item it was fitted on."""
        return self.facts_.get("items", {})

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides an answer: prompts, settings, directions of the layers used.

        Raises:
            ArtifactError: Not fitted.
        """
        settings = asdict(self.settings) | {
            "layers": self.layers_,
            "strength": float(self.settings.strength),
        }
        directions = [_sha256(self.directions_[layer].numpy().tobytes()) for layer in self.layers_]
        return sha256_json(["shiftdc", CAPTION_PROMPT, TEXT_BRANCH, settings, directions])

    # ---- fitting

    def fit(self, vlm: Vlm, samples: Sequence[Sample]) -> Self:
        """Fit the safety direction on text: requests with self-captions in place of images.

        Args:
            vlm: The model, without repairs applied.
            samples: Harmful and benign items; those with images are put in words first.

        Raises:
            DataError: Harmful or benign items are missing, an item is there twice, or the two
                kinds cannot be told apart.
            ConfigError: A chosen layer is out of range, or does not run on text.
        """
        _check_layers(vlm, self.settings.layers)
        by_label = _split(samples)
        acts = {
            label: record_text_branch(
                vlm, conversations, self.captions, self.settings.caption_tokens
            )
            for label, conversations in by_label.items()
        }
        directions = {
            layer: difference_in_means(acts["benign"][layer], acts["harmful"][layer])
            for layer in acts["benign"]
        }
        useless = [i for i, s in directions.items() if not 0 < float(s.norm()) < float("inf")]
        if useless:
            raise DataError(
                f"there is no safety direction at decoder layers {useless}: harmful and benign "
                "prompts cause the same activations, or infinite ones. Use items that differ in "
                "what they ask; if they do, load the model in bfloat16 or float32."
            )
        self.directions_ = directions
        self.facts_ = {
            "model": vlm.name,
            "family": vlm.spec.model_type,
            "weights_sha256": vlm.weights_sha256,
            "num_decoder_layers": vlm.num_decoder_layers,
            "layer_convention": "output of decoder layer i, 0-based, before the final norm",
            "position": "prompt_last",
            "num_harmful": len(by_label["harmful"]),
            "num_benign": len(by_label["benign"]),
            "data_sha256": sha256_json(sorted([s.label, prompt_sha256(s)] for s in samples)),
            "items": {s.id: prompt_sha256(s) for s in sorted(samples, key=lambda s: s.id)},
        }
        return self

    def _require_fitted(self) -> None:
        if not self.directions_:
            raise ArtifactError("this ShiftDC was never fitted. Call fit, or load an artifact.")

    def _require_model(self, vlm: Vlm, where: str) -> None:
        if self.facts_["weights_sha256"] != vlm.weights_sha256:
            raise ArtifactError(
                f"the direction {where} was fitted on {self.facts_['model']!r} (weights "
                f"{str(self.facts_['weights_sha256'])[:12]}), not on {vlm.name!r} (weights "
                f"{vlm.weights_sha256[:12]}). Directions belong to one set of weights in one "
                "dtype: fit again with `vlmend repair shiftdc`."
            )

    # ---- artifact

    def save(self, folder: Path) -> Path:
        """Write `direction.safetensors` and `vlmend.json`.

        The latter comes last and holds the hash of the former, so that half an artifact is
        never taken for one.

        Returns:
            The folder.

        Raises:
            ArtifactError: Not fitted.
            RunError: The disk is full or the folder cannot be written.
        """
        self._require_fitted()
        tensors = {f"direction.{layer}": s.contiguous() for layer, s in self.directions_.items()}
        blob = write_tensors(tensors)
        with replacing(folder / _TENSORS) as temporary:
            temporary.write_bytes(blob)
        facts = {
            "kind": "shiftdc",
            "schema": _SCHEMA,
            "settings": asdict(self.settings),
            "tensors_sha256": _sha256(blob),
            **self.facts_,
        }
        write_json(folder / ARTIFACT_FILE, facts)
        return folder

    @classmethod
    def load(cls, folder: Path, vlm: Vlm, captions: CaptionCache | None = None) -> Self:
        """Read an artifact.

        Args:
            folder: What `save` wrote.
            vlm: The model it will be applied to.
            captions: Where to keep self-captions; by default beside the artifact.

        Raises:
            ArtifactError: Of another kind, damaged, or fitted on other weights.
        """
        facts = read_artifact(folder, "shiftdc")
        try:
            settings, tensors = _read_parts(folder, facts)
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, ConfigError) as error:
            raise ArtifactError(
                f"the ShiftDC artifact in {str(folder)!r} is damaged: "
                f"{type(error).__name__}: {error}. Fit again with `vlmend repair shiftdc`."
            ) from error
        repair = cls(settings, captions or CaptionCache(folder / "captions.jsonl"))
        repair.directions_ = tensors
        outside = ("kind", "schema", "settings", "tensors_sha256")
        repair.facts_ = {key: value for key, value in facts.items() if key not in outside}
        repair._require_model(vlm, f"in {str(folder)!r}")
        return repair

    # ---- application

    @contextmanager
    def apply(self, vlm: Vlm) -> Generator[None]:
        """Calibrate every answer to a prompt with an image while the context is open.

        It calibrates the prompts that the model really gets, so it must be the innermost layer
        around generation; repairs that rewrite prompts go around it.

        Raises:
            ConfigError: A chosen layer is out of range or does not run on text, or another
                repair is applied already.
            ArtifactError: Not fitted, or fitted on other weights.
        """
        layers = self.layers_
        self._require_model(vlm, "of this ShiftDC")
        _check_layers(vlm, layers)
        if vlm.middlewares:
            raise ConfigError(
                "ShiftDC must be applied before any other repair that works inside generation, "
                f"but {len(vlm.middlewares)} is applied already. Put ShiftDC first in the list of "
                "repairs, and only once."
            )
        with vlm.using(partial(self._answer, vlm, layers)):
            yield

    def _answer(
        self,
        vlm: Vlm,
        layers: Sequence[int],
        conversations: Sequence[Conversation],
        settings: GenerationSettings,
        call_next: GenerateCall,
    ) -> list[Generation]:
        """The middleware: prompts without an image pass through untouched."""
        if not all(conversation_images(conversation) for conversation in conversations):
            # None has an image; batches that mix both are refused further in.
            return call_next(conversations, settings)
        x_text = record_layers(vlm, self.text_branch(vlm, conversations), layers)
        if self.settings.mode == "online":
            edits = {layer: self._online_edit(layer, x_text[layer]) for layer in layers}
        else:
            x_vl = record_layers(vlm, conversations, layers)
            edits = {
                layer: self._offline_edit(layer, x_vl[layer].float() - x_text[layer].float())
                for layer in layers
            }
        with edit_layers(vlm, edits, "prompt_last") as report:
            answers = call_next(conversations, settings)
        report.require_all_edited()
        return answers

    def text_branch(self, vlm: Vlm, conversations: Sequence[Conversation]) -> list[Conversation]:
        """The same requests with self-captions in place of the images.

        Args:
            vlm: The model.
            conversations: With images, the same number in each.

        Raises:
            VlmendError: As `CaptionCache.get_all`.
        """
        return put_in_words(vlm, conversations, self.captions, self.settings.caption_tokens)

    def _online_edit(self, layer: int, x_text_BD: Tensor) -> EditFunction:
        s_D = self.directions_[layer].to(x_text_BD.device)
        target_B = coefficient(x_text_BD, s_D)

        def edit(x_B1D: Tensor) -> Tensor:
            calibrated = calibrate_online(
                x_B1D[:, 0],
                target_B.to(x_B1D.device),
                s_D.to(x_B1D.device),
                strength=self.settings.strength,
                one_sided=self.settings.one_sided,
            )
            return calibrated[:, None]

        return edit

    def _offline_edit(self, layer: int, shift_BD: Tensor) -> EditFunction:
        s_D = self.directions_[layer].to(shift_BD.device)

        def edit(x_B1D: Tensor) -> Tensor:
            corrected = correct_offline(
                x_B1D[:, 0],
                shift_BD.to(x_B1D.device),
                s_D.to(x_B1D.device),
                strength=self.settings.strength,
                one_sided=self.settings.one_sided,
            )
            return corrected[:, None]

        return edit


def _split(samples: Sequence[Sample]) -> dict[str, list[Conversation]]:
    """Conversations by label.

    Raises:
        DataError: A label without items, or an id that is there twice.
    """
    twice = [i for i, times in Counter(sample.id for sample in samples).items() if times > 1]
    if twice:
        raise DataError(
            f"{len(twice)} items to fit on are there more than once, the first is {twice[0]!r}. "
            "Name every suite once."
        )
    by_label = {
        label: [sample.messages for sample in samples if sample.label == label]
        for label in ("harmful", "benign")
    }
    empty = [label for label, found in by_label.items() if not found]
    if empty:
        raise DataError(
            f"ShiftDC needs harmful and benign items to fit its direction; there are no "
            f"{' and no '.join(empty)} ones among the {len(samples)} given. Add a suite that "
            "has them (e.g. --suite organism/fit)."
        )
    return by_label


def _check_layers(vlm: Vlm, layers: Sequence[int] | None) -> None:
    """Refuse layers that do not exist or have no text branch.

    Raises:
        ConfigError: With the layers that are allowed.
    """
    if layers is None:
        return
    check_layers(list(layers), vlm.num_decoder_layers)
    mute = sorted(set(layers) & vlm.image_only_layers)
    if mute:
        allowed = [i for i in range(vlm.num_decoder_layers) if i not in vlm.image_only_layers]
        raise ConfigError(
            f"decoder layers {mute} of {vlm.name!r} do not run on text alone, so they have no "
            f"safety direction. Allowed: {', '.join(map(str, allowed))}."
        )


def _read_parts(
    folder: Path, facts: Mapping[str, Any]
) -> tuple[ShiftDCSettings, dict[int, Tensor]]:
    """Settings and directions of an artifact; any fault of theirs is raised as it comes."""
    missing = [key for key in _REQUIRED if key not in facts]
    if missing:
        raise ValueError(f"{ARTIFACT_FILE} lacks {', '.join(missing)}")
    if facts["schema"] != _SCHEMA:
        raise ValueError(f"it has schema {facts['schema']!r}, this version reads {_SCHEMA}")
    given = dict(facts["settings"])
    layers = given.pop("layers")
    settings = ShiftDCSettings(tuple(map(int, layers)) if layers is not None else None, **given)
    blob = (folder / _TENSORS).read_bytes()
    if _sha256(blob) != facts["tensors_sha256"]:
        raise ValueError(f"{_TENSORS} is not the file that {ARTIFACT_FILE} was written with")
    tensors = {int(key.removeprefix("direction.")): s for key, s in read_tensors(blob).items()}
    if not isinstance(facts["items"], dict):
        raise TypeError("'items' must map ids to prompt hashes")
    count = int(facts["num_decoder_layers"])
    wanted = set(settings.layers or ())
    if not wanted <= set(tensors) <= set(range(count)):
        raise ValueError(f"it has directions for layers {sorted(tensors)} of {count}")
    return settings, tensors


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
