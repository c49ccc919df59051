"""Tests marked vm: collected here, run in a guest, reported as ours."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import command

if TYPE_CHECKING:
    from vmimages.image import Image

SESSION = "tests/vmimages/guest_session.py"
ROOT = Path(__file__).parents[2]


def session(tmp_path: Path, *words: str, ci: bool = False) -> tuple[command.Completed, dict[str, ET.Element]]:
    """Run the session with these words; return what it said, and its test cases by name."""
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--vm-results",
        tmp_path / "results",
    ]
    argv += [f"--junitxml={tmp_path / 'junit.xml'}", *words, SESSION]
    said = command.run(argv, ok=None, cwd=ROOT, env={"CI": "1" if ci else ""}, timeout_s=120)
    cases = ET.parse(tmp_path / "junit.xml").iter("testcase")  # noqa: S314 - pytest's own file
    return said, {str(case.get("name")): case for case in cases}


def outcome(case: ET.Element) -> tuple[str, str]:
    """Return how a case ended, and the words about it."""
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            return kind, f"{found.get('message')}\n{found.text}"
    return "passed", ""


def test_an_ordinary_session_leaves_them_out(tmp_path: Path) -> None:
    said, cases = session(tmp_path)
    assert not cases
    assert "6 deselected" in said.stdout


def test_each_outcome_is_reported_and_a_panic_fails_the_test_that_ran(image: Image, tmp_path: Path) -> None:
    said, cases = session(tmp_path, "-m", "vm", "--vm-image", image.name, "--vm-backend", "uml")
    found = {name: outcome(case) for name, case in cases.items()}
    assert {name: kind for name, (kind, _) in found.items()} == {
        "test_passes": "passed",
        "test_fails": "failure",
        "test_errs": "error",
        "test_skips": "skipped",
        "test_panics": "failure",
        "test_is_never_reached": "error",
    }, said.stdout
    assert "said by the guest" in found["test_fails"][1]
    assert "a broken fixture" in found["test_errs"][1]
    assert "no nowhere on PATH" in found["test_skips"][1]
    assert "sysrq triggered crash" in found["test_panics"][1]
    assert "not run: the guest failed during" in found["test_is_never_reached"][1]
    properties = {one.get("name"): one.get("value") for one in cases["test_passes"].iter("property")}
    assert properties["vm_image"] == image.name
    assert "sysrq triggered crash" in (tmp_path / "results" / image.name / "console").read_text()
    assert said.returncode == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(("ci", "kind"), [(False, "skipped"), (True, "error")])
def test_without_a_guest_they_are_skipped_and_in_ci_they_fail(tmp_path: Path, ci: bool, kind: str) -> None:
    said, cases = session(tmp_path, "-m", "vm", "--vm-image", "no-such-image", ci=ci)
    assert len(cases) == 6, said.stdout
    for case in cases.values():
        assert outcome(case)[0] == kind
        assert "no guest of no-such-image: " in outcome(case)[1]
