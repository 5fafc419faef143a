"""What to diagnose, and the suites for it, checked before a model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from vlmend.diagnosis.four_sets import check_samples
from vlmend.diagnosis.maps import MAPS
from vlmend.errors import ConfigError, DataError, UnknownNameError
from vlmend.evals.run import check_images
from vlmend.judges.registry import get_judge
from vlmend.suites.registry import SuiteSpec, find_suite, load_suite
from vlmend.types import Sample


@dataclass(frozen=True)
class DiagnosisPlan:
    """What to diagnose.

    Attributes:
        suites: "NAME" or "NAME=FOLDER": harmful and benign items, with images; none with `only`.
        exit_suite: Suite with images on which vision exits are measured; None leaves exits out.
        vqa_suite: Utility suite with images for grounding; None leaves it out.
        limit: First so many items of every suite; None for all.
        exit_limit: First so many items of the suites for exits and grounding; None for `limit`.
        control_items: Harmful items that are also asked with control pictures.
        judge: Judge of answers to harmful requests; None for each suite's default judge. Questions
            about pictures are always judged by their suite's own, which knows the answers.
        max_new_tokens: Length limit of an answer.
        caption_source: "self": the model's own captions; "given": `meta["caption"]` of the items.
            Control pictures are captioned by the model in either case.
        caption_tokens: Length limit of a self-caption.
        batch_size: Prompts a batch; None chooses.
        maps: Of "pca", "tsne" and "pacmap" (which needs the extra "maps").
        question: Question of self-classification; "{request}" stands for the item's request.
        reward_model: Folder or id of a sequence classifier that scores answers; None for none.
        toxicity: "detoxify", "perspective", or "organism" for what stands in for them in its world;
            None for neither.
        only: "exits" for the answers at vision exits and nothing else, which is quick and the only
            diagnosis of a repaired model; None for everything.
        seed: Of resampling and maps.
        title: Title of the page.
    """

    suites: tuple[str, ...]
    exit_suite: str | None = None
    vqa_suite: str | None = None
    limit: int | None = 120
    exit_limit: int | None = None
    control_items: int = 40
    judge: str | None = None
    max_new_tokens: int = 64
    caption_source: Literal["self", "given"] = "self"
    caption_tokens: int = 128
    batch_size: int | None = None
    maps: tuple[str, ...] = ("pca", "tsne")
    question: str | None = None
    reward_model: str | None = None
    toxicity: Literal["detoxify", "organism", "perspective"] | None = None
    only: Literal["exits"] | None = None
    seed: int = 0
    title: str = "Safety diagnosis"

    def __post_init__(self) -> None:
        if self.only is None and not self.suites:
            raise ConfigError("no suite to diagnose on. Name at least one with --suite.")
        if self.only is not None and (self.suites or self.exit_suite is None):
            raise ConfigError(
                f"a diagnosis of exits alone needs an exit suite (given: {self.exit_suite}) and no "
                f"others (given: {', '.join(self.suites) or 'none'}). Name the one suite with "
                "--exit-suite."
            )
        for name in self.maps:
            if name not in MAPS:
                raise UnknownNameError("map", name, MAPS)

    def record(self) -> dict[str, Any]:
        """What decides numbers; a whole diagnosis says nothing of there being others."""
        left_out = {"batch_size", "title"} | (set() if self.only else {"only"})
        return {key: value for key, value in asdict(self).items() if key not in left_out}


@dataclass(frozen=True)
class LoadedSuite:
    """A suite with its items.

    Attributes:
        name: Its name.
        spec: What it is.
        samples: Its items, up to the limit.
    """

    name: str
    spec: SuiteSpec
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class LoadedDiagnosis:
    """Suites whose names, files and pictures are known to be good.

    Attributes:
        plan: What was asked for.
        suites: Those of the modality diagnosis.
        exits: The suite for exits, if any.
        vqa: The suite for grounding, if any.
    """

    plan: DiagnosisPlan
    suites: tuple[LoadedSuite, ...]
    exits: LoadedSuite | None
    vqa: LoadedSuite | None

    @property
    def all(self) -> tuple[LoadedSuite, ...]:
        """Every suite once."""
        given = (*self.suites, *(s for s in (self.exits, self.vqa) if s is not None))
        return tuple({suite.name: suite for suite in given}.values())

    @property
    def samples(self) -> list[Sample]:
        """The items of the modality diagnosis."""
        return [sample for suite in self.suites for sample in suite.samples]


def load_plan(plan: DiagnosisPlan) -> LoadedDiagnosis:
    """Find out all that can be wrong with suites and judges; needs no model.

    Raises:
        UnknownNameError: No such suite or judge.
        ConfigError: A folder is missing or not wanted.
        DataError: A file, row or image cannot be used, a label is missing among the items with
            images, or a suite for exits has no such items.
    """
    if plan.judge is not None:
        get_judge(plan.judge)

    def load(name: str, limit: int | None) -> LoadedSuite:
        spec = find_suite(name)
        get_judge(plan.judge or spec.default_judge)
        return LoadedSuite(spec.name, spec, tuple(load_suite(name, limit)))

    at_exits = plan.exit_limit or plan.limit
    loaded = LoadedDiagnosis(
        plan,
        tuple(load(name, plan.limit) for name in plan.suites),
        load(plan.exit_suite, at_exits) if plan.exit_suite else None,
        load(plan.vqa_suite, at_exits) if plan.vqa_suite else None,
    )
    if plan.only is None:
        check_samples(loaded.samples)
    if loaded.vqa is not None and not any(sample.images for sample in loaded.vqa.samples):
        raise DataError(
            f"suite {loaded.vqa.name!r} has no images, so no answer depends on a picture. Name a "
            "suite of questions about pictures."
        )
    if loaded.exits is not None and not harmful_with_images(loaded.exits):
        raise DataError(
            f"suite {loaded.exits.name!r} has no harmful item with an image, so there is no attack "
            "success at vision exits. Name another --exit-suite, or leave exits out."
        )
    check_images(sample for suite in loaded.all for sample in suite.samples)
    return loaded


def harmful_with_images(suite: LoadedSuite) -> list[Sample]:
    """The items of a suite on which an attack through pictures can succeed."""
    return [sample for sample in suite.samples if sample.images and sample.label == "harmful"]
