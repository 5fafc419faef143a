"""Unlearning as a repair: an adapter, trained once, put on the model while it is applied.

Textual, multimodal and mixed unlearning and their supervised twins are this one repair on other
data and with other objectives, see `vlmend.repairs.unlearning.objective`. Only the decoder layers
train; that everything else is bit-identical afterwards is checked and recorded.

Reference: Chakraborty et al., "Can Textual Unlearning Solve Cross-Modality Safety Alignment?"
(Findings of EMNLP 2024, arXiv 2406.02575).

Deviation:
    1. A LoRA adapter on all linear modules of the decoder layers by default; the paper leaves
       open what it trains. `adapter="full"` trains the decoder layers' own weights.
    2. Models, sizes, learning rate and weights are open in the paper. Weights and ceiling are
       those with which benign answers stay (docs/how-to-unlearn.md), the learning rate is 1e-4
       for LoRA as in its closest public ancestor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from vlmend.errors import ArtifactError, ConfigError, DataError, RunError
from vlmend.models.vlm import Vlm
from vlmend.repairs.adapter_repair import (
    AdapterRepair,
    count_every,
    describe_result,
    note_model,
)
from vlmend.repairs.unlearning.objective import UnlearningObjective
from vlmend.repairs.unlearning.settings import UnlearningSettings, name_unlearning
from vlmend.runs import JsonLines
from vlmend.training.adapter_loading import require_effect
from vlmend.training.adapters import (
    Adapter,
    AdapterWeights,
    LoraSettings,
    add_full,
    add_lora,
)
from vlmend.training.cost_curve import training_record
from vlmend.training.data.checks import check_sets
from vlmend.training.data_facts import Streams, describe_data, name_data
from vlmend.training.examples import Example
from vlmend.training.loop import LoopSettings, Progress, TrainingResult, run_loop
from vlmend.training.meter import Meter


@dataclass
class Unlearning(AdapterRepair):
    """The unlearning repair.

    Attributes:
        settings: What is trained, and with which losses.
        loop: How it is optimised.
        adapters_: The trained adapter, see `AdapterRepair`.
        facts_: What it was trained on, what that cost, and what it belongs to.
    """

    kind: ClassVar[str] = "unlearning"
    command: ClassVar[str] = "vlmend repair unlearn"

    settings: UnlearningSettings = field(default_factory=UnlearningSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    adapters_: dict[int | None, AdapterWeights] = field(
        default_factory=dict[int | None, AdapterWeights], init=False
    )
    facts_: dict[str, Any] = field(default_factory=dict[str, Any], init=False)

    @property
    def name(self) -> str:
        """The objective with the kind of data, and the settings that differ from the default."""
        data = self.facts_.get("modality", "untrained")
        return name_unlearning(self.settings, data, seed=self.loop.seed)

    @property
    def objective(self) -> str:
        """Name of what was optimised."""
        return self.settings.objective

    def settings_record(self) -> dict[str, Any]:
        """Its settings as JSON."""
        return self.settings.record()

    @classmethod
    def from_records(cls, settings: dict[str, Any], loop: LoopSettings) -> Self:
        """See `AdapterRepair.from_records`."""
        return cls(UnlearningSettings.from_record(settings), loop)

    # ---- training

    def fit(
        self,
        vlm: Vlm,
        forget: Sequence[Example],
        retain: Sequence[Example] = (),
        *,
        folder: Path,
        about: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        watch: Callable[[int], Mapping[str, Any]] | None = None,
        watch_every: int = 0,
    ) -> Self:
        """Train the adapter; the same call goes on where an interrupted one stopped.

        Args:
            vlm: The model, without repairs applied.
            forget: What is to be unlearned; with targets where the match term is on.
            retain: What is to stay; none where the objective never reads it, as "ga".
            folder: Where checkpoint and records of the training are.
            about: More facts about the data by role, such as names and licences.
            progress: Called after each step as progress(what, done, total).
            watch: Measures the model in training; given the number of steps done. Numbers of
                "asr" in what it returns are held against the cost so far.
            watch_every: Steps between two calls; it is called at the start and the end as well.

        Raises:
            ConfigError: Settings that do not fit the model or the data; retain data that the
                objective never reads; or the model is changed already (a repair is applied).
            DataError: No examples, an example twice or in both sets, or one without a target.
            ArtifactError: The training changed nothing.
            RunError: As `run_loop`; or training ran away; or a tensor outside of the decoder
                layers changed.
        """
        if retain:
            self.settings.refuse_unread("retain", f"{len(retain)} retain examples")
        given = {"forget": forget, "retain": retain}
        streams = {role: given[role] for role in self.settings.recipe.streams}
        items = self.check(vlm, streams)
        modality, data = name_data(streams), describe_data(streams)
        before = note_model(vlm)
        config = {
            "settings": self.settings.record(),
            "weights_sha256": before["weights_sha256"],
            "data": {role: facts["sha256"] for role, facts in data.items()},
        }
        objective = self.build_objective(vlm, has_images=modality != "text")
        with objective.adapter as adapter:
            result = run_loop(
                objective,
                streams,
                adapter.parameters,
                self.loop,
                folder,
                meter=Meter(vlm.device, count_every=count_every(vlm)),
                config=config,
                progress=progress,
                watch=watch,
                watch_every=watch_every,
            )
            _require_learnt(objective, result)
            weights = adapter.weights()
        name = name_unlearning(self.settings, modality, seed=self.loop.seed)
        facts = {
            "modality": modality,
            "data": {role: data[role] | dict((about or {}).get(role, {})) for role in data},
            **_training_facts(name, result, JsonLines(folder / "watch.jsonl").read()),
        }
        self.remember(vlm, {None: weights}, before, items, facts)
        return self

    def check(self, vlm: Vlm, streams: Streams) -> Mapping[str, str]:
        """Find out all that can be wrong with a fit before the model runs; see `fit`.

        Returns:
            Example id -> prompt hash of all examples.
        """
        self.require_plain_model(vlm)
        without = [e.id for e in streams["forget"] if e.target is None]
        if without and self.settings.recipe.w_help:
            raise DataError(
                f"{len(without)} forget examples have no target to answer instead, the first is "
                f"{without[0]!r}. Assign targets (match='refusals'), or set w_help to 0."
            )
        return check_sets(streams["forget"], streams.get("retain")).prompts

    def build_objective(self, vlm: Vlm, *, has_images: bool = True) -> UnlearningObjective:
        """Put a fresh adapter on a model, and make the objective that trains it.

        Args:
            vlm: The model.
            has_images: Whether any example has; layers that only images reach train only then.

        Raises:
            ConfigError: A layer or module that the model does not have, or that never trains.
        """
        adapter = self._new_adapter(vlm, has_images=has_images)
        try:
            return UnlearningObjective(vlm, self.settings, adapter, seed=self.loop.seed)
        except BaseException:
            adapter.remove()
            raise

    def _new_adapter(self, vlm: Vlm, *, has_images: bool) -> Adapter:
        mute = vlm.image_only_layers
        layers = self.settings.trained_layers(vlm.num_decoder_layers, mute)
        self._require_reached(vlm, layers)
        if not has_images:
            if self.settings.layers is not None and set(layers) & mute:
                raise ConfigError(
                    f"decoder layers {sorted(set(layers) & mute)} of {vlm.name!r} do not run on "
                    "text alone, and no example has an image: they would never train. Leave them "
                    "out."
                )
            layers = tuple(layer for layer in layers if layer not in mute)
        if self.settings.adapter == "full":
            return add_full(vlm, layers)
        lora = LoraSettings(self.settings.rank, self.settings.alpha, layers, self.settings.modules)
        return add_lora(vlm, lora, seed=self.loop.seed)

    def _require_reached(self, vlm: Vlm, layers: Sequence[int]) -> None:
        """Refuse layers that no term has a gradient for: rmu's terms end at its layer."""
        recipe = self.settings.recipe
        if recipe.forget != "misdirect" or recipe.w_help:
            return
        last = self.settings.steered_layer(vlm.num_decoder_layers, vlm.image_only_layers)
        above = [layer for layer in layers if layer > last]
        if above:
            raise ConfigError(
                f"decoder layers {above} lie above layer {last}, whose output rmu misdirects, so "
                "they would never train. Leave them out, or choose a higher --rmu-layer."
            )


