"""Which tests run where: the choice is made on the command line, and real machines are named there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import command

pytestmark = pytest.mark.rehearsal

ROOT = Path(__file__).parents[2]


def collected(*words: str, ok: tuple[int, ...] = (0,)) -> str:
    """Return what pytest says that it would run on a target; nothing is contacted."""
    argv = [sys.executable, "-m", "pytest", "tests/machines", "--collect-only", "-q", *words]
    said = command.run(argv, cwd=ROOT, ok=ok)
    return said.stdout + said.stderr


@pytest.mark.parametrize("target", ["vm", "production"])
def test_real_machines_are_refused_until_they_are_named(target: str) -> None:
    said = collected("--target", target, "--workstation", "local://", ok=(4,))
    assert f"--target {target} looks at machines that exist: name them with --server" in said


def test_production_runs_nothing_but_what_only_reads() -> None:
    said = collected("--target", "production", "--server", "daisy.local", "--workstation", "local://")
    tests = [line for line in said.splitlines() if "::" in line]
    assert {line.partition("::")[0] for line in tests} == {
        f"tests/machines/test_{name}.py" for name in ("both", "server", "workstation")
    }
    assert not [line for line in tests if line.endswith("::test_the_server_answers")]


def test_virtual_machines_are_tried_but_not_broken() -> None:
    said = collected(
        "--target", "vm", "--server", "ssh://root@daisy", "--workstation", "ssh://root@workstation"
    )
    tests = [line for line in said.splitlines() if "::" in line]
    assert [line for line in tests if line.endswith("::test_the_server_answers")]
    assert not [line for line in tests if "test_assertions_can_fail" in line]


def test_a_rehearsal_takes_no_names() -> None:
    assert "--server and --workstation belong to" in collected("--server", "daisy", ok=(4,))
