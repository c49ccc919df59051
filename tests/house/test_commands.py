"""The commands around the checks: what ends too late is killed, what fails is not forgotten."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness import command

ROOT = Path(__file__).parents[2]


def test_a_command_within_its_budget_keeps_its_status() -> None:
    done = command.run([ROOT / "tools/budget", "30", "sh", "-c", "echo said; exit 3"], ok=None)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "")


def test_a_command_that_exceeds_its_budget_is_killed_and_named() -> None:
    # It ignores every milder signal, as the first process of a contained session does.
    done = command.run(
        [ROOT / "tools/budget", "1", "sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"],
        ok=None,
        timeout_s=20,
    )
    assert done.returncode == 137
    assert "budget: killed after 1 s: sh -c" in done.stderr


@pytest.mark.parametrize(
    ("check", "rehearse", "status"),
    [(0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)],
    ids=["both pass", "the check fails", "the rehearsal fails", "both fail"],
)
def test_continuous_integration_runs_both_commands_and_forgets_no_failure(
    tmp_path: Path, check: int, rehearse: int, status: int
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    for name, ending in (("check", check), ("rehearse", rehearse)):
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\necho {name} with CI=$CI; exit {ending}\n")
        file.chmod(0o755)
    done = command.run([tmp_path / ".ci/run"], ok=None)
    assert done.returncode == status
    assert "check with CI=true" in done.stdout
    assert "rehearse with CI=true" in done.stdout


def test_the_check_passes_its_words_on_and_ends_with_the_status_of_tox(tmp_path: Path) -> None:
    for directory in ("tools", ".venv/bin"):
        (tmp_path / directory).mkdir(parents=True)
    shutil.copy(ROOT / "check", tmp_path / "check")
    (tmp_path / "tools/prepare.sh").write_text("prepare() { :; }\n")
    tox = tmp_path / ".venv/bin/tox"
    tox.write_text('#!/bin/sh\necho "tox $*"\ncase "$*" in *kernel*) exit 1 ;; esac\n')
    tox.chmod(0o755)
    passed = command.run([tmp_path / "check"])
    assert passed.stdout.splitlines() == ["tox run --colored no", "check: every environment passed"]
    failed = command.run([tmp_path / "check", "unit", "kernel", "--", "-k", "two words"], ok=None)
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[0] == "tox run --colored no -e unit,kernel -- -k two words"
    assert failed.stdout.splitlines()[-1] == "check: failed, see the lines above"


def test_the_rehearsal_takes_paths_relative_to_the_caller(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for directory in ("tools", ".venv/bin"):
        (clone / directory).mkdir(parents=True)
    shutil.copy(ROOT / "rehearse", clone / "rehearse")
    (clone / "tools/prepare.sh").write_text("prepare() { pwd >prepared-in; }\n")
    program = clone / ".venv/bin/btrsync-rehearse"
    program.write_text('#!/bin/sh\npwd; echo "$#: $*"\n')
    program.chmod(0o755)
    done = command.run([clone / "rehearse", "--source", "my data"], cwd=tmp_path)
    assert done.stdout.splitlines() == [str(tmp_path), "2: --source my data"]
    assert (clone / "prepared-in").read_text().strip() == str(clone)
