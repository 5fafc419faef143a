"""Layer-wise PPO as a repair: an adapter trained on answers that the model gave at vision exits.

One adapter for all exits, or one for each; the model at an exit that has none is the base model.
What an adapter for each exit does is switched by the exit that the model is at when it answers;
activations that are recorded without an answer are those of the base model.

The adapter that is kept is that of the best check on held-out prompts, by a declared rule
(`vlmend.repairs.layer_ppo.watch`); without held-out prompts, that of the last step.

Reference: Bachu et al., Layer-wise Alignment (ICML 2025, arXiv 2411.04291).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Self

import torch
from torch import nn

from vlmend.errors import ArtifactError, ConfigError, DataError
from vlmend.evals.coherence import measure_coherence
from vlmend.evals.run import conversation_sha256
from vlmend.evals.scorers import AnswerScorer
from vlmend.models.generation import GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.repairs.adapter_artifact import Weights
from vlmend.repairs.adapter_repair import (
    AdapterRepair,
    count_every,
    describe_result,
    note_model,
)
from vlmend.repairs.layer_ppo.experience import RewardScale
from vlmend.repairs.layer_ppo.objective import LayerPPOObjective, resolve_exits, used_exits
from vlmend.repairs.layer_ppo.settings import (
    BENIGN,
    GIVEN,
    HARMFUL,
    LayerPPOSettings,
    name_layer_ppo,
)
from vlmend.repairs.layer_ppo.switch import ExitSwitch
from vlmend.repairs.layer_ppo.watch import (
    HeldOutCheck,
    WatchRule,
    best_check,
    check_held_out,
    collapse_reason,
    describe_choice,
)
from vlmend.runs import JsonLines
from vlmend.suites.registry import check_ids
from vlmend.training.adapter_files import read_adapter, save_adapter
from vlmend.training.adapter_loading import require_effect
from vlmend.training.adapters import (
    Adapter,
    AdapterWeights,
    LoraSettings,
    add_full,
    add_lora,
    without_adapter,
)
from vlmend.training.cost_curve import training_record
from vlmend.training.data_facts import describe_data, name_data
from vlmend.training.examples import Example
from vlmend.training.loop import LoopSettings, Progress, TrainingResult, run_loop
from vlmend.training.meter import Meter
from vlmend.training.ppo.rollouts import Prompt, sample_answers

Streams = Mapping[str, Sequence[Example]]

_BEST = "best"
"""Folder of the best adapter so far, beside the checkpoint."""

_NO_STREAMS: Streams = {}


@dataclass(frozen=True)
class Reward:
    """What scores answers.

    Attributes:
        scorer: The reward model.
        scale: What standardises its scores.
        name: What to call it in records.
    """

    scorer: AnswerScorer
    scale: RewardScale = field(default_factory=RewardScale)
    name: str = "reward"


@dataclass
class LayerPPO(AdapterRepair):
    """Layer-wise PPO and its twins.

    Attributes:
        settings: What is trained, at which exits, and how.
        loop: How it is optimised; a step is a round of sampling with its updates.
        rule: When to stop, and which checkpoint to keep.
        adapters_: The trained adapters by exit, see `AdapterRepair`.
        facts_: What it was trained on, what that cost, and what it belongs to.
    """

    kind: ClassVar[str] = "layer-ppo"
    command: ClassVar[str] = "vlmend repair layer-ppo"

    settings: LayerPPOSettings = field(default_factory=LayerPPOSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    rule: WatchRule = field(default_factory=WatchRule)
    adapters_: dict[int | None, AdapterWeights] = field(
        default_factory=dict[int | None, AdapterWeights], init=False
    )
    facts_: dict[str, Any] = field(default_factory=dict[str, Any], init=False)

    @property
    def name(self) -> str:
        """The algorithm with its exits, and the settings that differ from the default."""
        return name_layer_ppo(self.settings, seed=self.loop.seed)

    @property
    def objective(self) -> str:
        """Name of what was optimised."""
        return self.settings.algorithm

    def settings_record(self) -> dict[str, Any]:
        """Its settings as JSON."""
        return self.settings.record()

    @classmethod
    def from_records(cls, settings: dict[str, Any], loop: LoopSettings) -> Self:
        """See `AdapterRepair.from_records`."""
        return cls(LayerPPOSettings.from_record(settings), loop)

    # ---- training

    def fit(
        self,
        vlm: Vlm,
        harmful: Sequence[Example],
        benign: Sequence[Example] = (),
        *,
        folder: Path,
        given: Sequence[Example] = (),
        reward: Reward | None = None,
        held_out: Streams = _NO_STREAMS,
        watch_every: int = 0,
        about: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Train; the same call goes on where an interrupted one stopped.

        Args:
            vlm: The model, without repairs applied.
            harmful: Prompts with pictures; with targets for sft.
            benign: Prompts with pictures that are to be answered; with answers for sft.
            folder: Where checkpoint and records of the training are.
            given: Examples with answers, with pictures or without, whose likelihood is part of
                the loss (`ptx_coefficient`); without any, the benign prompts are.
            reward: The reward model; sft needs none, but its held-out answers can be scored.
            held_out: Prompts by stream ("harmful", "benign") that are not trained on: they
                decide when to stop, and which checkpoint is kept. None: the last one is.
            watch_every: Steps between two checks of these; 0 for the start and the end alone.
            about: More facts about the data by role, such as names and licences.
            progress: Called after each step as progress(what, done, total).

        Raises:
            ConfigError: Settings that do not fit the model or the data; or the model is changed
                already (a repair is applied).
            DataError: No prompts, one without a picture, one twice or held out as well; for sft,
                one without an answer.
            ArtifactError: The training changed nothing.
            RunError: As `run_loop`; or a tensor that does not train changed.
        """
        every = {HARMFUL: harmful, BENIGN: benign, GIVEN: given}
        streams = {name: found for name, found in every.items() if found or name == HARMFUL}
        exits = resolve_exits(vlm, self.settings)
        items = self.check(vlm, streams, held_out)
        data = describe_data(streams)
        before = note_model(vlm)
        config = {
            "settings": self.settings.record(),
            "weights_sha256": before["weights_sha256"],
            "data": {role: facts["sha256"] for role, facts in data.items()},
            "held_out": {role: f["sha256"] for role, f in describe_data(held_out).items()},
            "reward": None if reward is None else reward.name,
            "reward_scale": None if reward is None else asdict(reward.scale),
            "rule": asdict(self.rule),  # by which the best adapter so far is on disk
        }
        rounds = {None: exits} if self.settings.adapters == "shared" else {e: (e,) for e in exits}
        adapters: dict[int | None, AdapterWeights] = {}
        found: list[dict[str, Any]] = []
        for exit_layer, at in rounds.items():
            place = folder if exit_layer is None else folder / f"exit-{exit_layer}"
            training = _Training(self, vlm, reward, at, place, held_out)
            adapters[exit_layer], facts = training.run(
                streams, {**config, "exits": list(at)}, watch_every, progress
            )
            found.append(facts)
        facts = {
            "modality": name_data(streams),
            "exits": list(exits),
            "rule": asdict(self.rule),
            "reward": None if reward is None else reward.name,
            "reward_scale": None if reward is None else asdict(reward.scale),
            "data": {role: data[role] | dict((about or {}).get(role, {})) for role in data},
            **_join_facts(self.name, found),
        }
        self.remember(vlm, adapters, before, items, facts)
        return self

    def check(self, vlm: Vlm, streams: Streams, held_out: Streams) -> Mapping[str, str]:
        """Find out all that can be wrong with a fit before the model runs; see `fit`.

        Returns:
            Example id -> prompt hash of all prompts, held-out ones too: they were chosen by.
        """
        self.require_plain_model(vlm)
        asked = [examples for name, examples in streams.items() if name != GIVEN]
        for examples in (*asked, *held_out.values()):
            without = [example.id for example in examples if not example.images]
            if without:
                raise DataError(
                    f"{len(without)} of {len(examples)} prompts have no picture, the first is "
                    f"{without[0]!r}. An exit of the image encoder changes nothing about them: "
                    "give prompts with pictures."
                )
        if GIVEN in streams and not self.settings.learns_given:
            raise ConfigError(
                f"{len(streams[GIVEN])} given answers would be ignored: {self.settings.algorithm} "
                f"with a ptx_coefficient of {self.settings.ptx_coefficient} does not read them. "
                "Leave them out, or use ppo with a ptx_coefficient above 0."
            )
        learnt = GIVEN if GIVEN in streams else BENIGN
        if self.settings.learns_given and learnt not in streams:
            raise ConfigError(
                f"ptx_coefficient is {self.settings.ptx_coefficient}: given answers are to be "
                "learnt, and there are neither such nor benign prompts. Give some, with answers, "
                "or a ptx_coefficient of 0."
            )
        if self.settings.algorithm == "sft":
            require_answers(streams)
        elif self.settings.learns_given:
            require_answers({learnt: streams[learnt]})
        return check_streams(streams, held_out)

    def build_objective(
        self,
        vlm: Vlm,
        reward: Reward | None,
        *,
        streams: Sequence[str] = (HARMFUL, BENIGN),
        exits: Sequence[int] | None = None,
    ) -> LayerPPOObjective:
        """Put a fresh adapter on a model, and make the objective that trains it.

        Args:
            vlm: The model.
            reward: The reward model; sft needs none.
            streams: Which streams there are.
            exits: Where prompts leave the encoder; those of the settings if None.

        Raises:
            ConfigError: A layer, module or exit that the model does not have; no reward model;
                full weights of a model that is not in float32.
        """
        settings, adapter = self.settings, self._new_adapter(vlm)
        try:
            return LayerPPOObjective(
                vlm,
                settings,
                adapter,
                None if reward is None else reward.scorer,
                exits=resolve_exits(vlm, settings) if exits is None else exits,
                streams=streams,
                scale=None if reward is None else reward.scale,
                seed=self.loop.seed,
            )
        except BaseException:
            adapter.remove()
            raise

    def _new_adapter(self, vlm: Vlm) -> Adapter:
        settings = self.settings
        if settings.adapter == "full":
            return add_full(vlm, settings.layers)
        lora = LoraSettings(settings.rank, settings.alpha, settings.layers, settings.modules)
        return add_lora(vlm, lora, seed=self.loop.seed)

    # ---- applying

    @contextmanager
    def _putting_on(self, vlm: Vlm, weights: Weights) -> Generator[None]:
        if None in weights:
            with super()._putting_on(vlm, weights):
                yield
            return
        with ExitSwitch(vlm, weights, self.condition) as switch, vlm.using(switch):
            yield


