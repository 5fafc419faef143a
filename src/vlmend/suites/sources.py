"""Where each data set can be fetched from, for `vlmend data prepare NAME`.

One `Source` per published data set; several suites may read the same one, and every one is fetched
at one commit, so that two runs ask the same. Where `AT_HAND` names a source, files of its commit
were read and tested here. The other commits were seen in public code that loads or fetches this
very repository at them, and no file of theirs was fetched here; what was at hand from elsewhere is
compared by SHA-256. For a source in `UNPINNED` no commit could be found: its current one is looked
up when it is fetched, and noted. What no program may fetch (a form to sign, a drive that asks for
a browser) says in steps what to do by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Source:
    """Where a data set is published.

    Attributes:
        kind: "github" repository, "hub" data set, or "manual".
        repo: "owner/name".
        revision: The commit that is fetched unless another is asked for; empty for the current,
            see `UNPINNED`.
        files: Paths in the repository; on the hub they may hold "*".
        folders: Folders of a GitHub repository, with all that is in them. The whole commit comes
            over the line for them.
        archives: Which of the fetched files are unpacked where they lie; may hold "*".
        num_bytes: What comes over the line, as far as it is known beforehand.
        gated: Whether one must log in and accept terms first.
        steps: What is left to do by hand, in order; "{folder}" stands for the data set's folder.
        sha256: Path -> SHA-256 of files that were at hand.
        page: Web page, for a manual source.
    """

    kind: Literal["github", "hub", "manual"]
    repo: str = ""
    revision: str = ""
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    num_bytes: int | None = None
    gated: bool = False
    steps: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])
    page: str = ""

    @property
    def url(self) -> str:
        """Its web page."""
        if self.kind == "manual":
            return self.page
        host = "github.com" if self.kind == "github" else "huggingface.co/datasets"
        return f"https://{host}/{self.repo}"


def find_source(suite: str) -> tuple[str, Source] | None:
    """The source of a suite's data, with its name; None where there is none.

    A source serves the suites that have its name or begin with it, as "figstep" serves
    "figstep-tiny"; of several the longest name counts.
    """
    fitting = [
        name for name in SOURCES if suite == name or suite.startswith((f"{name}-", f"{name}/"))
    ]
    if not fitting:
        return None
    name = max(fitting, key=len)
    return name, SOURCES[name]


_COCO_VAL2014 = (
    "Fetch http://images.cocodataset.org/zips/val2014.zip (about 6 GB; the pictures have licences "
    "of their own) and unpack it in {folder}, so that they lie in {folder}/val2014/."
)

_JAILBREAKV = ("JailbreakV-28K/JailBreakV-28k", "f949ca582fff13d396ac8fce59596afafb2b78d3")

_BEHAVIORS = "data/behavior_datasets/harmbench_behaviors_"

_SEEM = tuple(
    f"output/seem/{name}/{name}_pope_seem_{kind}.json"
    for name in ("aokvqa", "gqa")
    for kind in ("random", "popular", "adversarial")
)

_SAFETY: dict[str, Source] = {
    "advbench": Source(
        "github",
        "llm-attacks/llm-attacks",
        "098262edf85f807224e70ecd87b9d83716bf6b73",
        files=("data/advbench/harmful_behaviors.csv",),
        num_bytes=82_125,
        sha256={
            "data/advbench/harmful_behaviors.csv": (
                "6cd1a5c63c07610d7eb67307772ee5606017ee950b5770ab288a2c487489d3e1"
            )
        },
    ),
    "beavertails": Source(
        "hub",
        "PKU-Alignment/BeaverTails",
        "8401fe609d288129cc684a9b3be6a93e41cfe678",
        files=("round0/30k/test.jsonl.*",),
    ),
    "catqa": Source(
        "hub",
        "declare-lab/CategoricalHarmfulQA",
        "321e068b391b7d1aeeb882ac468356a9513c9167",
        files=("data/catqa_english.json",),
    ),
    "figstep": Source(
        "github",
        "ThuCCSLab/FigStep",
        "0861b17b3d67887c06ee3534ec65b3012f9becb7",
        folders=("data",),
        archives=("data/images/FigStep-Pro/sub-figures.zip",),
        num_bytes=27_000_000,
    ),
    "hades": Source("hub", "Monosail/HADES", files=("data/test-*.parquet",)),
    "harmbench": Source(
        "github",
        "centerforaisafety/HarmBench",
        "8e1604d1171fe8a48d8febecd22f600e462bdcdd",
        files=tuple(f"{_BEHAVIORS}{part}.csv" for part in ("text_val", "text_test")),
        folders=("data/behavior_datasets", "data/multimodal_behavior_images"),
        sha256={
            f"{_BEHAVIORS}text_val.csv": (
                "7bfaaa5e2b9b95002c89e2d33c019f58e9e8496e2fc65d368f1eeb8179e69534"
            ),
            f"{_BEHAVIORS}text_test.csv": (
                "75d257b3e7428c52eb7b0154318f455af3e01b09a3794b5e2f3d36054f3c0e29"
            ),
            f"{_BEHAVIORS}multimodal_all.csv": (
                "e5274f049579f359cca997b3ade3cc4539e2e131ad5d9bf51ba0d7ce3f3a7ad4"
            ),
        },
    ),
    "hh-rlhf-harmless": Source(
        "github",
        "anthropics/hh-rlhf",
        "354e5c3cb8960630860dd5774a6ac2a58313bf4d",
        files=("harmless-base/test.jsonl.gz",),
        num_bytes=742_801,
    ),
    "holisafe": Source(
        "hub",
        "etri-vilab/holisafe-bench",
        files=("holisafe_bench.json", "images/*"),
        gated=True,
    ),
    "jailbreakbench": Source(
        "hub",
        "JailbreakBench/JBB-Behaviors",
        "886acc352a31533ffbcf4ef22c744658688086fc",
        files=("data/harmful-behaviors.csv", "data/benign-behaviors.csv"),
        num_bytes=43_686,
    ),
    "jailbreakv-28k": Source(
        "hub",
        *_JAILBREAKV,
        files=("*README.md", "*JailBreakV_28K.csv", "*figstep/*", "*transfer*", "*query_related/*"),
        steps=(
            "The hub holds some of the pictures only. Fetch the others from the link in its "
            "README.md into {folder}, beside JailBreakV_28K.csv.",
        ),
    ),
    "mm-safetybench": Source(
        "github",
        "isXinLiu/MM-SafetyBench",
        "b80eedea3db312c09ded2082813390f68e750ef3",
        files=("TinyVersion_ID_List.json",),
        folders=("data/processed_questions",),
        steps=(
            "Fetch the pictures from the Google Drive that README.md of "
            "https://github.com/isXinLiu/MM-SafetyBench names, and unpack them into "
            "{folder}/data/imgs/. The suites without pictures do without.",
        ),
    ),
    "mossbench": Source(
        "github",
        "xirui-li/MOSSBench",
        "8d68b0614b39d8990a508e03d99975832f399db2",
        folders=("data", "data_contrast"),
        num_bytes=885_000_000,
    ),
    "pku-saferlhf": Source(
        "hub",
        "PKU-Alignment/PKU-SafeRLHF",
        "9421ffafec3fa40a1f1a7d567b4d525079477ecb",
        files=("data/*/test.jsonl",),
    ),
    "redteam-2k": Source("hub", *_JAILBREAKV, files=("*RedTeam_2K.csv",), num_bytes=216_000),
    "siuo": Source(
        "github",
        "sinwang20/SIUO",
        "18974b65d238ad636d65d238541c7d75279ebb3e",
        files=("data/siuo_gen.json", "data/siuo_mcqa.json"),
        num_bytes=869_285,
        steps=(
            "Fetch the pictures from the Google Drive that README.md of "
            "https://github.com/sinwang20/SIUO names, and unpack them into {folder}/data/images/.",
        ),
    ),
    "strongreject": Source(
        "github",
        "alexandrasouly/strongreject",
        "f7cad6c17e624e21d8df2278e918ae1dddb4cb56",
        files=("strongreject_dataset/strongreject_dataset.csv",),
        num_bytes=56_359,
    ),
    "vlguard": Source(
        "hub",
        "ys-zong/VLGuard",
        "b0be37a1ab7accb14e10d6a0ec3ce62cfaff2d46",
        files=("test.json", "test.zip"),
        archives=("test.zip",),
        gated=True,
    ),
    "vlsbench": Source(
        "hub",
        "Foreshhh/vlsbench",
        "b56f6f6aad102fdb53f46e35fec96836bbe13001",
        files=("data.json", "imgs.tar"),
        archives=("imgs.tar",),
    ),
    "xstest": Source(
        "github",
        "paul-rottger/exaggerated-safety",
        "d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d",
        files=("xstest_prompts.csv",),
        num_bytes=38_719,
    ),
}

_UTILITY: dict[str, Source] = {
    "llava-bench-coco": Source(
        "github",
        "haotian-liu/LLaVA",
        "c121f0432da27facab705978f83c4ada465e46fd",
        files=(
            "playground/data/coco2014_val_qa_eval/qa90_questions.jsonl",
            "playground/data/coco2014_val_qa_eval/qa90_gpt4_answer.jsonl",
            "llava/eval/table/caps_boxes_coco2014_val_80.jsonl",
        ),
        num_bytes=112_121,
        steps=(_COCO_VAL2014,),
    ),
    "mm-vet": Source(
        "manual",
        page="https://github.com/yuweihao/MM-Vet",
        steps=(
            "Fetch https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip and unpack "
            "it in {folder}.",
        ),
    ),
    "mmbench": Source(
        "manual",
        page="https://github.com/open-compass/MMBench",
        steps=(
            "Fetch a table of the development split (.tsv) from the links on "
            "https://github.com/open-compass/MMBench into {folder}.",
        ),
    ),
    "mme": Source(
        "manual",
        page="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models",
        gated=True,
        steps=(
            "Ask for the data as branch Evaluation of "
            "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models says.",
            "Unpack MME_Benchmark_release_version.zip in {folder}.",
        ),
    ),
    "nlvr": Source(
        "github",
        "lil-lab/nlvr",
        "18924841aa96d519cfb8584f0945350f07a6d860",
        folders=("nlvr/dev",),
        num_bytes=288_000_000,
    ),
    "pope": Source(
        "github",
        "AoiDragon/POPE",
        "08d957b917e5a378a2f99d35b6293c536a66298b",
        files=(
            *(f"output/coco/coco_pope_{k}.json" for k in ("random", "popular", "adversarial")),
            *_SEEM,
            "POPEv2/dataset/annotations.json",
        ),
        num_bytes=4_116_736,
        steps=(
            _COCO_VAL2014,
            "For pope-gqa: fetch https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip and "
            "unpack it in {folder}/output/seem/gqa/.",
            "For pope-v2: fetch POPEv2/dataset/images.zip of https://github.com/AoiDragon/POPE "
            "and COCO's train2017, and unpack them in {folder}/POPEv2/dataset/ (images/ and "
            "coco/train2017/).",
        ),
    ),
    "truthfulqa": Source(
        # A copy: the authors' own file has fewer questions since 2025.
        "github",
        "benedictflorance/truthfulqa_experiments",
        "6fdfd38288e86296582a584694df5cf43d1f634a",
        files=("datasets/TruthfulQA.csv",),
        num_bytes=443_719,
        sha256={
            "datasets/TruthfulQA.csv": (
                "99d6ae7755e3b435eade956068c9de7c0c474770344237aeb66b56519ba4b697"
            )
        },
    ),
    "vqav2": Source(
        "manual",
        page="https://visualqa.org/download.html",
        steps=(
            "Fetch questions and annotations of the validation split (balanced real images) from "
            "https://visualqa.org/download.html and unpack them in {folder}.",
            _COCO_VAL2014,
        ),
    ),
}

SOURCES: dict[str, Source] = {**_SAFETY, **_UTILITY}
"""By name; see `find_source` for the suites that each serves."""

AT_HAND = frozenset(
    {
        "figstep",
        "hh-rlhf-harmless",
        "llava-bench-coco",
        "mossbench",
        "nlvr",
        "pope",
        "siuo",
        "truthfulqa",
        "xstest",
    }
)
"""Sources of which files of the pinned commit itself were read here."""

UNPINNED = frozenset({"hades", "holisafe"})
"""Sources that a program fetches and for which no commit was found in public code."""
