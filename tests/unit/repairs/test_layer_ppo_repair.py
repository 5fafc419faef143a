"""Layer-wise PPO as a repair: what a fit leaves, how it goes on, what an artifact does."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_ppo_data import LOOP, SETTINGS, letters, prompts, reward, trained
from mild_samples import FAMILIES, request, sample

from vlmend.errors import ArtifactError, ConfigError, DataError, RunError
from vlmend.evals.arms import Arm, Trained
from vlmend.evals.coherence import measure_coherence
from vlmend.evals.run import EvalSettings, Evaluation
from vlmend.hooks.exits import VisionReplay, exit_vision_at
from vlmend.models.load import load_vlm
from vlmend.models.vlm import GenerationSettings, Vlm
from vlmend.repairs.layer_ppo.experience import RewardScale
from vlmend.repairs.layer_ppo.objective import LayerPPOObjective
from vlmend.repairs.layer_ppo.repair import LayerPPO, Reward
from vlmend.repairs.layer_ppo.settings import Adapters, LayerPPOSettings
from vlmend.repairs.layer_ppo.watch_rule import WatchRule
from vlmend.repairs.merge import save_merged
from vlmend.repairs.protocol import Fitted, load_repair, require_unseen
from vlmend.runs import JsonLines, RunFolder, read_json
from vlmend.testing import save_tiny_vlm, tiny_vlm
from vlmend.training.adapter_loading import probe_logits, put_on
from vlmend.types import user

GREEDY = GenerationSettings(max_new_tokens=6)
STRONG = replace(LOOP, lr=0.2)
PER_EXIT = replace(SETTINGS, adapters="per-exit", exits=(1, 3))


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def shared(vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> tuple[LayerPPO, Path]:
    folder = tmp_path_factory.mktemp("shared")
    repair = trained(vlm, folder, loop=STRONG)
    return repair, repair.save(folder)


@pytest.fixture(scope="module")
def per_exit(vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> tuple[LayerPPO, Path]:
    folder = tmp_path_factory.mktemp("per-exit")
    repair = trained(vlm, folder, PER_EXIT, replace(STRONG, steps=1))
    return repair, repair.save(folder)


def says(vlm: Vlm, exit_layer: int | None = None) -> list[tuple[int, ...]]:
    """Greedy answers to two requests, at an exit."""
    asked = [request(7), request(8)]
    if exit_layer is None:
        return [answer.token_ids for answer in vlm.generate(asked, GREEDY)]
    with exit_vision_at(vlm, exit_layer):
        return [answer.token_ids for answer in vlm.generate(asked, GREEDY)]


def untimed(path: Path) -> list[dict[str, Any]]:
    costs = ("seconds", "peak_memory_bytes", "flops", "counted")
    return [{k: v for k, v in row.items() if k not in costs} for row in JsonLines(path).read()]


# ---- what a fit leaves


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("algorithm", ["ppo", "sft"])
def test_a_fit_changes_the_adapter_and_nothing_else(
    family: str, algorithm: Any, tmp_path: Path
) -> None:
    vlm = tiny_vlm(family)
    before = {name: tensor.clone() for name, tensor in vlm.model.state_dict().items()}
    logits = probe_logits(vlm)
    settings = replace(SETTINGS, algorithm=algorithm)
    repair = trained(vlm, tmp_path, settings, replace(LOOP, steps=1))
    after = vlm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(probe_logits(vlm), logits)
    assert (vlm.conditions, vlm.middlewares, vlm.vision_exit) == ((), (), None)
    with repair.apply(vlm):
        assert not torch.equal(probe_logits(vlm), logits)
        assert vlm.conditions == (repair.condition,)
    assert torch.equal(probe_logits(vlm), logits)


def test_vlmend_json_says_what_it_was_trained_on_and_what_it_cost(
    vlm: Vlm, shared: tuple[LayerPPO, Path]
) -> None:
    repair, folder = shared
    record = read_json(folder / "vlmend.json")
    assert record["kind"] == "layer-ppo"
    assert LayerPPOSettings.from_record(record["settings"]) == SETTINGS
    assert "kl_estimator" not in record["settings"]
    assert record["exits"] == list(vlm.distinct_exits)
    assert record["reward"] == "letters"
    assert record["reward_scale"] == {"mean": 0.0, "deviation": 1.0}
    assert record["weights_sha256"] == vlm.weights_sha256
    assert set(record["items"]) == {"harmful/0", "harmful/1", "benign/0", "benign/1"}
    assert {role: facts["count"] for role, facts in record["data"].items()} == {
        "harmful": 2,
        "benign": 2,
    }
    ledger = record["ledger"]
    assert (ledger["steps"], ledger["images"]) == (2, 2 * 4)
    assert min(ledger["tokens"], ledger["flops"], ledger["seconds"]) > 0
    assert record["last_terms"].keys() == record["first_terms"].keys()
    assert {"kl", "reward_benign", "explained_variance"} <= record["last_terms"].keys()
    assert isinstance(repair, Fitted)
    assert isinstance(repair, Trained)
    json.dumps(repair.training_record(), allow_nan=False)
    with pytest.raises(ConfigError, match="was fitted on items that are to be measured"):
        require_unseen(repair, [sample("x", "harmful", prompts("harmful")[0].messages)])


def test_the_seed_decides_a_run(vlm: Vlm, tmp_path: Path) -> None:
    prints: list[str] = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        loop = replace(LOOP, seed=seed)
        prints.append(trained(vlm, tmp_path / name, loop=loop).fingerprint)
    rows = [untimed(tmp_path / n / "training/steps.jsonl") for n in ("one", "again", "other")]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]
    assert prints[0] == prints[1] != prints[2]


def test_another_training_in_the_folder_is_refused(vlm: Vlm, tmp_path: Path) -> None:
    loop = replace(LOOP, steps=1)
    trained(vlm, tmp_path, loop=loop)
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        (r"settings\.clip", {"settings": replace(SETTINGS, clip=0.1)}),
        ("reward: letters then", {"reward": replace(reward(), name="other")}),
        (r"reward_scale\.mean", {"reward": replace(reward(), scale=RewardScale(mean=1.0))}),
        (r"held_out", {"held_out": {"harmful": prompts("held-out", 1)}}),
    )
    for words, more in cases:
        with pytest.raises(RunError, match=words):
            trained(vlm, tmp_path, loop=loop, **more)
    assert vlm.conditions == ()


# ---- going on


def interrupting(monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> None:
    """Ctrl-C comes as a method of the objective is called for the n-th time."""
    real = getattr(LayerPPOObjective, name)
    calls = 0

    def interrupted(self: LayerPPOObjective, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(LayerPPOObjective, name, interrupted)


ADAPTIVE = replace(
    SETTINGS,
    kl_control="adaptive",
    kl_target=0.5,
    kl_horizon=20.0,
    target_kl=9.0,
    ptx_coefficient=0.5,
)


@pytest.fixture(scope="module")
def whole(vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> tuple[LayerPPO, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return going_on(vlm, folder), folder


def going_on(vlm: Vlm, folder: Path) -> LayerPPO:
    loop = replace(LOOP, steps=3, save_every_s=0)
    words = [replace(e, messages=user(e.messages[0].text)) for e in prompts("words", 2)]
    given = [*prompts("given"), *words]
    held_out = {"harmful": prompts("held-out", 2)}
    return trained(vlm, folder, ADAPTIVE, loop, given=given, held_out=held_out, watch_every=1)


@pytest.mark.parametrize(
    ("name", "at"),
    # Four forwards a step: between updates, in the first step and in the last one.
    [("prepare", 1), ("prepare", 3), ("forward", 2), ("forward", 6), ("forward", 12)],
)
def test_ctrl_c_in_a_fit_goes_on_to_the_bit(
    vlm: Vlm,
    whole: tuple[LayerPPO, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    at: int,
) -> None:
    repair, folder = whole
    with monkeypatch.context() as patch:
        interrupting(patch, name, at)
        with pytest.raises(KeyboardInterrupt):
            going_on(vlm, tmp_path)
    assert vlm.conditions == ()
    again = going_on(vlm, tmp_path)
    for file in ("steps.jsonl", "watch.jsonl"):
        assert untimed(tmp_path / "training" / file) == untimed(folder / "training" / file)
    assert again.fingerprint == repair.fingerprint
    terms = [row["terms"] for row in untimed(folder / "training/steps.jsonl")]
    assert len({t["kl_coefficient"] for t in terms}) == 3, "the price of divergence did not change"
    assert len({t["nll_given"] for t in terms}) == 3, "no given answer was learnt"


def test_ctrl_c_in_the_watch_goes_on_to_the_bit(
    vlm: Vlm, whole: tuple[LayerPPO, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlmend.repairs.layer_ppo.repair as module

    repair, folder = whole
    real = module.check_held_out

    def interrupted(step: int, *args: Any) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return real(step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "check_held_out", interrupted)
        with pytest.raises(KeyboardInterrupt):
            going_on(vlm, tmp_path)
    assert len(untimed(tmp_path / "training/watch.jsonl")) == 2
    again = going_on(vlm, tmp_path)
    for file in ("steps.jsonl", "watch.jsonl"):
        assert untimed(tmp_path / "training" / file) == untimed(folder / "training" / file)
    assert again.fingerprint == repair.fingerprint


def test_the_checkpoint_of_the_best_check_is_kept(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlmend.repairs.layer_ppo.repair as module

    real = module.check_held_out
    merits = {0: 0.0, 1: 3.0, 2: 1.0}

    def ranked(step: int, *args: Any) -> Any:
        found = real(step, *args)
        return replace(found, reward_harmful=merits[step], refusal_benign=None, incoherent=0.0)

    monkeypatch.setattr(module, "check_held_out", ranked)
    given = {"held_out": {"harmful": prompts("held-out", 2)}, "watch_every": 1}
    best = trained(vlm, tmp_path / "best", **given)
    assert best.facts_["kept_step"] == 1
    assert "step 1: reward on held-out" in best.facts_["choice"]
    assert [check["step"] for check in best.facts_["checks"]] == [0, 1, 2]
    assert set(best.fitted_items) >= {"held-out/0", "held-out/1"}, "it was chosen by them"
    # Step 1 of 2, at a constant rate, is what a training of one step ends with.
    one = trained(vlm, tmp_path / "one", loop=replace(LOOP, steps=1))
    assert best.fingerprint == one.fingerprint
    merits[2] = 5.0
    last = trained(vlm, tmp_path / "last", **given)
    assert last.facts_["kept_step"] == 2
    assert last.fingerprint != best.fingerprint


def test_answers_are_read_by_the_model_without_the_adapter(vlm: Vlm, tmp_path: Path) -> None:
    held_out = {"benign": prompts("held-out", 3)}
    settings = replace(SETTINGS, exits=(vlm.default_exit,))
    repair = trained(vlm, tmp_path, settings, STRONG, held_out=held_out, watch_every=1)
    start, *later = repair.facts_["checks"]
    asked = [e.messages for e in held_out["benign"]]

    def median(answers: list[str]) -> float:
        found = measure_coherence(vlm, asked, answers)
        return statistics.median(entry.perplexity or 0.0 for entry in found)

    greedy = GenerationSettings(settings.max_new_tokens)
    with repair.apply(vlm):
        mended = [answer.text for answer in vlm.generate(asked, greedy)]
        assert median(mended) != pytest.approx(later[-1]["perplexity"])
    assert repair.facts_["kept_step"] in [check["step"] for check in later]
    kept = next(c for c in later if c["step"] == repair.facts_["kept_step"])
    assert median(mended) == pytest.approx(kept["perplexity"], rel=1e-4)
    base = [answer.text for answer in vlm.generate(asked, greedy)]
    assert median(base) == pytest.approx(start["perplexity"], rel=1e-4)


@pytest.mark.parametrize("adapters", ["shared", "per-exit"])
def test_benign_prompts_are_watched_where_the_model_is_used(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapters: Adapters
) -> None:
    """Harmful ones at the exits that are trained at."""
    import vlmend.repairs.layer_ppo.repair as module

    real = module.check_held_out
    seen: list[dict[str, set[int]]] = []

    def noting(step: int, held_out: Any, exits: dict[str, list[int]], *more: Any) -> Any:
        seen.append({stream: set(found) for stream, found in exits.items()})
        return real(step, held_out, exits, *more)

    monkeypatch.setattr(module, "check_held_out", noting)
    settings = replace(SETTINGS, exits=(0, 1), adapters=adapters)
    held_out = {"harmful": prompts("h", 9), "benign": prompts("b", 2)}
    trained(vlm, tmp_path, settings, replace(LOOP, steps=1), held_out=held_out)
    if adapters == "shared":
        assert seen == [{"harmful": {0, 1}, "benign": {vlm.default_exit}}] * 2
    else:
        assert seen == [{"harmful": {e}, "benign": {e}} for e in (0, 0, 1, 1)]


@pytest.mark.parametrize("killed_after", [None, 2])
def test_a_collapse_ends_the_training_and_the_step_before_it_is_kept(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int | None
) -> None:
    """No check is within the rule: over-refusal rises at once, and from step 2 on too far."""
    import vlmend.repairs.layer_ppo.repair as module

    real = module.check_held_out
    refused = {0: 0.0, 1: 0.1, 2: 0.9, 3: 0.9}

    def spoilt(step: int, *args: Any) -> Any:
        found = replace(real(step, *args), refusal_benign=refused[step], incoherent=0.0)
        return replace(found, reward_harmful=float(step), reward_benign=0.0, reward_std=9.0)

    monkeypatch.setattr(module, "check_held_out", spoilt)
    given = {"held_out": {"harmful": prompts("held-out", 2)}, "watch_every": 1}

    def killing(_what: str, done: int, _total: int) -> None:
        if done == killed_after:
            raise KeyboardInterrupt

    if killed_after is not None:
        with pytest.raises(KeyboardInterrupt):
            trained(vlm, tmp_path, loop=replace(LOOP, steps=4), progress=killing, **given)
    repair = trained(vlm, tmp_path, loop=replace(LOOP, steps=4), **given)
    assert repair.facts_["stopped"].startswith("the policy collapses on held-out prompts")
    assert repair.facts_["ledger"]["steps"] == 3
    assert repair.facts_["kept_step"] == 1
    assert "the 1 of 3 checks that break no limit of a collapse" in repair.facts_["choice"]
    one = trained(vlm, tmp_path / "one", loop=replace(LOOP, steps=1))
    assert repair.fingerprint == one.fingerprint


def test_of_collapsed_checks_the_adapter_of_the_least_spoilt_is_kept(
    vlm: Vlm, tmp_path: Path
) -> None:
    """Held-out answers are cut to nothing but blanks: the watch says stop."""
    import vlmend.repairs.layer_ppo.repair as module

    real = module._Training._answer
    calls: list[int] = []

    def silent(self: Any, examples: Any, exits: Any) -> list[str]:
        calls.append(len(examples))
        return real(self, examples, exits) if len(calls) == 1 else [""] * len(examples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Training, "_answer", silent)
        repair = trained(
            vlm,
            tmp_path,
            loop=replace(LOOP, steps=4),
            held_out={"harmful": prompts("held-out", 2)},
            watch_every=1,
        )
    assert repair.facts_["stopped"].startswith("the policy collapses on held-out prompts")
    assert repair.facts_["ledger"]["steps"] == 2
    assert repair.facts_["kept_step"] == 1, "the earlier of equals"
    assert "all of 2 checks break a limit of a collapse" in repair.facts_["choice"]
    one = trained(vlm, tmp_path / "one", loop=replace(LOOP, steps=1))
    assert repair.fingerprint == one.fingerprint


@pytest.mark.parametrize("adapters", ["shared", "per-exit"])
def test_the_decoders_own_weights_can_train_too(adapters: Any, tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    before, logits = vlm.weights_sha256, probe_logits(vlm)
    full = replace(PER_EXIT, adapters=adapters, adapter="full", layers=(1,))
    repair = trained(vlm, tmp_path, full, replace(STRONG, steps=1))
    assert repair.name.startswith("layer-ppo(exits=1,3, ")
    assert "adapter=full, layers=1" in repair.name
    assert "rank" not in repair.name
    assert "modules" not in repair.name
    tensors = {n for weights in repair.adapters_.values() for n in weights.tensors}
    assert tensors
    assert all(f"{vlm.spec.decoder_layers}.1." in name for name in tensors)
    assert vlm.weights_sha256 == before
    assert torch.equal(probe_logits(vlm), logits)
    loaded = load_repair(repair.save(tmp_path), vlm)
    for exit_layer in (None, 1, 3):
        with repair.apply(vlm):
            expected = says(vlm, exit_layer)
        with loaded.apply(vlm):
            assert says(vlm, exit_layer) == expected
    with repair.apply(vlm):
        changed = says(vlm, 1)
    assert changed != says(vlm, 1)


def test_full_weights_of_a_rounded_model_are_refused(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava", dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="full weights train in float32 only"):
        trained(vlm, tmp_path, replace(SETTINGS, adapter="full"))


def test_a_training_does_not_go_on_under_another_rule(vlm: Vlm, tmp_path: Path) -> None:
    """The best adapter so far is on disk by the rule of before."""
    trained(vlm, tmp_path, loop=replace(LOOP, steps=1))
    with pytest.raises(RunError, match="rule"):
        trained(vlm, tmp_path, loop=replace(LOOP, steps=1), rule=WatchRule(patience=5))


# ---- the artifact


def test_an_artifact_answers_as_what_was_trained(vlm: Vlm, shared: tuple[LayerPPO, Path]) -> None:
    repair, folder = shared
    loaded = load_repair(folder, vlm)
    assert isinstance(loaded, LayerPPO)
    assert (loaded.fingerprint, loaded.name) == (repair.fingerprint, repair.name)
    assert (loaded.settings, loaded.loop) == (repair.settings, repair.loop)
    for exit_layer in (None, 0, 3):
        base = says(vlm, exit_layer)
        with repair.apply(vlm):
            expected = says(vlm, exit_layer)
        with loaded.apply(vlm):
            assert says(vlm, exit_layer) == expected
        assert expected != base


def test_settings_of_early_versions_are_read() -> None:
    """They held an estimator of the divergence, which PPO's reward has no choice of any more."""
    early = {**SETTINGS.record(), "kl_estimator": "k1"}
    assert LayerPPOSettings.from_record(early) == SETTINGS
    grpo = {**early, "algorithm": "grpo", "kl_estimator": "k3"}
    assert LayerPPOSettings.from_record(grpo).algorithm == "grpo"
    with pytest.raises(ConfigError, match=r"kl_estimator='k3' \(allowed: 'k1'\)"):
        LayerPPOSettings.from_record({**early, "kl_estimator": "k3"})


