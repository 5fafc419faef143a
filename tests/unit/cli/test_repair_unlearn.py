from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, Outcome, contents, write_csv
from safetensors.torch import load_file

from vlmend.cli.main import build_parser
from vlmend.cli.training_plan import as_recipe
from vlmend.cli.unlearning_plan import UnlearningPlan, WatchNames, make_plan
from vlmend.errors import ConfigError, UnknownNameError
from vlmend.repairs.unlearning.settings import OBJECTIVES
from vlmend.runs import JsonLines, read_json

Saved = Callable[[str], Path]

ADAPTER = {"vlmend.json", "adapter_config.json", "adapter_model.safetensors", "training"}


def words(model: Path | str, out: Path, *options: object, rank: int | None = 2) -> tuple[Any, ...]:
    """A short training of mild things."""
    return (
        *("repair", "unlearn", model, "--out", out, "--limit", 6, "--steps", 2),
        *("--forget", "organism/forget-text", "--retain", "organism/retain-text"),
        *("--batch-size", 2, "--lr", "1e-2"),
        *(() if rank is None else ("--rank", rank)),
        *options,
    )


@pytest.mark.parametrize("family", ["mllama", "qwen2_5_vl"])
def test_a_saved_model_is_trained_and_its_artifact_audited(
    saved: Saved, tmp_path: Path, command: Command, family: str
) -> None:
    out = tmp_path / "mend"
    model = contents(saved(family))
    done = command(*words(saved(family), out))
    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == ADAPTER
    assert "organism/forget-text as forget data: 6" in done.err
    assert "No suite was watched from the first step on, so there is no table" in done.err
    assert "2 steps" in done.err
    assert "unlearn(text, rank=2) saved in" in done.err
    facts = read_json(out / "vlmend.json")
    assert (facts["kind"], facts["schema"], facts["modality"]) == ("unlearning", 1, "text")
    assert facts["data"]["forget"]["licences"] == {"organism/forget-text": "Apache-2.0"}
    assert facts["ledger"]["images"] == 0
    assert facts["command"].startswith("vlmend")
    assert len(JsonLines(out / "training/steps.jsonl").read()) == 2
    assert contents(saved(family)) == model

    audit = command(
        *("audit", saved(family), "--suite", "organism/icon", "--limit", 2),
        *("--max-new-tokens", 2, "--repair", out, "--out", tmp_path / "audit"),
    )
    assert audit.code == 0, audit.err
    arms = read_json(tmp_path / "audit/metrics.json")["arms"]
    assert [arm["name"] for arm in arms] == ["base", facts["repair"]]
    assert arms[1]["training"][0]["ledger"] == facts["ledger"]


