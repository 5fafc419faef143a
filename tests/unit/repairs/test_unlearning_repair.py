from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mild_samples import fit_samples, reading_stream, requests, sample
from unlearning_data import LOOP, SETTINGS, Kind, forget_examples, retain_examples, trained

from vlmend._optional import require
from vlmend.errors import ArtifactError, ConfigError, DataError, ModelError, RunError
from vlmend.evals.arms import Arm, Trained
from vlmend.evals.run import EvalSettings, Evaluation, response_ids
from vlmend.hooks.record import record_layers
from vlmend.models.load import load_vlm
from vlmend.models.vlm import GenerationSettings, Vlm
from vlmend.repairs.merge import save_merged
from vlmend.repairs.protocol import Fitted, load_repair, prompt_sha256, require_unseen
from vlmend.repairs.shiftdc.repair import ShiftDC, ShiftDCSettings
from vlmend.repairs.unlearning.repair import Unlearning
from vlmend.runs import JsonLines, RunFolder, read_json
from vlmend.testing import picture, save_tiny_vlm, tiny_vlm
from vlmend.training.adapter_loading import probe_logits
from vlmend.training.adapters import AdapterWeights
from vlmend.training.loop import LoopSettings
from vlmend.types import user

SHORT = GenerationSettings(max_new_tokens=4)


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def repair(vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> Unlearning:
    """Trained once, with pictures, saved in `folder`."""
    folder = tmp_path_factory.mktemp("artifact")
    found = trained(vlm, folder, kind="mixed")
    found.save(folder)
    found.facts_["folder"] = folder
    return found


@pytest.fixture
def folder(repair: Unlearning) -> Path:
    return repair.facts_["folder"]


# ---- what a fit leaves


def test_a_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    before, logits = vlm.weights_sha256, probe_logits(vlm)
    repair = trained(vlm, tmp_path)
    assert torch.equal(probe_logits(vlm), logits)
    assert (vlm.weights_sha256, vlm.conditions) == (before, ())
    assert repair.facts_["weights_sha256"] == before
    with repair.apply(vlm):
        assert not torch.equal(probe_logits(vlm), logits)
        assert vlm.conditions == (f"{repair.name} {repair.fingerprint[:12]}",)
        assert vlm.weights_sha256 == before
    assert torch.equal(probe_logits(vlm), logits)
    assert (vlm.weights_sha256, vlm.conditions) == (before, ())


def test_the_facts_say_what_it_was_trained_on_and_what_it_cost(repair: Unlearning) -> None:
    facts = repair.facts_
    assert repair.name == "unlearn(mixed, rank=2)"
    assert facts["modality"] == "mixed"
    assert {role: d["count"] for role, d in facts["data"].items()} == {"forget": 5, "retain": 4}
    assert set(facts["items"]) == {
        *(e.id for e in forget_examples()),
        *(e.id for e in retain_examples()),
    }
    ledger = facts["ledger"]
    assert ledger["steps"] == 2
    assert ledger["tokens"] > 0
    assert ledger["images"] > 0
    assert ledger["flops"] > 0
    assert set(facts["first_terms"]) == {
        *("forget_nll", "reference_nll", "clamped_share", "match_nll", "retain_kl")
    }
    assert len(facts["frozen_sha256"]) == 64
    assert facts["versions"]["peft"] == require("peft", extra="train").__version__
    assert facts["loop"]["lr"] == LOOP.lr
    assert isinstance(repair, Fitted)
    assert isinstance(repair, Trained)
    assert repair.training_record()["ledger"] == ledger
    json.dumps(repair.training_record(), allow_nan=False)


@pytest.mark.parametrize("objective", ["unlearn", "ga", "grad-diff", "npo", "simnpo", "rmu", "sft"])
def test_every_objective_trains_on_text_and_on_pictures(objective: str, tmp_path: Path) -> None:
    vlm = tiny_vlm("qwen2_5_vl")
    settings = replace(SETTINGS, objective=objective)
    kinds: tuple[Kind, ...] = ("text", "pictures")
    for kind in kinds:
        repair = trained(vlm, tmp_path / kind, settings, replace(LOOP, steps=1), kind)
        assert repair.name.startswith(f"{objective}({kind}")
        assert bool(repair.facts_["ledger"]["images"]) == (kind == "pictures")
        with repair.apply(vlm):
            pass


def test_text_does_not_train_layers_that_only_images_reach(tmp_path: Path) -> None:
    vlm = tiny_vlm("mllama")
    weights = trained(vlm, tmp_path / "text").weights_
    assert weights is not None
    assert not [name for name in weights.tensors if "cross_attn" in name]
    weights = trained(vlm, tmp_path / "pictures", kind="pictures").weights_
    assert weights is not None
    assert [name for name in weights.tensors if "cross_attn" in name]
    with pytest.raises(ConfigError, match=r"layers \[1\].*do not run on text alone"):
        trained(vlm, tmp_path / "asked", replace(SETTINGS, layers=(0, 1)))
    assert vlm.conditions == ()


def test_layers_above_that_of_rmu_are_refused_before_training(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    settings = replace(SETTINGS, objective="rmu", rmu_layer=0, layers=(0, 1))
    with pytest.raises(ConfigError, match=r"layers \[1\] lie above layer 0.*never train"):
        trained(vlm, tmp_path / "above", settings)
    assert vlm.conditions == ()
    # The match term is at the model's end.
    with Unlearning(replace(settings, w_help=1.0)).build_objective(vlm).adapter as adapter:
        assert any(".layers.1." in name for name in adapter.parameters)


def test_full_weights_are_a_repair_too(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    before = vlm.weights_sha256
    repair = trained(vlm, tmp_path, replace(SETTINGS, adapter="full", layers=(2, 3)))
    assert repair.name == "unlearn(text, adapter=full, layers=2-3)"
    repair.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "training",
        "vlmend.json",
        "decoder.safetensors",
    }
    with repair.apply(vlm):
        logits = probe_logits(vlm)
    with load_repair(tmp_path, vlm).apply(vlm):
        assert torch.equal(probe_logits(vlm), logits)
    assert vlm.weights_sha256 == before


def test_training_that_ran_away_saves_nothing(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    before = vlm.weights_sha256
    advice = "learning rate or a lower ceiling or a higher w_norm, and another folder; or raise run"
    settings = replace(SETTINGS, runaway_limit=1e-6)
    with pytest.raises(RunError, match=rf"at step 2 training ran away.*{advice}"):
        trained(vlm, tmp_path, settings, replace(LOOP, steps=5))
    assert not (tmp_path / "vlmend.json").exists()
    assert vlm.conditions == ()
    assert vlm.weights_sha256 == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "grad-diff"}, "less likely than at the first step.*w_norm.*raise runaway"),
        ({"objective": "npo", "w_norm": 1e-3}, "less likely than at the first step.*rate or a hig"),
        ({"objective": "simnpo", "w_norm": 1e-3}, "less likely than at the first step"),
        ({"objective": "rmu", "w_norm": 1e-6}, "rmu drives them.*higher w_norm, and another fold"),
        ({"objective": "ga"}, "beyond the ceiling of 0.01.*lower ceiling, and another folder; or"),
    ],
)
def test_every_objective_stops_when_it_runs_away(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    """Driven far too fast, in earnest: the terms are those of the training itself."""
    chosen = replace(SETTINGS, runaway_limit=0.01, **settings)
    if chosen.recipe.forget == "ascent":
        chosen = replace(chosen, ceiling=0.01)
    with pytest.raises(RunError, match=f"training ran away: .*{words}"):
        trained(tiny_vlm("llava"), tmp_path, chosen, replace(LOOP, steps=20, lr=1.0))
    stopped = [row["stopped"] for row in JsonLines(tmp_path / "training/steps.jsonl").read()]
    assert stopped[-1].startswith("training ran away")


def test_training_that_changes_nothing_is_an_error(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    with pytest.raises(ArtifactError, match=r"training changed nothing in 2 steps.*learning rate"):
        trained(vlm, tmp_path, loop=replace(LOOP, lr=1e-30))
    assert vlm.conditions == ()


@pytest.mark.parametrize(
    ("part", "words"),
    [("multi_modal_projector", "outside of the decoder layers"), ("language_model", "own weights")],
)
def test_a_change_of_the_model_itself_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, words: str
) -> None:
    from vlmend.repairs.unlearning import repair as module

    vlm = tiny_vlm("llava")
    real = module.run_loop

    def careless(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        names = [n for n, _ in vlm.model.named_parameters() if part in n and "norm" not in n]
        own = next(n for n in names if "embed" not in n and "lora" not in n)
        with torch.no_grad():
            vlm.model.get_parameter(own).add_(1)
        return result

    monkeypatch.setattr(module, "run_loop", careless)
    with pytest.raises(RunError, match=words):
        trained(vlm, tmp_path)


# ---- going on, and watching


def without_costs(path: Path) -> list[dict[str, Any]]:
    costs = ("seconds", "peak_memory_bytes", "flops", "counted")
    return [{k: v for k, v in row.items() if k not in costs} for row in JsonLines(path).read()]


class KilledError(Exception):
    """Stands for a kill."""


def test_an_interrupted_fit_goes_on_to_the_same_adapter(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    loop = replace(LOOP, steps=4, save_every_s=0)
    whole = trained(vlm, tmp_path / "whole", loop=loop)

    def stop(_what: str, done: int, _total: int) -> None:
        if done == 2:
            raise KilledError

    def fit(progress: Any) -> Unlearning:
        return Unlearning(SETTINGS, loop).fit(
            vlm,
            forget_examples(),
            retain_examples(),
            folder=tmp_path / "parts/training",
            progress=progress,
        )

    with pytest.raises(KilledError):
        fit(stop)
    assert vlm.conditions == ()
    again = fit(None)
    assert again.fingerprint == whole.fingerprint
    rows = without_costs(tmp_path / "parts/training/steps.jsonl")
    assert rows == without_costs(tmp_path / "whole/training/steps.jsonl")
    assert fit(None).fingerprint == whole.fingerprint, "a finished one is not trained again"


def test_another_training_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    trained(vlm, tmp_path)
    with pytest.raises(RunError, match=r"settings.rank: 2 then, 3 now"):
        trained(vlm, tmp_path, replace(SETTINGS, rank=3))
    with pytest.raises(RunError, match=r"data.forget: .* then"):
        trained(vlm, tmp_path, kind="mixed")
    with pytest.raises(RunError, match=r"weights_sha256: .* then"):
        trained(tiny_vlm("llava", seed=1), tmp_path)


def test_watched_rates_are_held_against_the_cost(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    seen: list[tuple[int, bool]] = []
    plain = probe_logits(vlm)

    def watch(step: int) -> Mapping[str, Any]:
        seen.append((step, torch.equal(probe_logits(vlm), plain)))
        asr = {0: 0.9, 1: 0.5, 2: 0.05}[step]
        facts = {
            "kind": "harmful",
            "num_samples": 4,
            "num_scored": 3,
            "asr": asr,
            "low": asr - 0.01,
            "high": asr + 0.02,
            "refusal_rate": 0.75 - asr / 2,
            "incoherent_rate": 0.25 - asr / 4,
        }
        return {"asr": asr, "low": 0.0, "high": 1.0, "suites": {"mild": facts}}

    repair = Unlearning(SETTINGS, LOOP).fit(
        vlm,
        forget_examples(),
        retain_examples(),
        folder=tmp_path,
        watch=watch,
        watch_every=1,
    )
    assert seen == [(0, True), (1, False), (2, False)]
    record = repair.training_record()
    assert [point["asr"] for point in record["watch"]["points"]] == [0.9, 0.5, 0.05]
    assert record["watch"]["suite"] == "mild"
    assert record["reached"]["steps"] == 2
    assert record["reached"]["tokens"] == record["ledger"]["tokens"]
    assert repair.facts_["before_after"] == [
        {
            "suite": "mild",
            "kind": "harmful",
            "num_samples": 4,
            "before": {
                "complied_rate": 0.9,
                "low": 0.89,
                "high": 0.92,
                "num_scored": 3,
                "refusal_rate": 0.75 - 0.9 / 2,
                "incoherent_rate": 0.25 - 0.9 / 4,
            },
            "after": {
                "complied_rate": 0.05,
                "low": 0.05 - 0.01,
                "high": 0.05 + 0.02,
                "refusal_rate": 0.75 - 0.05 / 2,
                "incoherent_rate": 0.25 - 0.05 / 4,
                "num_scored": 3,
            },
        }
    ]


def test_a_training_that_was_first_watched_halfway_has_no_before(tmp_path: Path) -> None:
    def stop(_what: str, done: int, _total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    def watch(_step: int) -> dict[str, Any]:
        facts = {"kind": "harmful", "asr": 0.5, "num_samples": 4}
        return {"asr": 0.5, "low": 0.0, "high": 1.0, "suites": {"mild": facts}}

    vlm, loop = tiny_vlm("llava"), replace(LOOP, steps=3)
    data = forget_examples(), retain_examples()
    with pytest.raises(KeyboardInterrupt):
        Unlearning(SETTINGS, loop).fit(vlm, *data, folder=tmp_path, progress=stop)
    repair = Unlearning(SETTINGS, loop).fit(vlm, *data, folder=tmp_path, watch=watch, watch_every=1)
    assert [row["step"] for row in JsonLines(tmp_path / "watch.jsonl").read()] == [1, 2, 3]
    assert repair.facts_["before_after"] == []


# ---- the artifact


def test_a_loaded_repair_is_the_same(vlm: Vlm, repair: Unlearning, folder: Path) -> None:
    loaded = load_repair(folder, vlm)
    assert isinstance(loaded, Unlearning)
    assert loaded.name == repair.name
    assert loaded.fingerprint == repair.fingerprint
    assert loaded.settings == repair.settings
    assert loaded.loop == repair.loop
    assert loaded.fitted_items == repair.fitted_items
    assert dict(loaded.training_record()) == dict(repair.training_record())
    with repair.apply(vlm):
        logits = probe_logits(vlm)
    with loaded.apply(vlm):
        assert torch.equal(probe_logits(vlm), logits)
    assert {path.name for path in folder.iterdir()} == {
        *("vlmend.json", "adapter_config.json", "adapter_model.safetensors", "training")
    }


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_plain_peft_loads_the_artifact(vlm: Vlm, repair: Unlearning, folder: Path) -> None:
    other = tiny_vlm("llava")
    require("peft", extra="train").PeftModel.from_pretrained(other.model, folder)
    with repair.apply(vlm):
        assert torch.equal(probe_logits(vlm), probe_logits(other))


@pytest.mark.parametrize("other", [{"seed": 1}, {"dtype": torch.bfloat16}])
def test_an_adapter_for_another_base_is_refused(folder: Path, other: dict[str, Any]) -> None:
    vlm = tiny_vlm("llava", **other)
    with pytest.raises(ArtifactError, match=r"was trained on 'tiny-llava'.*one set of weights"):
        load_repair(folder, vlm)
    assert vlm.conditions == ()


def copy_artifact(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 0}, "has schema 0, and this version reads 1"),
        ({"items": []}, "'items' must map"),
        ({"settings": {"rnak": 8}}, "unknown unlearning settings: rnak"),
        ({"settings": {"rank": 0}}, "rank=0"),
        ({"adapter_sha256": "0" * 64}, "not those that vlmend.json was written with"),
        ({"ledger": None}, "lacks ledger"),
        ({"loop": {"steps": 0}}, "loop settings are wrong"),
        ({"kind": "shiftdc"}, "of kind 'shiftdc', not 'unlearning'"),
    ],
)
def test_a_damaged_artifact_is_refused(
    vlm: Vlm, folder: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    damaged = copy_artifact(folder, tmp_path / "damaged")
    record = read_json(damaged / "vlmend.json") | change
    kept = {k: v for k, v in record.items() if v is not None or k not in change}
    (damaged / "vlmend.json").write_text(json.dumps(kept), "utf-8")
    with pytest.raises(ArtifactError, match=words):
        Unlearning.load(damaged, vlm)


def test_an_untrained_repair_says_so(vlm: Vlm, tmp_path: Path) -> None:
    for use in (
        lambda: Unlearning().save(tmp_path),
        lambda: Unlearning().apply(vlm).__enter__(),
        lambda: Unlearning().fingerprint,
        lambda: Unlearning().training_record(),
    ):
        with pytest.raises(ArtifactError, match="was never trained"):
            use()


# ---- merging


@pytest.mark.parametrize("family", ["mllama", "qwen2_5_vl"])
def test_the_merged_folder_is_an_ordinary_model_that_answers_the_same(
    family: str, tmp_path: Path
) -> None:
    vlm = load_vlm(save_tiny_vlm(family, tmp_path / "base"))
    before = vlm.weights_sha256
    repair = trained(vlm, tmp_path / "repair", kind="pictures")
    assert repair.weights_ is not None
    difference = save_merged(vlm, repair.weights_, tmp_path / "merged")
    assert 0 < difference < 2e-5
    assert vlm.weights_sha256 == before
    merged = load_vlm(tmp_path / "merged")
    with repair.apply(vlm):
        expected = vlm.generate(requests(2), SHORT)
    assert [a.token_ids for a in merged.generate(requests(2), SHORT)] == [
        a.token_ids for a in expected
    ]
    assert merged.weights_sha256 != before


def test_a_merge_that_is_another_model_is_refused(
    vlm: Vlm, repair: Unlearning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmend.training.adapters import LoraAdapter

    assert repair.weights_ is not None
    real = LoraAdapter.dense
    monkeypatch.setattr(
        LoraAdapter, "dense", lambda self: {n: 1.01 * t for n, t in real(self).items()}
    )
    with pytest.raises(ArtifactError, match=r"the merged model differs.*--dtype float32"):
        save_merged(vlm, repair.weights_, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert vlm.conditions == ()


def test_a_merge_that_the_disk_spoiled_is_noticed(
    vlm: Vlm, repair: Unlearning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert repair.weights_ is not None
    real = vlm.model.save_pretrained

    def spoil(folder: Path) -> None:
        with torch.no_grad():
            vlm.lm_head.weight.mul_(2)  # pyright: ignore
            real(folder)
            vlm.lm_head.weight.div_(2)  # pyright: ignore

    monkeypatch.setattr(vlm.model, "save_pretrained", spoil)
    with pytest.raises(ArtifactError, match="read back, has other weights"):
        save_merged(vlm, repair.weights_, tmp_path / "merged")


# ---- as an arm


def test_it_is_measured_as_an_arm_beside_the_base(
    vlm: Vlm, repair: Unlearning, tmp_path: Path
) -> None:
    samples = [sample(f"t{i}", "harmful", request) for i, request in enumerate(requests(2))]
    arms = [Arm("base"), Arm("unlearned", (repair,))]
    texts: list[list[str]] = []
    with RunFolder.open(tmp_path, {}, {}, resume=False) as run:
        evaluation = Evaluation(vlm, run, EvalSettings(SHORT))
        for arm in arms:
            ids = response_ids(vlm, arm, [None], samples, SHORT)
            cell = evaluation.answer(arm, "mild", samples, [None])[0]
            assert [r.id for r in cell.responses] == list(ids.values())
            texts.append([r.text for r in cell.responses])
        with repair.apply(vlm), pytest.raises(ConfigError, match="already repaired"):
            evaluation.answer(arms[0], "mild", samples, [None])
    assert texts[0] != texts[1]
    assert len({r["id"] for r in JsonLines(tmp_path / "responses.jsonl").read()}) == 4


@pytest.mark.parametrize("first", ["unlearning", "shiftdc"])
def test_shiftdc_composes_with_it(vlm: Vlm, repair: Unlearning, first: str) -> None:
    """The adapted model's shift is calibrated, along the direction that the base's text has."""
    shiftdc = ShiftDC(ShiftDCSettings(caption_tokens=3)).fit(vlm, fit_samples())
    last = vlm.num_decoder_layers - 1
    asked = requests(2)

    def stream(*chosen: Any) -> torch.Tensor:
        with Arm("x", chosen).applied(vlm), reading_stream(vlm) as seen:
            vlm.generate(asked, GenerationSettings(1))
        return seen[last][:, -1]

    both = stream(*((repair, shiftdc) if first == "unlearning" else (shiftdc, repair)))
    for other in (stream(), stream(repair), stream(shiftdc)):
        assert float((both - other).abs().max()) > 0.01
    with repair.apply(vlm):
        x_text = record_layers(vlm, shiftdc.text_branch(vlm, asked), [last])[last]
    s_D = shiftdc.directions_[last].vectors[0]
    shift = (both - x_text) @ s_D / s_D.norm() ** 2
    assert float(shift.abs().max()) < 1e-4
    assert (vlm.conditions, vlm.middlewares) == ((), ())


def test_captions_of_an_unlearned_model_are_its_own(vlm: Vlm, repair: Unlearning) -> None:
    shiftdc = ShiftDC(ShiftDCSettings(caption_tokens=3)).fit(vlm, fit_samples())
    cache: Any = shiftdc.captions
    request = [user("What is it?", picture(500))]
    with Arm("s", (shiftdc,)).applied(vlm):
        vlm.generate(request, SHORT)
    missed = cache.misses
    with Arm("both", (repair, shiftdc)).applied(vlm):
        vlm.generate(request, SHORT)
    assert cache.misses == missed + 1


def test_one_adapter_at_a_time(vlm: Vlm, repair: Unlearning) -> None:
    with repair.apply(vlm), pytest.raises(ModelError, match="has a LoRA adapter on already"):
        repair.apply(vlm).__enter__()
    assert vlm.conditions == ()


def test_training_examples_are_not_measured(repair: Unlearning) -> None:
    seen = forget_examples("mixed")[1]
    measured = sample("new", "harmful", seen.messages)
    assert repair.fitted_items[seen.id] == prompt_sha256(measured)
    with pytest.raises(ConfigError, match="was fitted on items that are to be measured"):
        require_unseen(repair, [measured])
    require_unseen(repair, [sample("other", "harmful", user("Sing."))])


# ---- bad input


def test_bad_data_is_found_before_anything_runs(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    forget, retain = forget_examples(), retain_examples()
    untargeted = [replace(forget[0], target=None), *forget[1:]]
    for given, words in (
        (([], retain), "the forget set is empty"),
        ((forget, []), "the retain set is empty"),
        (
            (forget, [*retain, replace(forget[0], id="retain/9")]),
            "ask what an example of the retain",
        ),
        (([*forget, forget[0]], retain), "forget/0"),
        ((untargeted, retain), "1 forget examples have no target.*'forget/0'"),
    ):
        with pytest.raises(DataError, match=words):
            Unlearning(SETTINGS, LOOP).fit(vlm, *given, folder=tmp_path / "training")
    assert list(tmp_path.iterdir()) == []


def test_data_that_no_term_reads_is_neither_needed_nor_kept(tmp_path: Path) -> None:
    vlm, settings = tiny_vlm("llava"), replace(SETTINGS, objective="ga")
    forget, pictures = forget_examples(), retain_examples("pictures")
    with pytest.raises(ConfigError, match="4 retain examples would be ignored: objective 'ga'"):
        Unlearning(settings, LOOP).fit(vlm, forget, pictures, folder=tmp_path / "refused")
    assert list(tmp_path.iterdir()) == []
    repair = Unlearning(settings, LOOP).fit(vlm, forget, folder=tmp_path / "training")
    assert repair.name == "ga(text, rank=2)"
    assert set(repair.facts_["data"]) == {"forget"}
    assert set(repair.fitted_items) == {example.id for example in forget}
    assert set(read_json(tmp_path / "training/run.json")["config"]["data"]) == {"forget"}
    # What is never read is no part of what was fitted, so it may be measured.
    require_unseen(repair, [sample("kept", "benign", pictures[0].messages)])


def test_targets_are_not_needed_where_none_is_learnt(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    untargeted = [replace(e, target=None) for e in forget_examples()]
    settings = replace(SETTINGS, objective="grad-diff")
    fitted = Unlearning(settings, LOOP).fit(
        vlm, untargeted, retain_examples(), folder=tmp_path / "training"
    )
    assert "match_nll" not in fitted.facts_["last_terms"]


def test_a_changed_model_is_not_trained_on(vlm: Vlm, repair: Unlearning, tmp_path: Path) -> None:
    with repair.apply(vlm), pytest.raises(ConfigError, match="is repaired or at an exit already"):
        trained(vlm, tmp_path)


def test_default_settings_are_shared_by_no_two_repairs() -> None:
    first, second = Unlearning(), Unlearning()
    assert first.facts_ is not second.facts_
    assert first.loop == LoopSettings()


def test_weights_without_changes_have_a_hash_too() -> None:
    assert AdapterWeights("full", {}).sha256 != AdapterWeights("lora", {}).sha256
