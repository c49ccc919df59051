"""What a person sees of a rehearsal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from harness.rehearsal import arguments
from harness.rehearsal.show import Result, Show, format_bytes
from harness.rehearsal.steps import STEPS

RESULTS = [
    Result("first full sync", ok=True, seconds=5.6, bytes_sent=83_400_000, detail="", rate=14.89),
    Result("nothing changed", ok=True, seconds=0.8, bytes_sent=0, detail=""),
    Result("cut link", ok=False, seconds=15.4, bytes_sent=25_200_000, detail="too late"),
]


def test_piped_results_are_plain_columns() -> None:
    stream = io.StringIO()
    Show(stream).table(RESULTS)
    assert stream.getvalue() == (
        "\n"
        "step                sent  seconds  MB/s  verdict\n"
        "first full sync  83.4 MB      5.6  14.9  ok\n"
        "nothing changed      0 B      0.8     -  ok\n"
        "cut link         25.2 MB     15.4     -  FAILED\n"
    )


def test_evidence_is_shown_and_cut_where_it_gets_long() -> None:
    stream = io.StringIO()
    evidence = tuple(f"line {number}" for number in range(100))
    Show(stream).result(Result("x", ok=False, seconds=0, bytes_sent=0, detail="problem", evidence=evidence))
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["  FAILED: problem", "    line 0"]
    assert len(lines) == 42 and lines[-1] == "    … and 60 lines more"


def test_a_name_that_the_output_cannot_show_is_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Show(stream).line("日本 \udcff")
    stream.flush()
    assert raw.getvalue() == b"\\u65e5\\u672c \\udcff\n"


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_the_readme_shows_the_table_of_a_rehearsal_that_held(name: str) -> None:
    text = (Path(__file__).parents[2] / name).read_text()
    shown = text.partition("<!-- output: rehearse -->\n```text\n")[2].partition("```\n")[0].splitlines()
    assert shown[0].split() == ["step", "sent", "seconds", "MB/s", "verdict"]
    # As it was held on a kernel without dm-crypt.
    names = [step.name for step in STEPS if not step.needs_encryption]
    rows = shown[1 : len(names) + 1]
    assert [row.split("  ")[0] for row in rows] == names
    assert all(row.endswith("  ok") for row in rows)
    assert shown[len(names) + 1 : len(names) + 3] == ["", f"all {len(names)} steps hold"]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (83_350_518, "83.4 MB"), (4_000_000_000_000, "4000.0 GB")],
)
def test_sizes_are_decimal(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


def test_a_step_that_does_not_exist_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments.parse(["--steps", "cut lin"])
    assert caught.value.code == 2
    assert (
        "there is no step 'cut lin'; there are: array created and opened, first full"
        in capsys.readouterr().err
    )


def test_steps_are_chosen_by_their_names() -> None:
    assert arguments.parse(["--steps", "cut link, wrong key"]).steps == ("cut link", "wrong key")


def test_help_names_every_step_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments.parse(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for words in ("first full sync", "renamed parents", "wrong key", "--keep", "Exit status: 0"):
        assert words in shown
