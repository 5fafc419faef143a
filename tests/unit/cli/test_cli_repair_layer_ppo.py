from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import text_classifiers
from command_line import Command, Outcome, contents
from untrained_organism import save_untrained

from vlmend.cli.layer_ppo_plan import HeldOut, LayerPPOPlan, make_plan
from vlmend.cli.main import build_parser
from vlmend.cli.repair_layer_ppo import _load_prompts, describe_steps, spread
from vlmend.errors import ConfigError, DataError, UnknownNameError
from vlmend.organism import language
from vlmend.repairs.layer_ppo.experience import RewardScale
from vlmend.repairs.layer_ppo.reward_scale import read_reward_scale
from vlmend.repairs.layer_ppo.settings import LayerPPOSettings
from vlmend.repairs.layer_ppo.watch_rule import WatchRule
from vlmend.runs import JsonLines, read_json, write_json
from vlmend.testing.pictures import picture
from vlmend.training.recipes import build_settings, read_recipe
from vlmend.training.weightless import count_classifier_parameters

Saved = Callable[[str], Path]

RECIPES = Path(__file__).parents[3] / "recipes"

PROMPTS = ("--harmful", "organism/forget-pictures", "--benign", "organism/retain-pictures")


@pytest.fixture(scope="session")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model whose training says where its scores lie."""
    folder = text_classifiers.save_reward(tmp_path_factory.mktemp("reward") / "model")
    write_json(folder / "reward.json", {"held_out": {"scores": {"all": {"mean": 0.1, "std": 2}}}})
    return folder


def words(model: Path | str, out: Path, *options: object) -> tuple[Any, ...]:
    """A short training of mild things."""
    return (
        *("repair", "layer-ppo", model, "--out", out, *PROMPTS, "--limit", 6, "--rank", 2),
        *("--steps", 2, "--batch-size", 2, "--lr", "1e-2", "--max-new-tokens", 3),
        *options,
    )


# ---- the whole way


@pytest.mark.parametrize("family", ["llava_next", "mllama", "qwen2_5_vl"])
def test_a_saved_model_is_trained_at_its_exits_and_audited(
    saved: Saved, reward: Path, tmp_path: Path, command: Command, family: str
) -> None:
    out = tmp_path / "mend"
    model = contents(saved(family))
    watch = ("--held-out", "0.4", "--watch-every", 1, "--watch-limit", 2)
    done = command(*words(saved(family), out, "--reward", reward, *watch))
    assert done.code == 0, done.err
    assert contents(saved(family)) == model
    assert "organism/forget-pictures as harmful prompts: 6" in done.err
    assert "layer-ppo(exits=random, max_new_tokens=3, rank=2) saved in" in done.err
    assert "kept: " in done.err
    assert "Held-out prompts (2 harmful, 2 benign)" in done.out
    assert "note: 0.0% of held-out harmful prompts were refused at the start" in done.err
    facts = read_json(out / "vlmend.json")
    assert (facts["kind"], facts["modality"]) == ("layer-ppo", "pictures")
    assert facts["data"]["benign"]["licences"] == {"organism/retain-pictures": "Apache-2.0"}
    assert facts["command"].startswith("vlmend")
    assert [check["step"] for check in facts["checks"]] == [0, 1, 2]
    (row, _) = JsonLines(out / "training/steps.jsonl").read()
    shown = describe_steps([row["terms"]])
    for what in ("reward, harmful", "KL", "clipped", "explained variance", "entropy", "length"):
        assert what in shown
    assert "training: 2 done (reward, harmful" in done.err

    if family != "mllama":  # once is enough
        return
    audit = command(
        *("audit", saved(family), "--suite", "organism/icon", "--limit", 2, "--repair", out),
        *("--max-new-tokens", 2, "--out", tmp_path / "audit"),
    )
    assert audit.code == 0, audit.err
    arms = read_json(tmp_path / "audit/metrics.json")["arms"]
    assert [arm["name"] for arm in arms] == ["base", facts["repair"]]


def test_the_same_command_goes_on_and_another_is_refused(
    saved: Saved, reward: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "mend"
    options = ("--reward", reward, "--held-out", 0)
    assert command(*words(saved("llava"), out, *options)).code == 0
    before = contents(out)
    # The reward model counts by its numbers, not by its place.
    moved = shutil.copytree(reward, tmp_path / "other" / reward.name)
    again = command(*words(saved("llava"), out, "--held-out", 0, "--reward", moved))
    assert again.code == 0, again.err
    after = contents(out)
    for name in ("adapter_model.safetensors", "training/steps.jsonl"):
        assert after[name] == before[name], name
    other = command(*words(saved("llava"), out, *options, "--clip", "0.3"))
    assert other.code == 2
    assert "settings.clip: 0.2 then, 0.3 now" in other.err


def test_sft_needs_no_reward_model_and_merges(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    out, merged = tmp_path / "mend", tmp_path / "merged"
    options = ("--algorithm", "sft", "--exits", "1-2", "--held-out", 0.4, "--merge", merged)
    done = command(*words(saved("llava"), out, *options, "--watch-limit", 2))
    assert done.code == 0, done.err
    assert "refused at the start" not in done.err
    assert "layer-sft(exits=1-2" in done.err
    assert "merged model saved in" in done.err
    assert "harmful" in describe_steps(
        [row["terms"] for row in JsonLines(out / "training/steps.jsonl").read()]
    )


def test_a_picture_is_put_beside_prompts_that_have_none(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    options = ("--algorithm", "sft", "--exits", "0", "--held-out", 0)
    options = (*options, "--harmful", "organism/forget-text")
    without = command(*words("no/such/model", tmp_path / "mend", *options))
    assert without.code == 2
    assert "--pictures FOLDER" in without.err
    folder = tmp_path / "pictures"
    folder.mkdir()
    data = picture(1).data
    assert data is not None
    (folder / "one.png").write_bytes(data)
    done = command(
        *words(saved("llava"), tmp_path / "mend", *options, "--pictures", folder),
        *("--adapters", "per-exit"),
    )
    assert done.code == 0, done.err
    assert "6 of them beside a picture of" in done.err


# ---- the organism's own reward model


@pytest.fixture
def quick_reward(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Trained in no time: a tiny classifier stands in."""
    from vlmend.evals.scorers import load_reward

    trained: list[tuple[str, Path]] = []

    def train(model: str, out: Path, *, device: str) -> Any:
        trained.append((model, out))
        text_classifiers.save_reward(out)
        write_json(out / "reward.json", {"held_out": {"scores": {"all": {"mean": 0, "std": 1}}}})
        return load_reward(out, device=device)

    monkeypatch.setattr("vlmend.cli.reward.train_preset", train)
    return trained


