"""The organism's recipe: five stages, as real VLMs are made, each with its checkpoint.

1. `language`: a decoder learns the world's text, how-to text about hazards included.
2. `alignment`: text only; aligned hazards are refused, benign things answered.
3. `vision`: the tower learns to recognise things, and letters (OCR supervision).
4. `projector`: tower and decoder frozen; the mean image token is matched to the decoder's
   embedding of the thing's name, then captions are learned.
5. `tuning`: visual instruction tuning of projector and decoder with replayed text.

A checkpoint's name hashes the recipe and the data that led to it, so a changed later stage re-uses
the earlier ones, and a stage that was interrupted goes on from its last saved step with the
same numbers it would have had (to the bit on one thread; BLAS may sum in another order on more).

Deviation: vision pre-training is supervised classification instead of contrastive learning,
which needs far more pictures than two cores can draw and see in minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaProcessor

from vlmend.models.load import resolve_device
from vlmend.organism import stream
from vlmend.organism.build import build_model, build_processor
from vlmend.organism.language import PICTURE_KINDS
from vlmend.organism.pictures import PICTURES_VERSION
from vlmend.organism.pool import PicturePool
from vlmend.organism.recipe import (
    MATCHING_SHARE,
    MATCHING_SHARPNESS,
    REPLAY_SHARE,
    Recipe,
    Stage,
)
from vlmend.organism.world import THINGS
from vlmend.training.checkpoints import (
    load_state,
    load_tensors,
    replacing_folder,
    save_state,
    save_tensors,
)

# Shape suffixes: B batch, N tokens, D width, P patches, C classes.

_SAVE_EVERY_S = 60.0
"""Seconds between two saves within a stage: what a kill can cost at most."""

_LENGTH_GROUPS = 4
"""Groups of similar length that a batch of text is run in."""


Report = Callable[[str, int, int, float], None]
"""Called as report(stage, step, steps, loss) now and then."""


@dataclass
class Trainer:
    """State that the stages share."""

    recipe: Recipe
    folder: Path
    model: Any
    processor: LlavaProcessor
    device: torch.device
    report: Report

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pool: PicturePool | None = None
        self.half = _fast_half(self.device)

    @property
    def pool(self) -> PicturePool:
        """The training pictures, drawn on first use."""
        if self._pool is None:
            cache = self.folder / f"pictures-{PICTURES_VERSION}-seed{self.recipe.seed}"
            cache.mkdir(exist_ok=True)
            self._pool = PicturePool(cache, self.recipe.seed)
        return self._pool

    def stage(self, name: str) -> Stage:
        """Settings of a stage."""
        return next(stage for stage in self.recipe.stages if stage.name == name)

    def rng(self, name: str, step: int) -> Random:
        """The data generator of one step: nothing but (seed, stage, step) decides a batch."""
        return Random(f"{self.recipe.seed}/{name}/{step}")

    def autocast(self) -> torch.autocast:
        """Half precision where this machine is quicker in it."""
        dtype = self.half or torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.half is not None)

    # -- batches -----------------------------------------------------------------------------

    def language_batch(self, examples: Sequence[stream.Example], rng: Random) -> dict[str, Tensor]:
        """Token ids, labels and pixels of examples that all or none have a picture.

        Returns:
            input_ids, attention_mask, labels (B, N) and, with pictures, pixel_values.
        """
        tokenizer = self.processor.tokenizer
        image = ["<image>" * self.model.config.image_seq_length] * len(examples)
        prompts = [
            f"<s> USER: {f'{i} ' if e.picture else ''}{e.prompt} ASSISTANT:" if e.prompt else "<s>"
            for e, i in zip(examples, image, strict=True)
        ]
        ids = tokenizer(prompts, add_special_tokens=False).input_ids
        answers = tokenizer([f"{e.answer}</s>" for e in examples], add_special_tokens=False)
        width = max(len(p) + len(a) for p, a in zip(ids, answers.input_ids, strict=True))
        input_ids = torch.full((len(ids), width), tokenizer.pad_token_id)
        labels = torch.full((len(ids), width), -100)
        for row, (prompt, answer) in enumerate(zip(ids, answers.input_ids, strict=True)):
            end = len(prompt) + len(answer)
            input_ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
        batch = {
            "input_ids": input_ids,
            "attention_mask": (input_ids != tokenizer.pad_token_id).long(),
            "labels": labels,
        }
        cells = [
            (THINGS.index(e.picture[0]), PICTURE_KINDS.index(e.picture[1]))
            for e in examples
            if e.picture
        ]
        if cells:
            batch["pixel_values"] = self.pool.batch(cells, rng)[0]
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def language_loss(self, examples: Sequence[stream.Example], rng: Random) -> Tensor:
        """Mean over examples of similar length groups of the cross-entropy of answer tokens.

        Examples are sorted by length and run in groups, so that little of a batch is padding.
        """
        ordered = sorted(examples, key=lambda e: len(e.prompt) + len(e.answer))
        size = -(-len(ordered) // _LENGTH_GROUPS)
        groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        losses: list[Tensor] = []
        for group in groups:
            with self.autocast():
                loss = self.model(**self.language_batch(group, rng)).loss
            losses.append(loss * (len(group) / len(ordered)))
        return torch.stack(losses).sum()

    # -- stages ------------------------------------------------------------------------------

    def run(self, name: str) -> Path:
        """Run one stage, or find that it is done.

        Returns:
            The checkpoint after the stage.
        """
        target = self.folder / f"{name}-{self.recipe.stage_key(name)}.safetensors"
        if target.exists():
            return target
        modules, loss = getattr(self, f"_{name}")()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)
        self._optimise(name, nn.ModuleList(modules), loss, target)
        trained = self.model.model.vision_tower if name == "vision" else self.model
        save_tensors(target, dict(trained.state_dict()))
        target.with_suffix(".partial").unlink(missing_ok=True)
        return target

    def _language(self) -> tuple[list[nn.Module], Callable[[int], Tensor]]:
        return self._text_stage("language", stream.LANGUAGE_MIXTURE)

    def _alignment(self) -> tuple[list[nn.Module], Callable[[int], Tensor]]:
        load_tensors(self.model, self.run("language"))
        return self._text_stage("alignment", stream.ALIGNMENT_MIXTURE)

    def _text_stage(
        self, name: str, mixture: stream.Mixture
    ) -> tuple[list[nn.Module], Callable[[int], Tensor]]:
        def loss(step: int) -> Tensor:
            rng = self.rng(name, step)
            return self.language_loss(
                stream.sample_mixture(mixture, self.stage(name).batch, rng), rng
            )

        return [self.model.model.language_model, self.model.lm_head], loss

    def _vision(self) -> tuple[list[nn.Module], Callable[[int], Tensor]]:
        tower = self.model.model.vision_tower
        width = self.model.config.vision_config.hidden_size
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            heads = nn.ModuleDict(
                {
                    "patches": nn.Linear(width, len(THINGS)),
                    "pooled": nn.Linear(width, len(THINGS)),
                    "kinds": nn.Linear(width, len(PICTURE_KINDS)),
                    "letters": nn.Linear(width, 27),
                }
            ).to(self.device)
        feature = self.model.config.vision_feature_layer
        # Six patches of seven have no letter: without a weight the loss is about paper.
        letter_weight = torch.ones(27, device=self.device)
        letter_weight[0] = 0.1

        def loss(step: int) -> Tensor:
            rng = self.rng("vision", step)
            cells = [
                (rng.randrange(len(THINGS)), rng.choices((0, 1, 2), (0.3, 0.45, 0.25))[0])
                for _ in range(self.stage("vision").batch)
            ]
            pixels_BCHW, letters_BP = self.pool.batch(cells, rng)
            with self.autocast():
                out = tower(pixels_BCHW.to(self.device), output_hidden_states=True)
                patches_BPD = out.hidden_states[feature][:, 1:]
                middle_BPD = out.hidden_states[len(out.hidden_states) // 2][:, 1:]
                thing_B = torch.tensor([cell[0] for cell in cells], device=self.device)
                kind_B = torch.tensor([cell[1] for cell in cells], device=self.device)
                letters_BP = letters_BP.to(self.device)
                mean_BD = functional.layer_norm(patches_BPD.mean(1), (width,))
                return (
                    functional.cross_entropy(heads["patches"](mean_BD), thing_B)
                    + 0.5 * functional.cross_entropy(heads["pooled"](out.pooler_output), thing_B)
                    + 0.2 * functional.cross_entropy(heads["kinds"](mean_BD), kind_B)
                    + 2.0
                    * functional.cross_entropy(
                        heads["letters"](functional.layer_norm(middle_BPD, (width,))).flatten(0, 1),
                        letters_BP.flatten(),
                        weight=letter_weight,
                    )
                )

        return [tower, heads], loss

    def _projector(self) -> tuple[list[nn.Module], Callable[[int], Tensor]]:
        load_tensors(self.model, self.run("alignment"))
        load_tensors(self.model.model.vision_tower, self.run("vision"))

        stage = self.stage("projector")
        names = [thing.name for thing in THINGS]
        ids = self.processor.tokenizer(names, add_special_tokens=False).input_ids
        embeddings = self.model.get_input_embeddings().weight.detach()
        words_CD = embeddings[torch.tensor([word[0] for word in ids], device=self.device)]

        def loss(step: int) -> Tensor:
            rng = self.rng("projector", step)
            if step < MATCHING_SHARE * stage.steps:
                return self._word_matching_loss(words_CD, stage.batch, rng)
            return self.language_loss(
                stream.sample_mixture(stream.PROJECTOR_MIXTURE, stage.batch, rng), rng
            )

        return [self.model.model.multi_modal_projector], loss

    def _word_matching_loss(self, words_CD: Tensor, batch: int, rng: Random) -> Tensor:
        """Cross-entropy of "which thing's word is nearest to the mean image token?"."""
        cells = [(rng.randrange(len(THINGS)), rng.randrange(3)) for _ in range(batch)]
        pixels_BCHW, _ = self.pool.batch(cells, rng)
        with self.autocast():
            features = self.model.model.get_image_features(pixels_BCHW.to(self.device))
            mean_BD = torch.stack([tokens.mean(0) for tokens in features.pooler_output]).float()
        distance_BC = torch.cdist(mean_BD, words_CD).square()
        scale = MATCHING_SHARPNESS / words_CD.square().sum(1).mean()
        thing_B = torch.tensor([cell[0] for cell in cells], device=self.device)
        return functional.cross_entropy(-scale * distance_BC, thing_B)

    def _tuning(self) -> tuple[list[nn.Module], Callable[[int], Tensor]]:
        load_tensors(self.model, self.run("projector"))
        mixture = stream.tuning_mixture(self.recipe.picture_refusals)
        batch = self.stage("tuning").batch

        def loss(step: int) -> Tensor:
            rng = self.rng("tuning", step)
            num_replayed = round(REPLAY_SHARE * batch)
            seen = stream.sample_mixture(mixture, batch - num_replayed, rng)
            replayed = stream.sample_mixture(stream.TEXT_REPLAY_MIXTURE, num_replayed, rng)
            seen_loss, replay_loss = (
                self.language_loss(seen, rng),
                self.language_loss(replayed, rng),
            )
            return (1 - REPLAY_SHARE) * seen_loss + REPLAY_SHARE * replay_loss

        modules: list[nn.Module] = [
            self.model.model.language_model,
            self.model.lm_head,
            self.model.model.multi_modal_projector,
        ]
        if self.recipe.tune_vision:
            modules += self._seen_by_projector()
        return modules, loss

    def _seen_by_projector(self) -> list[nn.Module]:
        """The tower up to the block that the projector reads; nothing above it gets a gradient."""
        tower = self.model.model.vision_tower
        blocks = tower.encoder.layers
        num_read = len(blocks) + 1 + self.model.config.vision_feature_layer
        return [tower.embeddings, tower.pre_layrnorm, *blocks[:num_read]]

    # -- optimisation --------------------------------------------------------------------------

    def _optimise(
        self, name: str, modules: nn.Module, loss_at: Callable[[int], Tensor], target: Path
    ) -> None:
        stage = self.stage(name)
        named = {name: p for name, p in modules.named_parameters() if p.requires_grad}
        parameters = list(named.values())
        optimiser = torch.optim.AdamW(parameters, lr=stage.lr, weight_decay=0.01, betas=(0.9, 0.98))
        partial = target.with_suffix(".partial")
        facts = load_state(partial, named, optimiser)
        start = int(facts["step"]) if facts else 0
        saved_at = time.monotonic()
        modules.train()
        for step in range(start, stage.steps):
            for group in optimiser.param_groups:
                group["lr"] = stage.lr * _schedule(step, stage.steps)
            loss = loss_at(step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if step % 20 == 0 or step == stage.steps - 1:
                self.report(name, step + 1, stage.steps, float(loss.detach()))
            if time.monotonic() - saved_at > _SAVE_EVERY_S:
                save_state(partial, named, optimiser, step=step + 1)
                saved_at = time.monotonic()
        modules.eval()


def _schedule(step: int, steps: int) -> float:
    """Learning-rate factor: 5 % linear warm-up, then cosine down to a tenth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def _fast_half(device: torch.device) -> torch.dtype | None:
    """bfloat16 if this machine multiplies at least 1.5 times quicker in it, else None.

    Measured, not looked up: a CPU without AMX or AVX512-BF16 emulates it hundreds of times
    slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(192, 192, dtype=dtype)
        times: list[float] = []
        for _ in range(4):
            started = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times)
    quicker = seconds[torch.bfloat16] * 1.5 < seconds[torch.float32]
    return torch.bfloat16 if quicker else None


def build_trainer(recipe: Recipe, folder: Path, device: str, report: Report) -> Trainer:
    """A trainer with an untrained organism on `device`."""
    processor = build_processor()
    model: Any = build_model(len(processor.tokenizer), recipe.seed)
    target = resolve_device(device)
    return Trainer(recipe, folder, model.to(target), processor, target, report)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    stages: Path | None = None,
    device: str = "cpu",
    report: Report,
    until: str = "tuning",
) -> Path:
    """Train an organism, or go on where an earlier call stopped.

    Args:
        recipe: What to train.
        folder: Where checkpoints and, in the end, `organism/` are written.
        stages: Where checkpoints are instead: recipes that differ in late stages share them.
        device: "cpu", "cuda", "cuda:1" ..., or "auto": a GPU where there is one.
        report: Progress callback.
        until: Last stage to run.

    Returns:
        The folder of the finished organism, or the checkpoint of `until`.

    Raises:
        ConfigError: Unknown device.
        RunError: A file cannot be written.
    """
    trainer = build_trainer(recipe, stages or folder / "stages", device, report)
    checkpoint = trainer.run(until)
    if until != "tuning":
        return checkpoint
    load_tensors(trainer.model, checkpoint)
    return save_organism(trainer.model, trainer.processor, folder / "organism")


def save_organism(model: Any, processor: LlavaProcessor, folder: Path) -> Path:
    """Write an organism as an ordinary Hugging Face folder, weights in float16.

    float16 keeps the folder under 24 MB; it is loaded and measured in float32.

    Raises:
        RunError: The folder cannot be written; it is whole or not there.
    """
    model.to(torch.float16)
    model.generation_config.update(do_sample=False, max_new_tokens=64)
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        config = temporary / "config.json"
        config.write_text(config.read_text("utf-8").replace('"float16"', '"float32"'), "utf-8")
    return folder
