"""The page of the behaviours: it holds every one of them, and notices a kernel that does otherwise."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from tests.kernel import behaviour as records
from tests.kernel import behaviours_page as page
from tests.kernel import trial

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.requires("program:btrfs")

SEEN = records.Record(
    records.Behaviour("A name is taken once", "Names", "refused", "refuses too", "a guess", "tests/t.py::t"),
    [records.Step("mv /source/a /source/b", 0), records.Step("mkdir /source/b", 1, ("mkdir: taken",))],
    {"nothing is lost": True},
)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page that holds SEEN only, written on this machine."""
    file = tmp_path / "behaviours.md"
    file.write_text(page.format_page([SEEN], trial.versions().key))
    monkeypatch.setattr(trial, "PAGE", file)
    return file


def test_every_behaviour_has_its_section_and_every_section_its_behaviour() -> None:
    described = [each.name for each in page.described()]
    assert list(records.sections_of(trial.PAGE.read_text())) == described
    assert len(set(described)) == len(described)


def test_every_module_of_behaviours_is_on_the_page() -> None:
    others = {"page"}
    files = {file.stem.removeprefix("test_behaviours_") for file in page.HERE.glob("test_behaviours_*.py")}
    assert files - others == set(page.MODULES)


def test_the_page_says_what_it_was_written_on() -> None:
    assert records.written_on(trial.PAGE.read_text()).startswith("kernel ")


def test_what_was_seen_as_told_is_well(written: Path) -> None:
    trial.compare_with_page(SEEN)


@pytest.mark.parametrize(
    "otherwise",
    [
        dataclasses.replace(SEEN, steps=[SEEN.steps[0], records.Step("mkdir /source/b", 1, ("mkdir: no",))]),
        dataclasses.replace(
            SEEN, steps=[SEEN.steps[0], records.Step("mkdir /source/b", 2, ("mkdir: taken",))]
        ),
        dataclasses.replace(SEEN, steps=SEEN.steps[1:]),
        dataclasses.replace(SEEN, facts={"nothing is lost": False}),
        dataclasses.replace(SEEN, facts={}),
    ],
    ids=["other words", "another exit status", "a step less", "a fact that is none", "a fact less"],
)
def test_what_was_seen_otherwise_fails_with_the_difference(written: Path, otherwise: records.Record) -> None:
    with pytest.raises(pytest.fail.Exception, match="If this is right: python"):
        trial.compare_with_page(otherwise)


def test_other_words_of_other_versions_are_well_but_nothing_else_is(written: Path) -> None:
    written.write_text(page.format_page([SEEN], "kernel 4.18, btrfs-progs 5.1, coreutils 8.3"))
    said = dataclasses.replace(
        SEEN, steps=[SEEN.steps[0], records.Step("mkdir /source/b", 1, ("mkdir: no",))]
    )
    trial.compare_with_page(said)
    with pytest.raises(pytest.fail.Exception, match="exit status 2"):
        trial.compare_with_page(
            dataclasses.replace(SEEN, steps=[SEEN.steps[0], records.Step("mkdir /source/b", 2)])
        )


def test_a_behaviour_without_a_section_fails(written: Path) -> None:
    stranger = dataclasses.replace(SEEN, behaviour=dataclasses.replace(SEEN.behaviour, name="Another"))
    with pytest.raises(pytest.fail.Exception, match="Another"):
        trial.compare_with_page(stranger)


def test_what_was_seen_survives_as_data() -> None:
    document = json.loads(json.dumps(records.as_json([SEEN], trial.versions())))
    assert records.records_of(document, trial.versions().key) == [SEEN]
    assert records.records_of(document, "kernel 4.18, btrfs-progs 5.1, coreutils 8.3") == []


def test_what_varies_from_run_to_run_is_not_recorded() -> None:
    names = [("/tmp/x/source", "/source"), ("/tmp/x/source/trial-001", "/source")]
    text = "mv /tmp/x/source/trial-001/a /dev/loop17 6dd0b5a7-0000-4c6f-9c43-5e1e7c1dd1f6 id 300"
    assert records.normal(text, names) == "mv /source/a /dev/loopN <uuid> id N"


def test_a_behaviour_must_say_what_is_expected() -> None:
    def test_without(trial: trial.Trial) -> None:
        """It has a name.

        Expected: something.

        Source: a guess.
        """

    with pytest.raises(ValueError, match=r"lacks .*btrsync"):
        records.behaviour_of(test_without)