@pytest.mark.parametrize("where", ["shipped", "in a folder"])
def test_an_organism_trains_its_reward_model_on_the_way(
    where: str, tmp_path: Path, command: Command, quick_reward: list[tuple[str, Path]]
) -> None:
    out = tmp_path / "mend"
    model = "organism" if where == "shipped" else str(save_untrained(tmp_path / "trained"))

    def run(*options: object) -> Outcome:
        return command(*words(model, out, "--steps", 1, "--held-out", 0, *options))

    wrong = run("--exits", "99")
    assert wrong.code == 2
    assert not quick_reward, "what can be wrong is found before"
    done = run("--exits", "random")
    assert done.code == 0, done.err
    assert quick_reward == [(model, out / "reward")]
    again = run("--exits", "random")
    assert again.code == 0, again.err
    assert len(quick_reward) == 1
    assert "scored by the reward model in" in again.err


# ---- plans


def plan_of(*options: object) -> LayerPPOPlan:
    args = build_parser().parse_args(["repair", "layer-ppo", *map(str, options)])
    return make_plan(args)


def test_the_organism_has_a_preset_that_options_change() -> None:
    plan = plan_of("organism")
    assert plan.trains_reward
    assert "organism/forget-beside" in plan.training.data.harmful
    assert plan.training.settings.exits == "random"
    assert not plan_of("organism", "--reward", "here").trains_reward
    assert not plan_of("organism", "--algorithm", "sft").trains_reward
    assert not plan_of("some/model").trains_reward
    changed = plan_of("organism", "--steps", 3, "--exits", "1-3,7", "--held-out", 0.3)
    assert changed.training.settings.exits == (1, 2, 3, 7)
    assert changed.training.loop.steps == 3
    assert changed.training.loop.lr == plan.training.loop.lr
    assert changed.training.watch == replace(plan.training.watch, held_out=0.3)
    assert plan_of("some/model", "--watch-every", 5).training.watch == HeldOut(every=5)
    rule = plan_of("organism", "--patience", 4).rule
    assert type(rule) is WatchRule
    assert rule == replace(plan.rule, patience=4)