def test_an_adapter_for_each_exit_answers_at_its_own(
    vlm: Vlm, per_exit: tuple[LayerPPO, Path]
) -> None:
    repair, folder = per_exit
    assert {p.name for p in folder.iterdir()} == {"exit-1", "exit-3", "training", "vlmend.json"}
    loaded = load_repair(folder, vlm)
    assert isinstance(loaded, LayerPPO)
    assert loaded.fingerprint == repair.fingerprint
    own: dict[int, list[tuple[int, ...]]] = {}
    for exit_layer in (1, 3):
        weights = repair.adapters_[exit_layer]
        with put_on(vlm, weights, "by hand"):
            own[exit_layer] = says(vlm, exit_layer)
    base = {exit_layer: says(vlm, exit_layer) for exit_layer in (None, 0, 1, 3)}
    for applied in (repair, loaded):
        with applied.apply(vlm):
            assert vlm.conditions == (repair.condition,)
            assert {e: says(vlm, e) for e in (None, 0, 1, 3)} == {**base, **own}
    assert own[1] != base[1]
    assert own[3] != base[3]
    with put_on(vlm, repair.adapters_[3], "by hand"):
        assert says(vlm, 1) != own[1], "the adapters are the same"
    assert (vlm.conditions, vlm.middlewares) == ((), ())