# ---- one training


@dataclass
class _Training:
    """One adapter's training: at some exits, in a folder, watched on held-out prompts."""

    repair: LayerPPO
    vlm: Vlm
    reward: Reward | None
    exits: Sequence[int]
    folder: Path
    held_out: Streams

    def run(
        self,
        streams: Streams,
        config: Mapping[str, Any],
        watch_every: int,
        progress: Progress | None,
    ) -> tuple[AdapterWeights, dict[str, Any]]:
        """Train, and choose what is kept."""
        objective = self.repair.build_objective(
            self.vlm, self.reward, streams=list(streams), exits=self.exits
        )
        with objective.adapter as adapter:
            result = run_loop(
                objective,
                streams,
                _parameters(objective),
                self.repair.loop,
                self.folder,
                meter=Meter(self.vlm.device, count_every=count_every(self.vlm)),
                config=config,
                progress=progress,
                watch=partial(self._watch, adapter) if any(self.held_out.values()) else None,
                watch_every=watch_every,
            )
            _require_learnt(objective, result)
            weights = adapter.weights()
        checks = self._checks()
        facts = self._facts(result)
        if checks:
            best = best_check(checks, self.repair.rule)
            facts |= {
                "checks": [check.record() for check in checks],
                "choice": describe_choice(checks, self.repair.rule),
                "kept_step": best.step,
            }
            if best.step != len(result.steps):
                weights = read_adapter(self.folder / _BEST)
        return weights, facts

    def _checks(self) -> list[HeldOutCheck]:
        return [HeldOutCheck.read(r) for r in JsonLines(self.folder / "watch.jsonl").read()]

    def _watch(self, adapter: Adapter, step: int) -> Mapping[str, Any]:
        """Check the held-out prompts; keep the adapter if it is the best so far."""
        scorer = None if self.reward is None else self.reward.scorer
        read = partial(self._read_perplexity, adapter)
        exits = self._held_out_exits()
        check = check_held_out(step, self.held_out, exits, self._answer, scorer, read)
        checks = [*(c for c in self._checks() if c.step < step), check]
        if step and best_check(checks, self.repair.rule) is check:
            save_adapter(self.folder / _BEST, adapter.weights(), base_model=self.vlm.name)
        stop = collapse_reason(checks, self.repair.rule)
        return check.record() | ({"stop": stop} if stop else {})

    def _held_out_exits(self) -> dict[str, list[int]]:
        """An exit for every harmful prompt; for benign ones the exit that users will ask at."""
        rng = Random(f"held-out/{self.repair.loop.seed}")
        used = used_exits(self.vlm, self.repair.settings, self.exits)
        at = {HARMFUL: list(self.exits), BENIGN: list(used)}
        return {
            stream: [rng.choice(at[stream]) for _ in examples]
            for stream, examples in self.held_out.items()
        }

    def _answer(self, examples: Sequence[Example], exits: Sequence[int]) -> list[str]:
        prompts = [Prompt("", e, exit_layer) for e, exit_layer in zip(examples, exits, strict=True)]
        greedy = GenerationSettings(self.repair.settings.max_new_tokens)
        micro = self.repair.loop.micro_batch_size or max(self.repair.loop.batch_size, 16)
        with torch.no_grad():
            found = sample_answers(self.vlm, prompts, greedy, micro=micro)
        return [rollout.text for rollout in found]

    def _read_perplexity(
        self, adapter: Adapter, examples: Sequence[Example], answers: Sequence[str]
    ) -> list[float | None]:
        with without_adapter(adapter):
            found = measure_coherence(self.vlm, [e.messages for e in examples], answers)
        return [entry.perplexity for entry in found]

    def _facts(self, result: TrainingResult) -> dict[str, Any]:
        rows = [step.record() for step in result.steps]
        return {**training_record(self.repair.name, rows), **describe_result(result)}


