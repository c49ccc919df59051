"""The two READMEs say the same: headings, code, links, statuses; and the table of statuses is the program's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from btrsync.commands.statuses import EXIT_STATUSES

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shape:
    """What must be the same in every language."""

    heading_levels: list[int]
    code: list[tuple[str, str]]
    links: list[str]
    inline_code: set[str]
    outputs: list[str]


def shape(text: str) -> Shape:
    """Return the shape of a page; prose, and comments inside code, are left out."""
    code = [(language, re.sub(r"(?m)^\s*#.*\n", "", body)) for language, body in FENCE.findall(text)]
    prose = FENCE.sub("", text)
    return Shape(
        heading_levels=[len(marks) for marks in re.findall(r"(?m)^(#+) ", prose)],
        code=code,
        links=re.findall(r"\]\(([^)]*)\)", prose),
        inline_code={word for word in re.findall(r"`([^`\n]+)`", prose) if word != "forced command"},
        outputs=re.findall(r"(?m)^<!-- output: (\w+) -->$", text),
    )


@pytest.fixture(scope="module")
def english() -> str:
    return (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def japanese() -> str:
    return (ROOT / "README.ja.md").read_text()


def test_both_languages_have_the_same_headings_commands_and_links(english: str, japanese: str) -> None:
    assert shape(japanese) == shape(english)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n### ", "\n## "),
        ("btrsync sync --dry-run\n", "btrsync sync\n"),
        ("docs/glossary.md", "docs/words.md"),
        ("`btrsync config sample`", "`btrsync config`"),
        ("<!-- output: check -->", ""),
    ],
    ids=[
        "a heading of another level",
        "another command",
        "another link",
        "another inline command",
        "an output lost",
    ],
)
def test_a_translation_that_fell_behind_is_seen(english: str, japanese: str, old: str, new: str) -> None:
    assert old in japanese
    assert shape(japanese.replace(old, new, 1)) != shape(english)


def test_the_two_commands_stand_on_the_first_screen(english: str) -> None:
    first_screen = english.splitlines()[:45]
    assert first_screen.index("./rehearse") < first_screen.index("./check")


def test_the_japanese_page_is_written_in_japanese(japanese: str) -> None:
    prose = FENCE.sub("", japanese)
    paragraphs = [
        line for line in prose.splitlines() if line and not line.startswith(("<!--", "`/etc", "|---"))
    ]
    not_japanese = [line for line in paragraphs if not re.search("[ぁ-んァ-ヶ一-龠]", line)]
    assert not_japanese == ["# btrsync"]


def test_the_table_of_exit_statuses_is_the_programs(english: str, japanese: str) -> None:
    rows = [(row.status, row.meaning) for row in EXIT_STATUSES]
    assert re.findall(r"(?m)^\| (\d\S*) \| (.*) \|$", english) == rows
    assert re.findall(r"(?m)^\| (\d\S*) \| ", japanese) == [status for status, _meaning in rows]