def test_the_adapter_of_the_default_exit_answers_without_an_exit(vlm: Vlm, tmp_path: Path) -> None:
    """And at exits that equal it, such as the last one, under whatever number it was given."""
    last = vlm.num_vision_blocks
    settings = replace(PER_EXIT, exits=(last,))
    repair = trained(vlm, tmp_path, settings, replace(STRONG, steps=1))
    assert set(repair.adapters_) == {vlm.default_exit}
    with put_on(vlm, repair.adapters_[vlm.default_exit], "by hand"):
        own = says(vlm)
    assert own != says(vlm)
    with repair.apply(vlm):
        assert says(vlm) == says(vlm, vlm.default_exit) == says(vlm, last) == own


def test_switching_does_not_run_the_encoder_again(
    vlm: Vlm, per_exit: tuple[LayerPPO, Path]
) -> None:
    repair, _ = per_exit
    alone = {e: says(vlm, e) for e in (0, 1, 3)}
    with repair.apply(vlm):
        wanted = {e: says(vlm, e) for e in (0, 1, 3)}
        with VisionReplay(vlm) as replay:
            found: dict[int, Any] = {}
            for replay.exit in (0, 1, 3):
                assert replay.exit is not None
                found[replay.exit] = says(vlm)
    assert found == wanted != alone
    assert replay.records == 1
    assert max(replay.block_runs) == 1


