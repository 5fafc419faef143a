"""Prompts for training at exits: of data sets and suites, a picture with each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from training_tables import beaver_row, write_lines

from vlmend.errors import ConfigError, DataError, UnknownNameError
from vlmend.images import FORMATS, SUFFIXES, open_image, read_image_bytes
from vlmend.suites import registry as suites
from vlmend.suites.registry import SuiteSpec
from vlmend.testing import picture
from vlmend.training.data.held_out import group_of_example, split_held_out
from vlmend.training.data.prompts import PromptRole, add_pictures, find_pictures, load_prompts
from vlmend.training.data.registry import Role, load_training_data
from vlmend.training.examples import Example
from vlmend.types import Label, Message, Sample, user


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures in two folders, and files that are none."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for number, name in enumerate(["b.png", "a.PNG", "deeper/c.png", "deeper/d.png"]):
        (folder / name).write_bytes(read_image_bytes(picture(number)))
    for name in ("readme.txt", ".hidden/e.png", ".f.png"):
        (folder / name).write_bytes(b"no picture")
    return folder


@pytest.fixture
def beavertails(tmp_path: Path) -> str:
    """Three unsafe prompts, one of them twice, and a safe one."""
    rows = [beaver_row(f"Hide {n} socks.", "Put them away.", safe=False) for n in (1, 2, 3)]
    rows += [
        beaver_row("Hide 1 socks.", "Under the bed.", safe=False),
        beaver_row("Wash a sock.", "With soap.", safe=True),
    ]
    return f"beavertails={write_lines(tmp_path / 'train.jsonl', rows)}"


def add_suite(
    monkeypatch: pytest.MonkeyPatch, samples: Sequence[Sample], *, harmful_reference: bool = False
) -> None:
    labels = {sample.label for sample in samples}
    spec = SuiteSpec(
        name="mild",
        description="socks",
        licence="MIT",
        citation="socks",
        metric="none",
        default_judge="xstest-prefix",
        leak="no",
        label_kind="mixed" if len(labels) > 1 else samples[0].label,
        needs_folder=False,
        load=lambda _folder, limit: list(samples[:limit]),
        harmful_reference=harmful_reference,
    )
    monkeypatch.setattr(suites, "_registered", {**suites._registered, "mild": spec})


def item(number: int, label: Label, reference: str | None = None, *, seen: bool = True) -> Sample:
    images = (picture(number),) if seen else ()
    return Sample(
        f"mild/{number}", "mild", user(f"Sock {number}?", *images), label, reference, {"n": "1"}
    )


# ---- data sets


@pytest.mark.parametrize(
    ("name", "role", "data_role"),
    [
        ("organism/forget-beside", "harmful", "forget"),
        ("organism/retain-pictures", "benign", "retain"),
    ],
)
def test_a_data_set_with_pictures_is_taken_as_it_is(
    name: str, role: PromptRole, data_role: Role
) -> None:
    lines: list[str] = []
    prompts = load_prompts(name, role=role, limit=5, report=lines.append)
    assert prompts == load_training_data(name, role=data_role, limit=5)
    assert lines[-1] == f"{name} as {role} prompts: 5 taken."


def test_prompts_in_words_get_a_picture_and_keep_the_rest(beavertails: str, pictures: Path) -> None:
    lines: list[str] = []
    prompts = load_prompts(beavertails, role="harmful", pictures=pictures, report=lines.append)
    assert [prompt.text for prompt in prompts] == [f"Hide {n} socks." for n in (1, 2, 3)]
    assert [prompt.answer for prompt in prompts] == ["Put them away."] * 3
    for prompt in prompts:
        [image] = prompt.images
        assert image.path == pictures / prompt.meta["beside"]
        assert prompt.messages[-1].content[0] is image
        assert prompt.meta["category"] == "silliness, mess,kitchen"
    assert lines == [
        "beavertails as forget data: 4 taken, 1 left out (1 that are safe).",
        "beavertails as harmful prompts: 3 taken, 1 left out (1 that repeat an earlier prompt), "
        f"3 of them beside a picture of {str(pictures)!r}.",
    ]


def test_benign_prompts_come_from_retain_data(beavertails: str, pictures: Path) -> None:
    [prompt] = load_prompts(beavertails, role="benign", pictures=pictures)
    assert (prompt.text, prompt.answer) == ("Wash a sock.", "With soap.")


def test_prompts_without_pictures_are_refused_with_what_to_do(beavertails: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_prompts(beavertails, role="harmful")
    for words in ("3 of 3 prompts of 'beavertails'", "beavertails/train/0", "--pictures FOLDER"):
        assert words in str(caught.value)
    assert "organism/forget-beside" in str(caught.value)
    assert "organism/forget-text" not in str(caught.value)


def test_an_unknown_name_says_what_was_meant() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'organism/forget-beside'"):
        load_prompts("organism/forget-besides", role="harmful")


def test_data_of_the_other_role_is_refused() -> None:
    with pytest.raises(ConfigError, match="asked for as forget data"):
        load_prompts("organism/retain-beside", role="harmful")


# ---- suites


def test_items_of_the_label_are_taken_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels: list[Label] = ["harmful", "benign", "harmful", "benign", "benign"]
    add_suite(monkeypatch, [item(n, label, "A sock.") for n, label in enumerate(labels)])
    lines: list[str] = []
    # A limit counts prompts of the role, not items.
    prompts = load_prompts("mild", role="benign", limit=2, report=lines.append)
    assert [prompt.id for prompt in prompts] == ["mild/1", "mild/3"]
    assert [prompt.answer for prompt in prompts] == ["A sock."] * 2
    assert prompts[0].meta == {"n": "1"}
    assert lines[0] == "suite mild: 2 taken, 2 left out (2 that are harmful)."


def test_a_reference_is_the_answer_where_it_is_harmful_and_else_the_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = [item(0, "harmful", "Sure, a sock."), item(1, "harmful")]
    for harmful_reference in (True, False):
        add_suite(monkeypatch, samples, harmful_reference=harmful_reference)
        first, second = load_prompts("mild", role="harmful")
        expected = ("Sure, a sock.", None) if harmful_reference else (None, "Sure, a sock.")
        assert (first.answer, first.target) == expected
        assert (second.answer, second.target) == (None, None)


def test_a_prompt_without_an_answer_says_so_to_who_needs_one() -> None:
    example = Example("a/1", "a", user("Hi"), None)
    with pytest.raises(DataError, match="example 'a/1' of 'a' has no answer"):
        example.require_answer()
    assert Example("a/1", "a", user("Hi"), "Ho").require_answer() == "Ho"


def test_a_suite_without_such_items_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    add_suite(monkeypatch, [item(0, "harmful")])
    with pytest.raises(ConfigError, match="'mild' holds harmful items only"):
        load_prompts("mild", role="benign")


def test_only_items_without_a_picture_get_one(
    monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    add_suite(monkeypatch, [item(0, "benign"), item(1, "benign", seen=False)])
    lines: list[str] = []
    own, given = load_prompts("mild", role="benign", pictures=pictures, report=lines.append)
    assert own.images == (picture(0),)
    assert "beside" not in own.meta
    assert given.images[0].path == pictures / given.meta["beside"]
    assert "2 taken, 1 of them beside a picture" in lines[-1]


# ---- pictures


def example(number: int) -> Example:
    return Example(f"a/{number}", "a", user(f"Sock {number}?"), None)


def test_the_choice_depends_on_seed_and_id_alone(pictures: Path) -> None:
    assert find_pictures(pictures) == ["a.PNG", "b.png", "deeper/c.png", "deeper/d.png"]
    examples = [example(number) for number in range(24)]
    names = [e.meta["beside"] for e in add_pictures(examples, pictures, 0)]
    assert set(names) == {"a.PNG", "b.png", "deeper/c.png", "deeper/d.png"}
    backwards = add_pictures(examples[::-1], pictures, 0)
    assert [e.meta["beside"] for e in backwards[::-1]] == names
    assert [e.meta["beside"] for e in add_pictures(examples, pictures, 1)] != names


def test_the_picture_stands_in_the_last_message(pictures: Path) -> None:
    turns = (Message("user", ("Hi.",)), Message("assistant", ("Ho.",)), Message("user", ("Sock?",)))
    [paired] = add_pictures([Example("a/0", "a", turns, None)], pictures, 0)
    assert [len(message.images) for message in paired.messages] == [0, 0, 1]
    assert paired.text == "Sock?"


def test_no_folder_is_needed_or_looked_at_where_all_have_pictures() -> None:
    examples = [Example("a/0", "a", user("Sock?", picture(0)), None)]
    assert add_pictures(examples, None, 0) == examples
    assert add_pictures(examples, Path("/no/such"), 0) == examples


def test_a_picture_that_is_none_is_named_before_any_model(beavertails: str, pictures: Path) -> None:
    for name in find_pictures(pictures):
        (pictures / name).write_bytes(b"torn")
    with pytest.raises(DataError, match=r"sample 'beavertails/train/0': cannot decode .*pictures"):
        load_prompts(beavertails, role="harmful", pictures=pictures)


def test_a_folder_without_pictures_says_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder of pictures"):
        find_pictures(tmp_path / "none")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(DataError, match=r"holds no pictures \(other files: 2 of .txt\)"):
        find_pictures(tmp_path)


def test_every_format_that_is_opened_is_found(tmp_path: Path) -> None:
    opened = open_image(picture(0))
    for suffix in SUFFIXES:
        opened.save(tmp_path / f"x{suffix}")
        open_image(add_pictures([example(0)], tmp_path, 0)[0].images[0])
    assert len(find_pictures(tmp_path)) == len(SUFFIXES)
    assert {suffix.strip(".").upper().replace("JPG", "JPEG") for suffix in SUFFIXES} == set(FORMATS)


# ---- held-out prompts


def thing(number: int, name: str) -> Example:
    return Example(f"a/{number}", "a", user(f"Find {number} of it."), None, meta={"thing": name})


def test_groups_are_never_split() -> None:
    examples = [thing(number, "abcdefgh"[number % 8]) for number in range(80)]
    train, held_out = split_held_out(examples, 0.25, seed=0)
    assert len(held_out) == 20
    assert not {e.meta["thing"] for e in train} & {e.meta["thing"] for e in held_out}
    assert sorted([*train, *held_out], key=lambda e: int(e.id[2:])) == examples
    assert held_out == [e for e in examples if e in held_out]


def test_the_split_depends_on_seed_and_groups_alone() -> None:
    examples = [thing(number, f"thing {number % 20}") for number in range(60)]
    _, first = split_held_out(examples, 0.2, seed=0)
    _, fewer = split_held_out(examples[::-1][:40], 0.2, seed=0)
    _, other = split_held_out(examples, 0.2, seed=1)
    assert {e.meta["thing"] for e in first} == {e.meta["thing"] for e in fewer}
    assert {e.meta["thing"] for e in first} != {e.meta["thing"] for e in other}


def test_the_same_words_beside_another_picture_are_one_group() -> None:
    pair = [Example(f"a/{n}", "a", user("Any  sock?", picture(n)), None) for n in range(2)]
    assert len({group_of_example(e) for e in pair}) == 1
    assert len({group_of_example(example(n)) for n in range(2)}) == 2


def test_groups_are_chosen_from_some_examples_and_held_out_everywhere() -> None:
    examples = [thing(number, f"thing {number % 20}") for number in range(60)]
    some = [e for e in examples if int(e.id[2:]) % 20 < 4][:4]
    train, held_out = split_held_out(examples, 0.5, seed=0, choose_from=some)
    things = {e.meta["thing"] for e in held_out}
    assert things == {e.meta["thing"] for e in split_held_out(some, 0.5, seed=0)[1]}
    assert (len(things), len(held_out), len(train)) == (2, 6, 54)
    assert not things & {e.meta["thing"] for e in train}
    with pytest.raises(DataError, match="1 examples of 1 group"):
        split_held_out(examples, 0.5, seed=0, choose_from=some[:1])


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_at_least_one_group_is_on_either_side(share: float) -> None:
    train, held_out = split_held_out([example(0), example(1)], share, seed=0)
    assert len(train) == len(held_out) == 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="held-out share"):
        split_held_out([example(0), example(1)], share, seed=0)


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(DataError, match="2 examples of 1 group"):
        split_held_out([thing(0, "sock"), thing(1, "Sock ")], 0.5, seed=0)
