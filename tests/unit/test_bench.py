"""The benchmark's arithmetic, its command line, and the page of its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.bench import page, stage
from harness.bench.__main__ import options_of
from harness.bench.figures import FIGURES
from harness.bench.row import absolute, paired
from harness.bench.rows import ROWS
from harness.command import Completed
from harness.scenario import Synced

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/performance.md"
MACHINE = {
    "kernel": "6.1.0", "cores": 2, "processor": "A processor", "has_aes": True, "memory_gib": 8.0,
    "python": "3.11.2", "versions": {"btrfs-progs": "6.2"}, "commit": "0123abc", "time": "2026-11-23T01:00:00",
}  # fmt: skip


class Sides:
    """Two sides whose figures are given, and the order in which they were measured."""

    def __init__(self, ours: list[float], theirs: list[float]) -> None:
        self.order = ""
        self._figures = {"a": iter(ours), "b": iter(theirs)}

    def side(self, letter: str) -> Callable[[], float]:
        def measure() -> float:
            self.order += letter
            return next(self._figures[letter])

        return measure


def row_of(
    ours: list[float], theirs: list[float], *, target: float | None = 1.05, name: str = "full-mixed"
) -> Any:
    sides = Sides(ours, theirs)
    row = paired(
        name, sides.side("a"), sides.side("b"), pairs=len(ours), target=target, baseline="the other",
        details={"beside it, s": [3.0, 1.0, 2.0]},
    )  # fmt: skip
    return row, sides.order


# ---------------------------------------------------------------------------------------- pairing


def test_every_second_pair_is_measured_in_the_other_order() -> None:
    assert row_of([1, 1, 1, 1, 1], [1, 1, 1, 1, 1])[1] == "abbaabbaab"


def test_the_ratio_is_the_median_of_the_pairs_and_not_that_of_the_medians() -> None:
    # The machine became four times slower for the last pair: its ratio is as good as the others'.
    row, _ = row_of([10, 12, 48], [10, 10, 40])
    assert (row.ours, row.theirs, row.ratio) == (12, 10, 1.2)
    row, _ = row_of([1, 2, 6], [1, 4, 4])
    assert (row.ours / row.theirs, row.ratio) == (0.5, 1)
    assert row.pairs == ((1, 1), (2, 4), (6, 4))


@pytest.mark.parametrize(("target", "is_met"), [(1.2, True), (1.19, False), (None, True)])
def test_a_target_is_met_by_what_equals_it_and_judged_only_if_there_is_one(
    target: float | None, is_met: bool
) -> None:
    row, _ = row_of([12, 12, 12], [10, 10, 10], target=target)
    assert row.ok == row.as_json()["ok"] == is_met
    assert ("MISSED" in str(row)) == (not is_met)


def test_a_row_without_another_side_is_its_own_median() -> None:
    row = absolute("cpu", Sides([5, 1, 2], []).side("a"), runs=3, target=2, unit="s")
    assert (row.ours, row.theirs, row.ratio, row.ok) == (2, None, 2, True)
    assert row.pairs == ((5, None), (1, None), (2, None))


# ------------------------------------------------------------------------------------------- rows


def test_every_promised_figure_has_a_row() -> None:
    assert set(FIGURES) <= set(ROWS)
    assert options_of(["--rows", "all"]).names == [name for name in ROWS if name in FIGURES]


@pytest.mark.parametrize(
    "words",
    [
        ["--rows", "full-mixed,nosuch"], ["--rows", ","], ["--pairs", "0"], ["--scale", "0"], ["--scale", "2"],
        ["--page", "docs/performance.md"], ["--from", "result.json"],
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options_of(words)
    assert ended.value.code == 2


def test_what_a_run_says_of_its_programs_is_read_word_for_word() -> None:
    said = (
        "12:00:00 + btrfs send --quiet --no-data -- /s/1\n"
        "12:00:01 + nice -n 5 btrfs send --quiet --proto 2 -- '/s/with blank'\n"
        "12:00:02 btrfs: status 0 after 1.000 s\nshare → daisy: sent\n"
    )
    synced = Synced.of(Completed(("btrsync",), 0, "", said))
    assert stage.commands_of(synced, "btrfs send") == [
        ["btrfs", "send", "--quiet", "--no-data", "--", "/s/1"],
        ["btrfs", "send", "--quiet", "--proto", "2", "--", "/s/with blank"],
    ]
    with pytest.raises(LookupError):
        stage.commands_of(synced, "ssh -T")


# ------------------------------------------------------------------------------------------- page


def result_of(*rows: Any, scale: float = 1) -> dict[str, Any]:
    text = json.dumps(
        {"scale": scale, "machine": MACHINE, "rows": [row.as_json() for row in rows], "failed": {}}
    )
    return dict(json.loads(text))


def test_the_page_shows_what_was_measured_and_what_was_not() -> None:
    met, _ = row_of([10, 10, 12], [10, 10, 10])
    bad, _ = row_of([10, 13, 12], [10, 10, 10], name="one-large-file")
    cpu = absolute("cpu-per-gib", lambda: 0.75, runs=1, target=1, unit="s CPU per GiB")
    before = f"# Title\n\n{page.BEGIN}\nold\n{page.END}\n\nafter\n"
    text = page.written(before, result_of(met, bad, cpu))
    assert text.startswith("# Title\n\n") and text.endswith(f"\n{page.END}\n\nafter\n") and "old" not in text
    assert (
        "| `full-mixed` | full sync of a mixed tree, 52,000 files, 1 GiB: btrsync / raw pipe | ≤ 1.05 | 1.00 | met |"
        in text
    )
    assert "| ≤ 1.03 | 1.20 | **missed** |" in text
    assert "| `cpu-per-gib` | 0.75 s CPU per GiB | | 0.75 |" in text
    assert "| `full-mixed` | beside it, s | 2.00 |" in text
    assert text.count("| not measured |") == len(FIGURES) - 3
    assert "at commit 0123abc: 2 cores of A processor (with AES)" in text
    assert page.missed(text) == ["one-large-file"]
    assert page.written(text, result_of(met, bad, cpu)) == text


def test_a_run_at_another_scale_does_not_reach_the_page() -> None:
    with pytest.raises(page.PageError, match=re.escape("scale 0.05")):
        page.written(PAGE.read_text(), result_of(scale=0.05))


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(page.PageError, match="needs the two lines"):
        page.written(f"# Title\n{page.BEGIN}\n", result_of())


def unexplained(text: str) -> list[str]:
    """Return the rows that a page calls missed and does not speak of where it says where the time goes."""
    words = text.partition("## Where the time goes")[2]
    return [name for name in page.missed(text) if f"`{name}`" not in words]


def test_the_page_names_every_promise_and_says_where_the_time_goes_in_a_missed_one() -> None:
    text = PAGE.read_text()
    for name, figure in FIGURES.items():
        assert f"| `{name}` | {figure.text} | ≤ {figure.target:g} |" in text
        assert f"`{name}`" in text.partition("The rows:")[2]
    assert unexplained(text) == []


def test_a_missed_row_that_is_not_spoken_of_is_seen() -> None:
    bad, _ = row_of([13], [10], name="one-large-file")
    planted = page.written(PAGE.read_text().partition("## Where the time goes")[0], result_of(bad))
    assert unexplained(planted) == ["one-large-file"]