def test_exits_of_a_repaired_model_are_audited(
    vlm: Vlm, per_exit: tuple[LayerPPO, Path], shared: tuple[LayerPPO, Path], tmp_path: Path
) -> None:
    samples = [sample(f"t{i}", "harmful", request(20 + i)) for i in range(2)]
    exits: list[int | None] = [None, 1, 2]
    texts: dict[tuple[str, int | None], list[str]] = {}
    arms = [Arm("base"), Arm("each", (per_exit[0],)), Arm("shared", (shared[0],))]
    with RunFolder.open(tmp_path, {}, {}, resume=False) as run:
        evaluation = Evaluation(vlm, run, EvalSettings(GREEDY))
        for arm in arms:
            cells = evaluation.answer(arm, "mild", samples, exits)
            for exit_layer, cell in zip(exits, cells, strict=True):
                texts[arm.name, exit_layer] = [r.text for r in cell.responses]
    for exit_layer in exits:
        same = texts["each", exit_layer] == texts["base", exit_layer]
        assert same == (exit_layer != 1), exit_layer
        assert texts["shared", exit_layer] != texts["base", exit_layer]
    assert len({r["id"] for r in JsonLines(tmp_path / "responses.jsonl").read()}) == 2 * 3 * 3


def test_a_shared_adapter_can_be_merged(tmp_path: Path) -> None:
    vlm = load_vlm(save_tiny_vlm("llava", tmp_path / "base"))
    repair = trained(vlm, tmp_path, loop=replace(STRONG, steps=1))
    assert repair.weights_ is not None
    assert save_merged(vlm, repair.weights_, tmp_path / "merged") < 1e-5
    with repair.apply(vlm):
        expected = says(vlm, 2)
    assert says(load_vlm(tmp_path / "merged"), 2) == expected != says(vlm, 2)