def _require_learnt(objective: UnlearningObjective, result: TrainingResult) -> None:
    if objective.ran_away:
        raise RunError(
            f"at step {len(result.steps)} {result.stopped}. No adapter was saved. "
            f"{_advise(objective.settings)}"
        )
    try:
        require_effect(objective.adapter)
    except ArtifactError as error:
        first, why = result.steps[0], result.stopped or "every step was taken"
        raise ArtifactError(
            f"training changed nothing in {len(result.steps)} steps ({why}; the first had "
            f"{', '.join(f'{k} {v:.3g}' for k, v in first.terms.items())}). Use a higher "
            "learning rate or more steps."
        ) from error


def _advise(settings: UnlearningSettings) -> str:
    """What can be done about a training that ran away, of what its objective reads."""
    unused = settings.unused()
    levers = ["a lower learning rate"]
    if "ceiling" not in unused:
        levers.append("a lower ceiling")
    if settings.recipe.held:
        levers.append("a higher w_norm")
    raise_it = "" if "runaway_limit" in unused else "; or raise runaway_limit if it may go that far"
    return f"Use {' or '.join(levers)}, and another folder{raise_it}."


def _training_facts(
    name: str, result: TrainingResult, watched: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the training cost, how safe the model was by then, and how it went."""
    rows = [step.record() for step in result.steps]
    found = watched[-1].get("suites", {}) if watched else {}
    # The watched rate is the highest of these.
    suites = ", ".join(suite for suite, facts in found.items() if facts["kind"] == "harmful")
    return {
        **training_record(name, rows, watched, suite=suites or None),
        "before_after": _before_after(watched),
        **describe_result(result),
    }


def _before_after(watched: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The watched suites before and after the training, as a table."""
    # A training that was first watched when it went on has no "before".
    if len(watched) < 2 or watched[0]["step"] != 0:
        return []
    first, last = watched[0].get("suites", {}), watched[-1].get("suites", {})
    return [
        {
            "suite": name,
            "kind": before["kind"],
            "num_samples": before["num_samples"],
            "before": _rates(before),
            "after": _rates(last[name]),
        }
        for name, before in first.items()
        if name in last
    ]


def _rates(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A watched suite at one time: "asr" is the share that complied, harmful or not."""
    names = ("low", "high", "refusal_rate", "incoherent_rate", "num_scored")
    return {"complied_rate": facts["asr"], **{name: facts.get(name) for name in names}}