def _parameters(objective: LayerPPOObjective) -> dict[str, nn.Parameter]:
    """What trains: the adapter, and the value head where there is one."""
    head = objective.value_head
    own = {} if head is None else {f"value_head.{n}": p for n, p in head.named_parameters()}
    return {**objective.adapter.parameters, **own}


def check_streams(streams: Streams, held_out: Streams) -> dict[str, str]:
    """Example id -> prompt hash of all; refuses prompts that are in two places."""
    asked = {name: found for name, found in streams.items() if name != GIVEN}
    every = {**asked, **{f"held-out {name}": found for name, found in held_out.items()}}
    given = list(streams.get(GIVEN, ()))
    check_ids("training prompts", "prompt", [e for found in every.values() for e in found])
    check_ids("given answers", "example", given)
    hashes: dict[str, str] = {}
    owners: dict[str, tuple[str, str]] = {}
    for name, examples in (*every.items(), (GIVEN, given)):
        for example in examples:
            hashes[example.id] = conversation_sha256(example.messages)
            owner, first = owners.setdefault(hashes[example.id], (name, example.id))
            if owner != name and {owner, name} != {BENIGN, GIVEN}:
                raise DataError(
                    f"the {name} prompt {example.id!r} asks what the {owner} prompt {first!r} "
                    "asks. A prompt can be one of harmful, benign and held out only, and the "
                    "answer is given to a benign one or to none of them: leave it out of the other."
                )
    return hashes


