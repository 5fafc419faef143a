from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from mild_samples import fit_samples, fitted, request, sample

from vlmend.audit import AuditPlan, LoadedSuite, SuitePlan, run_audit
from vlmend.errors import ArtifactError, ConfigError, UnknownNameError
from vlmend.evals.arms import BASE, Arm
from vlmend.repairs.protocol import (
    ARTIFACT_FILE,
    Fitted,
    load_repair,
    prompt_sha256,
    read_artifact,
    require_unseen,
)
from vlmend.repairs.shiftdc.repair import ShiftDC, ShiftDCSettings
from vlmend.suites.registry import get_suite, load_suite, suite_names
from vlmend.testing import picture, tiny_vlm
from vlmend.types import ImageRef, Sample, user


@dataclass
class FittedOn:
    """A repair as far as its items go."""

    fitted_items: Mapping[str, str] = field(default_factory=dict)
    name: str = "mender"


def fitted_on(samples: list[Sample]) -> FittedOn:
    return FittedOn({s.id: prompt_sha256(s) for s in samples})


# ---- artifacts


def test_no_artifact_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no repair artifact.*vlmend repair"):
        read_artifact(tmp_path / "nowhere")


def test_an_unknown_kind_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / ARTIFACT_FILE).write_text(json.dumps({"kind": "shiftd"}), "utf-8")
    with pytest.raises(UnknownNameError, match="Did you mean 'shiftdc'"):
        load_repair(tmp_path, tiny_vlm("llava"))


# ---- what was fitted on is not measured


def test_the_prompt_hash_reads_the_prompt_alone(tmp_path: Path) -> None:
    first = sample("a", "harmful", request(0))
    same = Sample("other/id", "other", request(0), "benign", reference="r", meta={"k": "v"})
    assert prompt_sha256(first) == prompt_sha256(same)
    image = picture(0)
    assert image.data is not None
    (tmp_path / "x.png").write_bytes(image.data)
    on_disk = user(first.text, ImageRef(path=tmp_path / "x.png"))
    assert prompt_sha256(first.with_messages(on_disk)) == prompt_sha256(first)
    others = [user("Other.", picture(0)), user(first.text, picture(1)), user(first.text)]
    others.append(user(first.text, picture(0), system="Be kind."))
    hashes = {prompt_sha256(first.with_messages(other)) for other in others}
    assert len(hashes | {prompt_sha256(first)}) == len(others) + 1


def test_unseen_items_pass() -> None:
    require_unseen(fitted_on(fit_samples()), [sample("t", "harmful", request(0))])


def test_a_repair_that_was_not_fitted_has_seen_nothing() -> None:
    require_unseen(object(), fit_samples())
    require_unseen(FittedOn(), fit_samples())


def test_the_same_prompt_under_another_name_was_seen() -> None:
    renamed = replace(fit_samples()[2], id="new/7", suite="new", label="benign")
    with pytest.raises(ConfigError, match=r"'mender' was fitted on.*1 of suite 'new' \(new/7\)"):
        require_unseen(fitted_on(fit_samples()), [renamed])


def test_the_same_item_in_other_words_was_seen() -> None:
    reworded = fit_samples()[0].with_messages(user("Hi"))
    with pytest.raises(ConfigError, match="mild/h0"):
        require_unseen(fitted_on(fit_samples()), [reworded])


def test_the_overlap_is_counted_by_suite() -> None:
    seen = fit_samples()
    measured = [
        *(replace(s, suite="a") for s in seen[:5]),
        replace(seen[5], suite="b"),
        sample("t", "harmful", request(0)),
    ]
    message = (
        "5 of suite 'a' (mild/h0, mild/b0, mild/h1, ...); 1 of suite 'b' (mild/h2). Numbers on"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        require_unseen(fitted_on(seen), measured)


def test_shiftdc_remembers_its_items_over_the_disk(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    repair = fitted(vlm)
    for candidate in (repair, ShiftDC.load(repair.save(tmp_path), vlm)):
        assert isinstance(candidate, Fitted)
        assert candidate.fitted_items == fitted_on(fit_samples()).fitted_items
        with pytest.raises(ConfigError, match="fitted on items that are to be measured"):
            require_unseen(candidate, fit_samples()[-1:])


def test_an_audit_on_fitted_items_is_refused_before_it_begins(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    plan = SuitePlan("organism/icon")
    measured = tuple(replace(s, id=f"organism/icon/{s.id}") for s in fit_samples())
    loaded = LoadedSuite(plan, get_suite("organism/icon"), measured)
    with pytest.raises(ConfigError, match=r"6 of suite 'mild'"):
        run_audit(
            vlm,
            AuditPlan((plan,)),
            tmp_path / "run",
            arms=(BASE, Arm("mended", (fitted(vlm),))),
            suites=(loaded,),
        )
    assert not (tmp_path / "run").exists()


def test_a_repair_that_does_not_fit_stops_an_audit_before_it_begins(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    repair = fitted(vlm)
    other = tiny_vlm("llava", seed=1)
    plan = SuitePlan("organism/icon")
    loaded = LoadedSuite(
        plan, get_suite("organism/icon"), (sample("t", "harmful", user("Hi", picture())),)
    )
    for model, repairs, error in (
        (other, (repair,), ArtifactError),
        (vlm, (repair, repair), ConfigError),
    ):
        with pytest.raises(error):
            run_audit(
                model,
                AuditPlan((plan,)),
                tmp_path / "run",
                arms=(BASE, Arm("mended", repairs)),
                suites=(loaded,),
            )
        assert not (tmp_path / "run").exists()


def test_the_organisms_fit_suite_shares_nothing_with_the_others() -> None:
    limit = 72
    repair = fitted_on(load_suite("organism/fit", limit))
    others = [n for n in suite_names() if n.startswith("organism/") and n != "organism/fit"]
    assert len(others) >= 8
    for name in others:
        require_unseen(repair, load_suite(name, limit))


def test_default_settings_are_shared_by_no_two_repairs() -> None:
    first, second = ShiftDC(), ShiftDC()
    assert first.captions is not second.captions
    assert first.settings == ShiftDCSettings()
