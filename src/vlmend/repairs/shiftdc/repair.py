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
    4. Layers default to L//2 .. L-1; the paper starts in the middle and ends at the last.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlmend.errors import ArtifactError, ConfigError, DataError
from vlmend.evals.run import describe_prompt
from vlmend.hooks.edit import edit_layers
from vlmend.hooks.record import record_layers
from vlmend.models.generation import GenerateCall, Generation, GenerationSettings
from vlmend.models.spec import check_layers
from vlmend.models.vlm import Vlm
from vlmend.repairs.protocol import ARTIFACT_FILE, read_artifact
from vlmend.repairs.shiftdc.captions import CaptionCache, text_conversation
from vlmend.repairs.shiftdc.projection import (
    calibrate_online,
    coefficient,
    correct_offline,
    difference_in_means,
)
from vlmend.runs import replacing, write_json
from vlmend.types import Conversation, Sample, conversation_images, sha256_json

_FIT_BATCH = 32
"""Prompts per forward pass while fitting."""

_TENSORS = "direction.safetensors"


@dataclass(frozen=True)
class ShiftDCSettings:
    """Settings of ShiftDC.

    Attributes:
        layers: Decoder layers to calibrate (0-based); None for L//2 .. L-1.
        mode: "online" or "offline", see the module docstring.
        strength: Share of the projection removed, above 0 up to 2; 1 as published.
        one_sided: Correct only shifts towards safe.
        caption_tokens: Length limit of self-captions in new tokens.
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
        facts_: What it was fitted on: model, weights, data hash, counts.
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
    def fingerprint(self) -> str:
        """Hash of the settings and of what the direction was fitted on."""
        fitted = {layer: s.sum().item().hex() for layer, s in sorted(self.directions_.items())}
        return sha256_json(
            ["shiftdc", asdict(self.settings), self.facts_.get("data_sha256"), fitted]
        )

    # ---- fitting

    def fit(self, vlm: Vlm, samples: Sequence[Sample]) -> Self:
        """Fit the safety direction on text: requests with self-captions in place of images.

        Args:
            vlm: The model.
            samples: Harmful and benign items; those with images are put in words first.

        Raises:
            DataError: Harmful or benign items are missing.
            ConfigError: A chosen layer is out of range.
        """
        self._chosen_layers(vlm)
        by_label = {
            label: [s.messages for s in samples if s.label == label]
            for label in ("harmful", "benign")
        }
        empty = [label for label, found in by_label.items() if not found]
        if empty:
            raise DataError(
                f"ShiftDC needs harmful and benign items to fit its direction; there are no "
                f"{' and no '.join(empty)} ones among the {len(samples)} given. Add a suite that "
                "has them (e.g. --suite organism/fit)."
            )
        acts = {
            label: record_text_branch(vlm, conversations, self.captions, self.settings)
            for label, conversations in by_label.items()
        }
        self.directions_ = {
            layer: difference_in_means(acts["benign"][layer], acts["harmful"][layer]).cpu()
            for layer in acts["benign"]
        }
        flat = [layer for layer, s in self.directions_.items() if float(s.norm()) == 0.0]
        if flat:
            raise DataError(
                f"the safety direction is zero at layers {flat}: harmful and benign prompts "
                "cause the same activations. Use items that differ in what they ask."
            )
        self.facts_ = {
            "model": vlm.name,
            "family": vlm.spec.model_type,
            "weights_sha256": vlm.weights_sha256,
            "num_decoder_layers": vlm.num_decoder_layers,
            "layer_convention": "output of decoder layer i, 0-based, before the final norm",
            "position": "prompt_last",
            "num_harmful": len(by_label["harmful"]),
            "num_benign": len(by_label["benign"]),
            "item_ids": sorted(s.id for s in samples),
            "data_sha256": sha256_json(
                sorted([s.label, describe_prompt(s.messages)] for s in samples)
            ),
        }
        return self

    # ---- artifact

    def save(self, folder: Path) -> Path:
        """Write `direction.safetensors` and `vlmend.json`.

        Returns:
            The folder.
        """
        assert self.directions_, "fit before save"
        tensors = {f"direction.{layer}": s.contiguous() for layer, s in self.directions_.items()}
        with replacing(folder / _TENSORS) as temporary:
            save_file(tensors, temporary)
        facts = {"kind": "shiftdc", "schema": 1, "settings": asdict(self.settings), **self.facts_}
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
            ArtifactError: Damaged, or fitted on other weights.
        """
        facts = read_artifact(folder, "shiftdc")
        if facts.get("weights_sha256") != vlm.weights_sha256:
            raise ArtifactError(
                f"the direction in {str(folder)!r} was fitted on {facts.get('model')!r} (weights "
                f"{str(facts.get('weights_sha256'))[:12]}), not on {vlm.name!r} (weights "
                f"{vlm.weights_sha256[:12]}). Directions belong to one set of weights in one "
                "dtype: fit again with `vlmend repair shiftdc`."
            )
        try:
            tensors = load_file(folder / _TENSORS)
            settings = dict(facts["settings"])
            settings["layers"] = tuple(settings["layers"]) if settings["layers"] else None
            repair = cls(
                ShiftDCSettings(**settings), captions or CaptionCache(folder / "captions.jsonl")
            )
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"the ShiftDC artifact in {str(folder)!r} is damaged: {error}. Fit again with "
                "`vlmend repair shiftdc`."
            ) from error
        repair.directions_ = {int(key.rpartition(".")[2]): s for key, s in tensors.items()}
        repair.facts_ = {
            key: value for key, value in facts.items() if key not in ("kind", "schema", "settings")
        }
        return repair

    # ---- application

    @contextmanager
    def apply(self, vlm: Vlm) -> Generator[None]:
        """Calibrate every answer to a prompt with an image while the context is open.

        Raises:
            ConfigError: A chosen layer is out of range or has no direction.
            ArtifactError: Not fitted.
        """
        if not self.directions_:
            raise ArtifactError("this ShiftDC was never fitted. Call fit, or load an artifact.")
        layers = self._chosen_layers(vlm)
        missing = [layer for layer in layers if layer not in self.directions_]
        if missing:
            raise ConfigError(
                f"there is no direction for decoder layers {missing}: they do not run on text "
                f"alone. Layers with one: {sorted(self.directions_)}."
            )
        with vlm.using(partial(self._answer, vlm, layers)):
            yield

    def _chosen_layers(self, vlm: Vlm) -> tuple[int, ...]:
        """The layers to calibrate; by default the upper half, less those that text skips."""
        if self.settings.layers is not None:
            check_layers(list(self.settings.layers), vlm.num_decoder_layers)
            return tuple(sorted(set(self.settings.layers)))
        count = vlm.num_decoder_layers
        return tuple(i for i in range(count // 2, count) if i not in vlm.image_only_layers)

    def _answer(
        self,
        vlm: Vlm,
        layers: Sequence[int],
        conversations: Sequence[Conversation],
        settings: GenerationSettings,
        call_next: GenerateCall,
    ) -> list[Generation]:
        """The middleware: prompts without an image pass through untouched."""
        if not any(conversation_images(conversation) for conversation in conversations):
            return call_next(conversations, settings)
        texts = self.text_branch(vlm, conversations, call_next)
        x_text = record_layers(vlm, texts, layers)
        if self.settings.mode == "online":
            edits = {layer: self._online_edit(x_text[layer], layer) for layer in layers}
        else:
            x_vl = record_layers(vlm, conversations, layers)
            edits = {
                layer: self._offline_edit(x_vl[layer].float() - x_text[layer].float(), layer)
                for layer in layers
            }
        with edit_layers(vlm, edits, "prompt_last") as report:
            answers = call_next(conversations, settings)
        report.require_all_edited()
        return answers

    def text_branch(
        self, vlm: Vlm, conversations: Sequence[Conversation], generate: GenerateCall
    ) -> list[Conversation]:
        """The same requests with self-captions in place of the images."""
        captions = self.captions.get_all(vlm, conversations, generate, self.settings.caption_tokens)
        return [text_conversation(c, t) for c, t in zip(conversations, captions, strict=True)]

    def _online_edit(self, x_text_BD: Tensor, layer: int) -> Any:
        s_D = self.directions_[layer].to(x_text_BD.device)
        target_B = coefficient(x_text_BD, s_D)

        def edit(x_BKD: Tensor) -> Tensor:
            calibrated = calibrate_online(
                x_BKD[:, 0],
                target_B.to(x_BKD.device),
                s_D.to(x_BKD.device),
                strength=self.settings.strength,
                one_sided=self.settings.one_sided,
            )
            return calibrated[:, None]

        return edit

    def _offline_edit(self, shift_BD: Tensor, layer: int) -> Any:
        s_D = self.directions_[layer].to(shift_BD.device)

        def edit(x_BKD: Tensor) -> Tensor:
            corrected = correct_offline(
                x_BKD[:, 0],
                shift_BD.to(x_BKD.device),
                s_D.to(x_BKD.device),
                strength=self.settings.strength,
                one_sided=self.settings.one_sided,
            )
            return corrected[:, None]

        return edit


def record_text_branch(
    vlm: Vlm,
    conversations: Sequence[Conversation],
    captions: CaptionCache,
    settings: ShiftDCSettings,
) -> dict[int, Tensor]:
    """Activations of the last prompt token of the text branch, at every layer that runs.

    Args:
        vlm: The model, without repairs applied.
        conversations: With images (they are captioned first) or without.
        captions: Caption cache.
        settings: For the length of captions.

    Returns:
        By layer: (N, D) float32 on the CPU, rows in the order of the conversations.
    """
    rows: dict[int, list[Tensor]] = {}
    order: list[int] = []
    for images in sorted({len(conversation_images(c)) for c in conversations}):
        chosen = [i for i, c in enumerate(conversations) if len(conversation_images(c)) == images]
        for start in range(0, len(chosen), _FIT_BATCH):
            indices = chosen[start : start + _FIT_BATCH]
            batch = [conversations[i] for i in indices]
            if images:
                found = captions.get_all(vlm, batch, vlm.generate, settings.caption_tokens)
                batch = [text_conversation(c, t) for c, t in zip(batch, found, strict=True)]
            for layer, x_BD in record_layers(vlm, batch).items():
                rows.setdefault(layer, []).append(x_BD.float().cpu())
            order += indices
    back = torch.tensor(order).argsort()
    return {layer: torch.cat(parts)[back] for layer, parts in rows.items()}