def test_things_that_are_held_out_are_in_no_given_answer() -> None:
    options = ("--given", "organism/retain-text", "--ptx-coefficient", 1)
    prompts = _load_prompts(plan_of("organism", *options))
    kept, learnt = (
        {example.meta["thing"] for example in part}
        for part in (prompts.held_out["benign"], prompts.trained["given"])
    )
    asked = {e.meta["thing"] for e in prompts.trained["benign"]}
    assert kept
    assert learnt
    assert not kept & (learnt | asked)
    assert not any(example.images for example in prompts.trained["given"])
    # What does not read them goes without those of the preset.
    assert plan_of("organism", "--algorithm", "sft").training.data.given == ()
    assert plan_of("organism", "--ptx-coefficient", 0).training.data.given == ()


def test_held_out_hazards_are_of_the_named_data_and_in_no_other() -> None:
    plan = plan_of("organism")
    prompts = _load_prompts(plan)
    assert {e.meta["split"] for e in prompts.held_out["harmful"]} == {"fit"}
    assert {e.meta["split"] for e in prompts.trained["harmful"]} == {"fit", "aligned"}
    kept, learnt = (
        {e.meta["thing"] for e in part["harmful"]} for part in (prompts.held_out, prompts.trained)
    )
    assert (len(kept), len(learnt), len(kept & learnt)) == (4, 60, 0)
    # Where the stream has none of the named data, from all of it.
    assert prompts.held_out["benign"]
    # Typed data without the preset's is held out from as a whole, and so is a part of it.
    other = plan_of("organism", "--harmful", "organism/aligned-pictures")
    assert other.training.watch.held_out_from == ()
    part = plan_of("organism", "--harmful", "organism/forget-pictures,organism/aligned-pictures")
    assert part.training.watch.held_out_from == ("organism/forget-pictures",)
    typed = plan_of("organism", "--held-out-from", "organism/aligned-pictures")
    held_out = _load_prompts(typed).held_out["harmful"]
    assert {e.meta["split"] for e in held_out} == {"aligned"}


def test_given_answers_that_are_all_held_out_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not taken for none, which would have the benign prompts' answers learnt."""

    def hold_all(examples: list[Any], *_: Any, **_choose_from: Any) -> tuple[list[Any], list[Any]]:
        return [], examples

    monkeypatch.setattr("vlmend.training.data.held_out.split_held_out", hold_all)
    with pytest.raises(DataError, match=r"all \d+ given answers are about what is held out"):
        _load_prompts(plan_of("organism", "--given", "organism/retain-pictures"))


def test_an_organism_in_a_folder_has_the_preset_and_the_refusals_of_its_own(
    tmp_path: Path,
) -> None:
    folder = save_untrained(tmp_path / "trained")
    plan, shipped = plan_of(folder), plan_of("organism")
    assert plan.trains_reward
    assert plan.training == replace(shipped.training, model=str(folder))
    assert not plan_of(folder, "--reward", "here").trains_reward
    wanted = ("--algorithm", "sft", "--limit", 3)
    targets = {e.target for e in _load_prompts(plan_of(folder, *wanted)).trained["harmful"]}
    assert targets
    assert targets <= set(language.REFUSALS)