def test_damaged_and_foreign_artifacts_are_refused(
    vlm: Vlm, per_exit: tuple[LayerPPO, Path], tmp_path: Path
) -> None:
    import shutil

    _, folder = per_exit
    with pytest.raises(ArtifactError, match="was trained on"):
        load_repair(folder, tiny_vlm("llava", seed=1))

    def changed(name: str, change: Mapping[str, Any] | None = None) -> Path:
        place = tmp_path / name
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns("training"))
        if change is not None:
            record = read_json(place / "vlmend.json")
            (place / "vlmend.json").write_text(json.dumps({**record, **change}))
        return place

    lacking = changed("lacking")
    shutil.rmtree(lacking / "exit-3")
    with pytest.raises(ArtifactError, match="its tensors are not those"):
        load_repair(lacking, vlm)
    renamed = changed("renamed")
    (renamed / "exit-3").rename(renamed / "exit-2")
    with pytest.raises(ArtifactError, match="its tensors are not those"):
        load_repair(renamed, vlm)
    settings = read_json(folder / "vlmend.json")["settings"]
    for name, change, words in (
        ("setting", {"settings": {**settings, "clop": 1}}, "unknown layer-ppo settings: clop"),
        ("range", {"settings": {**settings, "clip": 2}}, "clip=2"),
        ("schema", {"schema": 99}, "schema 99"),
        ("items", {"items": []}, "'items' must map ids"),
    ):
        with pytest.raises(ArtifactError, match=words):
            load_repair(changed(name, change), vlm)
    with pytest.raises(ArtifactError, match="never trained"):
        LayerPPO().save(tmp_path / "none")
    assert vlm.conditions == ()