def test_the_same_command_goes_on_and_another_is_refused(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "mend"
    assert command(*words(saved("llava"), out)).code == 0
    before = contents(out)
    again = command(*words(saved("llava"), out))
    assert again.code == 0, again.err
    after = contents(out)
    for name in ("adapter_model.safetensors", "training/steps.jsonl", "vlmend.json"):
        assert after[name] == before[name], name
    other = command(*words(saved("llava"), out, "--seed", 1))
    assert other.code == 2
    assert "loop.seed: 0 then, 1 now" in other.err
    assert contents(out)["adapter_model.safetensors"] == before["adapter_model.safetensors"]


def test_pictures_make_it_multimodal_and_a_merge_is_an_ordinary_model(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    merged = tmp_path / "merged"
    done = command(
        *words(saved("llava"), tmp_path / "mend", "--objective", "sft", "--merge", merged),
        *("--forget", "organism/forget-pictures", "--retain", "organism/retain-pictures"),
    )
    assert done.code == 0, done.err
    assert "sft(pictures, rank=2) saved in" in done.err
    assert "merged model saved in" in done.err
    ledger = read_json(tmp_path / "mend/vlmend.json")["ledger"]
    assert ledger["images"] == 2 * 2 * 2  # steps, examples, passes
    audit = command(
        *("audit", merged, "--suite", "organism/icon", "--limit", 2, "--max-new-tokens", 2),
        *("--out", tmp_path / "audit"),
    )
    assert audit.code == 0, audit.err


def test_watched_suites_are_measured_before_during_and_after(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "mend"
    done = command(
        *words(saved("llava"), out, "--watch", "organism/icon,organism/benign"),
        *("--watch-every", 1, "--watch-limit", 2, "--max-new-tokens", 2),
    )
    assert done.code == 0, done.err
    rows = JsonLines(out / "training/watch.jsonl").read()
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["asr"] == row["suites"]["organism/icon"]["asr"] for row in rows)
    assert {s["kind"] for s in rows[0]["suites"].values()} == {"harmful", "benign"}
    table = read_json(out / "vlmend.json")["before_after"]
    assert [row["suite"] for row in table] == ["organism/icon", "organism/benign"]
    for row in table:
        for when, look in (("before", rows[0]), ("after", rows[-1])):
            facts = look["suites"][row["suite"]]
            names = ("low", "high", "refusal_rate", "incoherent_rate", "num_scored")
            assert row[when] == {"complied_rate": facts["asr"], **{n: facts[n] for n in names}}
            assert None not in row[when].values()
    for word in ("complied", "refused", "incoherent", "before", "after", "(benign)"):
        assert word in done.out
    assert "No suite was watched" not in done.err

    # What is on record would be taken for what is asked for now.
    other = command(*words(saved("llava"), out, "--watch", "organism/text", "--watch-limit", 2))
    assert other.code == 2
    assert "watched on organism/icon (2 items), organism/benign (2 items), and" in other.err
    assert command(*words(saved("llava"), out)).code == 0
    assert read_json(out / "vlmend.json")["before_after"] == table


def test_a_suite_is_unlearned_by_the_models_own_answers(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "mend"

    def run(*options: object) -> Outcome:
        return command(
            *words(saved("llava"), out, "--max-answer-tokens", 4, *options),
            *("--forget", "organism/text"),
        )

    done = run()
    # A tiny model answers nonsense, which is nothing to unlearn.
    assert done.code == 2
    assert "complies with nothing here that it could unlearn" in done.err
    answers = JsonLines(out / "own_answers.jsonl").read()
    assert len(answers) == 6
    assert run().code == 2
    assert JsonLines(out / "own_answers.jsonl").read() == answers


def test_a_suite_with_answers_of_its_own_needs_none_of_the_model(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    rows = [[f"Tell me how to spill tea {i} times", f"Sure, tip cup {i}"] for i in range(520)]
    table = write_csv(tmp_path / "harmful_behaviors.csv", ("goal", "target"), rows)
    out = tmp_path / "mend"
    forget = ("--forget", f"advbench={table},organism/forget-pictures")
    done = command(*words(saved("llava"), out, *forget))
    assert done.code == 0, done.err
    facts = read_json(out / "vlmend.json")
    assert facts["modality"] == "mixed, retain=text"
    assert facts["data"]["forget"]["sources"] == {"advbench": 6, "organism/forget-pictures": 6}
    assert facts["data"]["forget"]["licences"].keys() == {"advbench", "organism/forget-pictures"}
    measured = command(
        *("audit", saved("llava"), "--suite", f"advbench={table}", "--limit", 8, "--repair", out),
        *("--max-new-tokens", 2, "--out", tmp_path / "audit"),
    )
    assert measured.code == 2
    assert "was fitted on items that are to be measured: 6 of suite 'advbench'" in measured.err


def test_an_objective_without_a_retain_term_takes_no_retain_data(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "mend"
    common = ("repair", "unlearn", saved("llava"), "--out", out, "--limit", 6, "--steps", 2)
    options = ("--forget", "organism/forget-text", "--objective", "ga", "--batch-size", 2)
    done = command(*common, *options, "--rank", 2, "--lr", "1e-2")
    assert done.code == 0, done.err
    assert "retain" not in done.err
    facts = read_json(out / "vlmend.json")
    assert (facts["repair"], facts["modality"]) == ("ga(text, rank=2)", "text")
    assert set(facts["data"]) == {"forget"}
    assert len(facts["items"]) == 6


def test_full_weights_are_trained_on_request(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "mend"
    options = ("--objective", "grad-diff", "--adapter", "full", "--layers", "3")
    done = command(*words(saved("llava"), out, *options, rank=None))
    assert done.code == 0, done.err
    names = load_file(out / "decoder.safetensors")
    assert names
    assert all(".layers.3." in name for name in names)


# ---- recipes and presets


def plan_of(*options: object) -> UnlearningPlan:
    args = build_parser().parse_args(["repair", "unlearn", *map(str, options)])
    return make_plan(args)


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


RECIPE = """
[model]
id = "some/model"
dtype = "bfloat16"
[data]
forget = ["organism/forget-text"]
retain = ["organism/retain-text"]
limit = 9
[repair]
objective = "unlearn"
w_bad = 0.25
rank = 4
layers = [1, 2]
[loop]
steps = 7
lr = 1e-3
"""


def test_the_organism_has_a_preset_that_options_change() -> None:
    plan = plan_of("organism")
    assert plan.data.forget == ("organism/forget-text",)
    assert plan.data.retain == ("organism/retain-text",)
    changed = plan_of("organism", "--forget", "organism/forget-pictures", "--steps", 3)
    assert changed.data.forget == ("organism/forget-pictures",)
    assert changed.data.retain == plan.data.retain
    assert changed.loop.steps == 3
    assert changed.loop.lr == plan.loop.lr
    for objective in OBJECTIVES:
        assert plan_of("organism", "--objective", objective).settings.objective == objective
    assert plan_of("some/model").data.forget == ()


def test_a_recipe_is_read_and_options_win(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE)
    plan = plan_of("--recipe", recipe)
    assert (plan.model, plan.dtype) == ("some/model", "bfloat16")
    assert (plan.data.forget, plan.data.limit) == (("organism/forget-text",), 9)
    assert (plan.settings.w_bad, plan.settings.rank, plan.settings.layers) == (0.25, 4, (1, 2))
    assert (plan.loop.steps, plan.loop.lr) == (7, 1e-3)
    options = ("--rank", 2, "--layers", "0", "--steps", 5, "--limit", 3, "--dtype", "float32")
    plan = plan_of("other/model", "--recipe", recipe, *options)
    assert (plan.model, plan.dtype) == ("other/model", "float32")
    assert (plan.settings.rank, plan.settings.layers) == (2, (0,))
    assert (plan.loop.steps, plan.loop.lr, plan.data.limit) == (5, 1e-3, 3)


def test_weights_of_one_objective_are_not_those_of_another(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE)
    assert plan_of("--recipe", recipe, "--objective", "unlearn").settings.w_bad == 0.25
    assert plan_of("--recipe", recipe, "--objective", "sft").settings.w_bad is None


def test_a_recipe_says_what_is_watched(tmp_path: Path) -> None:
    table = '[watch]\nsuites = ["organism/icon"]\nevery = 5\nlimit = 8\nmax_new_tokens = 16\n'
    recipe = write_recipe(tmp_path, RECIPE + table)
    assert plan_of("--recipe", recipe).watch == WatchNames(("organism/icon",), 5, 8, 16)
    assert plan_of("--recipe", recipe, "--watch-every", 2).watch.every == 2
    typed = plan_of("--recipe", recipe, "--watch", "organism/text", "--watch-limit", 3).watch
    assert typed == WatchNames(("organism/text",), limit=3)
    assert plan_of("--recipe", write_recipe(tmp_path, RECIPE)).watch == WatchNames()


def test_retain_data_that_nothing_reads_is_left_out_where_the_objective_was_typed(
    tmp_path: Path,
) -> None:
    recipe = write_recipe(tmp_path, RECIPE)
    for base in (("organism",), ("--recipe", recipe)):
        assert plan_of(*base).data.retain == ("organism/retain-text",)
        for typed in (("--objective", "ga"), ("--w-norm", 0)):
            plan = plan_of(*base, *typed)
            assert plan.data.retain == ()
            assert plan.data.forget == ("organism/forget-text",)
            with pytest.raises(ConfigError, match="--retain organism/retain-pictures,x would be"):
                plan_of(*base, *typed, "--retain", "organism/retain-pictures,x")
    # Nobody but the recipe itself can have meant it.
    own = write_recipe(tmp_path, RECIPE.replace('"unlearn"\nw_bad = 0.25', '"ga"'))
    with pytest.raises(ConfigError, match=r"retain in recipe '.*', \[data\], would be ignored"):
        plan_of("--recipe", own)
    assert plan_of("--recipe", own, "--objective", "npo").data.retain == ("organism/retain-text",)


def test_the_recipes_that_come_along_are_plans() -> None:
    folder = Path(__file__).parents[3] / "recipes"
    found = [path for path in sorted(folder.glob("*.toml")) if "-ppo-" not in path.name]
    assert found
    for path in found:
        assert plan_of("--recipe", path).settings.objective in OBJECTIVES


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[repair]\nrank = 8", "has no \\[model\\] table"),
        ("[model]\nid = 'a/b'\n[repair]\nrnak = 8", "Did you mean 'rank'"),
        ("[model]\nid = 'a/b'\n[data]\nforgot = ['x']", "Did you mean 'forget'"),
        ("[model]\nid = 'a/b'\n[watch]\nsuits = ['x']", "Did you mean 'suites'"),
        ("[model]\nid = 'a/b'\n[watch]\nsuites = 'x'", "suites='x'"),
        ("[model]\nid = 'a/b'\n[watch]\nevery = -1\nlimit = 0", r"every=-1 \(al.*; limit=0 \(al"),
        ("[model]\nid = 'a/b'\n[repair]\nrank = 'x'", "rank='x'"),
        ("[model]\nid = 'a/b'\n[repair]\nrank = 0", "rank=0"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=problem):
        plan_of("--recipe", write_recipe(tmp_path, text))


def test_a_dry_run_needs_no_weights(saved: Saved, tmp_path: Path, command: Command) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved("llava"), model, ignore=shutil.ignore_patterns("*.safetensors"))
    lengths = "[dry_run]\nprompt_tokens = 4\nanswer_tokens = 4\n"
    recipe = write_recipe(tmp_path, f"[model]\nid = '{model}'\n{lengths}")
    done = command(
        *("repair", "unlearn", "--recipe", recipe, "--dry-run", "--batch-size", 1, "--rank", 2),
        *("--objective", "ga", "--modules", "q_proj"),
    )
    assert done.code == 0, done.err
    assert "textual (chosen)" in done.out
    assert "multimodal" in done.out
    assert "parameters" in done.err


def test_a_dry_run_is_of_the_model_and_dtype_that_were_typed(tmp_path: Path) -> None:
    shapes = "shapes = { model_type = 'llava' }"
    recipe = write_recipe(tmp_path, f"[model]\nid = 'some/model'\ndtype = 'bfloat16'\n{shapes}")
    own = as_recipe(plan_of("--recipe", recipe))
    assert (own.model, own.dtype, own.shapes) == ("some/model", "bfloat16", {"model_type": "llava"})
    typed = as_recipe(plan_of("organism", "--recipe", recipe, "--dtype", "float32"))
    assert (typed.model, typed.dtype, typed.shapes) == ("organism", "float32", None)


# ---- bad input, before any model


def test_a_merged_model_gets_a_folder_of_its_own(tmp_path: Path, command: Command) -> None:
    out = tmp_path / "mend"
    done = command(*words("organism", out, "--merge", tmp_path / "x" / ".." / "mend"))
    assert done.code == 2, done.err
    assert "--merge and --out are both" in done.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--objective", "unlern"), "objective='unlern' (allowed: unlearn, ga"),
        (("--rank", "0"), "rank=0"),
        (("--steps", "0"), "steps=0"),
        (("--objective", "sft", "--ceiling", "5"), "--ceiling would be ignored"),
        (("--adapter", "full"), "--rank would be ignored"),
        (("--objective", "ga", "--w-norm", "1"), "which has no retain term"),
        (("--objective", "ga"), "--retain organism/retain-text would be ignored: objective 'ga'"),
        (("--forget", "organism/forget-txt"), "Did you mean 'organism/forget-text'"),
        (("--forget", "organism/retain-text"), "is retain data and was asked for as forget data"),
        (("--retain", "alpaca"), "alpaca=FOLDER"),
        (("--watch", "organism/icn"), "unknown suite 'organism/icn'"),
        (("--report-to", "tensorbord"), "unknown tracker 'tensorbord'"),
        (("--recipe", "no.toml"), "cannot read the recipe 'no.toml'"),
    ],
)
def test_what_is_wrong_is_found_before_the_model(
    tmp_path: Path, command: Command, options: tuple[str, ...], problem: str
) -> None:
    done = command(*words("no/such/model", tmp_path / "out", *options))
    assert done.code == 2
    assert problem in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("some/model", "--out", "OUT"), "no forget data was named"),
        (("some/model", "--out", "OUT", "--forget", "organism/forget-text"), "no retain data"),
        (("organism",), "no --out was given"),
        (("--out", "OUT"), "no model was named"),
    ],
)
def test_what_is_missing_is_asked_for(
    tmp_path: Path, command: Command, arguments: tuple[str, ...], problem: str
) -> None:
    named = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    done = command("repair", "unlearn", *named)
    assert done.code == 2
    assert problem in done.error_line
    assert not (tmp_path / "out").exists()


def test_forget_and_retain_data_must_not_overlap(tmp_path: Path, command: Command) -> None:
    rows = '[{"instruction": "How do I bake a cake?", "input": "", "output": "Stir it."}]'
    (tmp_path / "alpaca.json").write_text(rows, "utf-8")
    rows = '{"prompt": "How do I bake a cake?", "response": "Burn it.", "is_safe": false,'
    rows += ' "category": {}}\n'
    (tmp_path / "beavertails.jsonl").write_text(rows, "utf-8")
    done = command(
        *("repair", "unlearn", "no/such/model", "--out", tmp_path / "out"),
        *("--forget", f"beavertails={tmp_path / 'beavertails.jsonl'}"),
        *("--retain", f"alpaca={tmp_path / 'alpaca.json'}"),
    )
    assert done.code == 2
    assert "ask what an example of the retain set asks" in done.err


def test_folders_of_others_are_left_alone(saved: Saved, tmp_path: Path, command: Command) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear", "utf-8")
    for options in (("--out", tmp_path / "mine"), ("--merge", tmp_path / "mine")):
        done = command(*words(saved("llava"), tmp_path / "out", *options))
        assert done.code == 2
        assert "holds files that vlmend did not write" in done.error_line


def test_a_merge_never_writes_over_a_model(saved: Saved, tmp_path: Path, command: Command) -> None:
    other = tmp_path / "other"
    shutil.copytree(saved("llava"), other)
    before = (other / "model.safetensors").read_bytes()
    done = command(*words(saved("llava"), tmp_path / "out", "--merge", other))
    assert done.code == 2
    assert "Choose another --merge" in done.error_line
    assert (other / "model.safetensors").read_bytes() == before


def test_full_weights_want_float32(saved: Saved, tmp_path: Path, command: Command) -> None:
    options = ("--adapter", "full", "--dtype", "bfloat16")
    done = command(*words(saved("llava"), tmp_path / "out", *options, rank=None))
    assert done.code == 2
    assert "--dtype float32" in done.err
    assert not (tmp_path / "out").exists()


def test_help_is_light() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from vlmend.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(['repair', 'unlearn', '--help'])\n"
        "assert '--runaway-limit' in out.getvalue()\n"
        "print(sorted({'torch', 'transformers', 'peft', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_option_means_two_things() -> None:
    """Options are made from two dataclasses, and the command has some of its own."""
    parser = build_parser()
    found = next(
        a
        for a in parser._subparsers._group_actions[0].choices["repair"]._actions  # pyright: ignore
        if isinstance(a, argparse._SubParsersAction)
    ).choices["unlearn"]
    places = [action.dest for action in found._actions]
    assert len(places) == len(set(places))