RECIPE = """
[model]
id = "some/model"
[data]
harmful = ["organism/forget-beside"]
pictures = "some/folder"
[repair]
exits = [1, 2]
clip = 0.3
[reward]
id = "some/reward"
[watch]
held_out = 0.2
held_out_from = ["organism/forget-beside"]
max_kept_rise = 0.05
[loop]
steps = 7
"""


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_recipe_is_read_and_options_win(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE)
    plan = plan_of("--recipe", recipe)
    assert plan.reward.id == "some/reward"
    assert (plan.training.settings.exits, plan.training.settings.clip) == ((1, 2), 0.3)
    assert (plan.training.data.pictures, plan.training.loop.steps) == ("some/folder", 7)
    assert plan.training.watch == HeldOut(
        held_out=0.2, held_out_from=("organism/forget-beside",), max_kept_rise=0.05
    )
    assert plan.rule == WatchRule(max_kept_rise=0.05)
    assert plan_of("--recipe", recipe, "--max-kept-rise", 0.1).rule == WatchRule(max_kept_rise=0.1)
    other = plan_of("--recipe", recipe, "--harmful", "organism/forget-pictures")
    assert other.training.watch == replace(plan.training.watch, held_out_from=())
    plan = plan_of("--recipe", recipe, "--exits", "all", "--reward", "other", "--pictures", "b")
    assert plan.training.settings.exits == "all"
    assert (plan.reward.id, plan.training.data.pictures) == ("other", "b")
    # What another algorithm does not read is no part of it.
    sft = plan_of("--recipe", recipe, "--algorithm", "sft").training.settings
    assert sft == LayerPPOSettings(algorithm="sft", exits=(1, 2))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[repair]\nexit = [1]", "Did you mean 'exits'"),
        ("[repair]\nexits = 'some'", "exits='some' \\(allowed: random, all"),
        ("[reward]\nname = 'x'", "key of .*\\[reward\\] 'name'"),
        ("[data]\nharmfull = ['x']", "Did you mean 'harmful'"),
        ("[watch]\nmax_kept_rise = 2", "max_kept_rise=2 \\(allowed: 0 to 1\\)"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=problem):
        plan_of("--recipe", write_recipe(tmp_path, f"[model]\nid = 'a/b'\n{text}"))


def test_the_recipe_that_comes_along_is_a_plan() -> None:
    plan = plan_of("--recipe", RECIPES / "llava-1.5-7b-ppo-24gb.toml")
    settings, recipe = plan.training.settings, plan.training.recipe
    assert recipe is not None
    assert settings == LayerPPOSettings()
    assert recipe.lengths.answer_tokens + 1 == settings.max_new_tokens
    assert plan.training.loop.gradient_checkpointing
    assert plan.reward.shapes["model_type"] == "deberta-v2"


def test_a_dry_run_shows_every_part(saved: Saved, tmp_path: Path, command: Command) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved("llava"), model, ignore=shutil.ignore_patterns("*.safetensors"))
    shapes = "{model_type = 'bert', vocab_size = 9, hidden_size = 8, num_hidden_layers = 1"
    shapes += ", num_attention_heads = 2, intermediate_size = 8, max_position_embeddings = 4}"
    recipe = write_recipe(
        tmp_path,
        f"[model]\nid = '{model}'\n[dry_run]\nprompt_tokens = 4\n[reward]\nshapes = {shapes}",
    )
    done = command(
        *("repair", "layer-ppo", "--recipe", recipe, "--dry-run", "--batch-size", 1),
        *("--minibatches", 1, "--rank", 2, "--max-new-tokens", 3, "--modules", "q_proj"),
    )
    assert done.code == 0, done.err
    for part in ("recording pictures", "sampling", "reading answers", "update (chosen)"):
        assert part in done.out
    assert "update, recomputing layers" in done.out
    assert "The reward model comes on top: " in done.err
    assert "A step takes " in done.err


def test_what_a_reward_model_takes() -> None:
    shapes = {"vocab_size": 10, "hidden_size": 4, "num_hidden_layers": 0}
    shapes |= {"max_position_embeddings": 6, "type_vocab_size": 2, "num_attention_heads": 2}
    embeddings = (10 + 6 + 2) * 4 + 2 * 4
    pooler, head = 4 * 4 + 4, 4 + 1
    found = count_classifier_parameters({"model_type": "bert", **shapes})
    assert found == embeddings + pooler + head
    with pytest.raises(ConfigError, match="make no text classifier"):
        count_classifier_parameters({"model_type": "no such"})


# ---- small pieces


def test_few_prompts_are_spread_over_all() -> None:
    examples: Any = list("aaaabbbb")
    assert spread(examples, 4) == ["a", "a", "b", "b"]
    assert spread(examples, None) == spread(examples, 99) == examples
    assert spread([], 3) == []