def require_answers(streams: Streams) -> None:
    """Refuse prompts without the answer that is to be learnt."""
    wanted: dict[str, Callable[[Example], str | None]] = {
        HARMFUL: lambda e: e.target,
        BENIGN: lambda e: e.answer,
        GIVEN: lambda e: e.answer,
    }
    for stream, examples in streams.items():
        without = [example.id for example in examples if not wanted[stream](example)]
        if without:
            raise DataError(
                f"given answers are to be learnt, and {len(without)} of {len(examples)} {stream} "
                f"prompts have none, the first is {without[0]!r}. Give harmful data with targets "
                "(refusals) and benign data with answers; ppo with a ptx_coefficient of 0 and "
                "grpo need none."
            )


def _require_learnt(objective: LayerPPOObjective, result: TrainingResult) -> None:
    try:
        require_effect(objective.adapter)
    except ArtifactError as error:
        terms = ", ".join(f"{k} {v:.3g}" for k, v in result.steps[0].terms.items())
        raise ArtifactError(
            f"training changed nothing in {len(result.steps)} steps (the first had {terms}). If "
            "all answers get the same score there is nothing to learn from: use another reward "
            "model, a higher temperature, a higher learning rate or more steps."
        ) from error


def _join_facts(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of one training; or the costs of several added up, with each one's facts."""
    if len(found) == 1:
        return found[0]
    ledgers = [facts["ledger"] for facts in found]
    flops = [ledger["flops"] for ledger in ledgers]
    joined = {
        **ledgers[0],
        **{
            key: sum(ledger[key] for ledger in ledgers)
            for key in ("steps", "seconds", "tokens", "images")
        },
        "flops": None if None in flops else sum(flops),
        "flops_estimated": any(ledger["flops_estimated"] for ledger in ledgers),
        "peak_memory_bytes": max(ledger["peak_memory_bytes"] for ledger in ledgers),
    }
    stopped = [facts["stopped"] for facts in found if facts["stopped"]]
    return {
        "repair": name,
        "ledger": joined,
        "watch": None,
        "reached": None,
        "stopped": "; ".join(stopped) or None,
        "notes": [note for facts in found for note in facts["notes"]],
        "trainings": list(found),
    }