# ---- what is refused before anything runs


def test_bad_data_is_found_before_anything_runs(vlm: Vlm, tmp_path: Path) -> None:
    harmful, benign = prompts("harmful", 2), prompts("benign", 2)
    blind = [harmful[0], replace(harmful[1], messages=user("Count to three."))]
    sft = replace(SETTINGS, algorithm="sft")
    ptx = replace(SETTINGS, ptx_coefficient=0.5)
    unanswered = [replace(benign[0], answer=None), benign[1]]
    for settings, given, more, words in (
        (SETTINGS, (blind, benign), {}, r"1 of 2 prompts have no picture.*'harmful/1'"),
        (SETTINGS, (harmful, [replace(harmful[0], id="b")]), {}, "asks what the harmful"),
        (SETTINGS, (harmful, benign), {"held_out": {"harmful": harmful[:1]}}, "harmful/0"),
        (sft, (harmful, unanswered), {}, r"1 of 2 benign prompts.*'benign/0'"),
        (ptx, (harmful, unanswered), {}, r"1 of 2 benign prompts.*'benign/0'"),
        (SETTINGS, ([], benign), {}, "no"),
    ):
        with pytest.raises(DataError, match=words):
            LayerPPO(settings, LOOP).fit(
                vlm, *given, folder=tmp_path / "training", **{"reward": reward(), **more}
            )
    for settings, words in (
        (replace(SETTINGS, exits=(9,)), "9"),
        (replace(SETTINGS, modules=("q_prof",)), "q_prof"),
        (replace(SETTINGS, layers=(99,)), "99"),
    ):
        with pytest.raises(ConfigError, match=words):
            trained(vlm, tmp_path, settings)
    with pytest.raises(ConfigError, match=r"ptx_coefficient is 0\.5.*nor benign prompts"):
        LayerPPO(ptx, LOOP).fit(vlm, harmful, folder=tmp_path / "training", reward=reward())
    own = [replace(e, id=f"own/{e.id}") for e in prompts("words", 2)]
    for settings, given, error, words in (
        (SETTINGS, own, ConfigError, "2 given answers would be ignored: ppo with a ptx"),
        (sft, own, ConfigError, "2 given answers would be ignored: sft"),
        (ptx, [replace(own[0], answer=None)], DataError, "1 of 1 given prompts have none"),
        (ptx, [replace(own[0], messages=harmful[0].messages)], DataError, "asks what the harmful"),
        (ptx, [own[0], own[0]], DataError, "own/words/0"),
    ):
        with pytest.raises(error, match=words):
            LayerPPO(settings, LOOP).fit(
                vlm,
                harmful,
                benign,
                folder=tmp_path / "training",
                given=given,
                reward=reward(),
            )
    assert (vlm.conditions, list(tmp_path.rglob("steps.jsonl"))) == ((), [])


def test_a_changed_model_is_not_trained_on(
    vlm: Vlm, per_exit: tuple[LayerPPO, Path], tmp_path: Path
) -> None:
    with exit_vision_at(vlm, 2), pytest.raises(ConfigError, match="at an exit already"):
        trained(vlm, tmp_path)
    with per_exit[0].apply(vlm), pytest.raises(ConfigError, match="repaired or at an exit"):
        trained(vlm, tmp_path)


def test_a_reward_that_tells_nothing_apart_teaches_nothing(vlm: Vlm, tmp_path: Path) -> None:
    settings = replace(SETTINGS, algorithm="grpo", samples=2, cut_penalty=0.0, kl_coefficient=0.0)
    given = Reward(reward(lambda _request, _answer: 1.0).scorer)
    with pytest.raises(ArtifactError, match="all answers get the same score"):
        trained(vlm, tmp_path, settings, replace(LOOP, steps=1), reward=given)
    assert vlm.conditions == ()
    assert letters("", "aB") == 2.0