def test_where_scores_lie_is_read_from_the_reward_model(reward: Path, tmp_path: Path) -> None:
    assert read_reward_scale(reward) == RewardScale(0.1, 2.0)
    missing = read_reward_scale(tmp_path)
    assert isinstance(missing, str)
    assert "has no reward.json" in missing
    write_json(tmp_path / "reward.json", {"held_out": {}})
    with pytest.raises(ConfigError, match="does not say where the scores lie"):
        read_reward_scale(tmp_path)


# ---- bad input


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--algorithm", "pppo"), "'pppo' is none of ppo, grpo, sft"),
        (("--exits", "some"), "or random or all"),
        (("--algorithm", "sft", "--clip", "0.1"), "--clip would be ignored: algorithm 'sft'"),
        (("--samples", "3"), "--samples would be ignored: algorithm 'ppo'"),
        (("--kl-target", "3"), "--kl-target would be ignored"),
        (("--clip", "2"), "clip=2.0 (allowed: above 0, below 1)"),
        (("--held-out", "1"), "--held-out 1.0 is no share"),
        (("--held-out-from", "a,b"), "--held-out-from a,b: no prompts come from there. Allowed: "),
        (("--held-out-from", "a", "--held-out", "0"), "--held-out-from a would be ignored"),
        (("--given", "alpaca=a"), "--given alpaca=a would be ignored: ppo with --ptx-coefficient"),
        (("--harmful", "organism/forget-txt"), "Did you mean 'organism/forget-text'"),
        (("--adapters", "per-exit", "--merge", "m"), "--merge would be ignored"),
        (("--report-to", "tensorbord"), "unknown tracker 'tensorbord'"),
        ((), "no reward model was named"),
    ],
)
def test_what_is_wrong_is_found_before_the_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    options: tuple[str, ...],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--reward", "no/such/reward") if options else ()
    done = command(*words("no/such/model", tmp_path / "out", *given, *options))
    assert done.code == 2
    assert problem in done.err
    assert not (tmp_path / "out").exists()


def test_harmful_prompts_are_asked_for(tmp_path: Path, command: Command) -> None:
    done = command("repair", "layer-ppo", "some/model", "--out", tmp_path / "out")
    assert done.code == 2
    assert "no harmful prompts were named" in done.error_line


def test_a_reward_model_with_two_labels_is_refused(tmp_path: Path, command: Command) -> None:
    two = text_classifiers.save_reward(tmp_path / "two", labels=2)
    done = command(*words("no/such/model", tmp_path / "out", "--reward", two))
    assert done.code == 2
    assert "a reward model has one output" in done.err


def test_an_exit_that_the_model_does_not_have(
    saved: Saved, reward: Path, tmp_path: Path, command: Command
) -> None:
    options = ("--reward", reward, "--exits", "1,99")
    done = command(*words(saved("llava"), tmp_path / "out", *options))
    assert done.code == 2
    assert "exit(s) 99 are out of range" in done.err
    assert "the model itself reads exit" in done.err
    assert not (tmp_path / "out").exists()


def test_folders_of_others_are_left_alone(tmp_path: Path, command: Command) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear", "utf-8")
    done = command(*words("organism", tmp_path / "mine"))
    assert done.code == 2
    assert "holds files that vlmend did not write" in done.error_line


def test_help_is_light() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from vlmend.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(['repair', 'layer-ppo', '--help'])\n"
        "assert '--max-over-refusal-rise' in out.getvalue()\n"
        "assert '--exits random|all|A-B' in out.getvalue()\n"
        "print(sorted({'torch', 'transformers', 'peft', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_recipe_fits_its_card() -> None:
    from vlmend.repairs.layer_ppo.dry_parts import build_unscored, find_parts
    from vlmend.training.dry_run import dry_run_recipe

    recipe = read_recipe(RECIPES / "llava-1.5-7b-ppo-24gb.toml")
    settings = build_settings(LayerPPOSettings, recipe.repair, "[repair]")
    build = build_unscored(settings, recipe.loop, ["harmful", "benign"])
    found = dry_run_recipe(recipe, build, parts=find_parts)
    assert found.fits(24)
    assert [part.kind for part in found.chosen] == [
        "recording pictures",
        "sampling",
        "reading answers",
        "update",
    ]
