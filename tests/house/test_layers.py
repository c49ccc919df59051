"""Each import law is broken on purpose once, and seen to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.house.conftest import Checkout

ONE_WAY = "btrsync: imports run one way"
SYSTEM = "btrsync.system: process lies below all others, pipeline just above it"
PURE = "plan and errors decide and touch nothing"
PYBTRFS = "pybtrfs is known to system.btrfs alone"
HARNESS = "harness: imports run one way"
MACHINES = "vmimages: imports run one way"
ABOVE = "machines know hosts, and nobody but the tests knows machines"
METER = "a meter is not made of what it measures"


@pytest.mark.parametrize(
    ("path", "text", "law"),
    [
        pytest.param(
            "btrsync/target.py", "import btrsync.sync", ONE_WAY, id="a lower room imports a higher one"
        ),
        pytest.param(
            "btrsync/source.py", "import btrsync.remote", ONE_WAY, id="neighbours import each other"
        ),
        pytest.param("btrsync/newcomer.py", "", ONE_WAY, id="a new module of btrsync has no place yet"),
        pytest.param("btrsync/system/newcomer.py", "", SYSTEM, id="a new module of system has no place yet"),
        pytest.param("harness/newcomer.py", "", HARNESS, id="a new module of the harness has no place yet"),
        pytest.param(
            "btrsync/system/process.py", "import btrsync.system.files", SYSTEM, id="process imports another"
        ),
        pytest.param("btrsync/plan/names.py", "import subprocess", PURE, id="plan imports subprocess"),
        pytest.param("btrsync/plan/names.py", "import tempfile", PURE, id="plan imports tempfile"),
        pytest.param("btrsync/errors.py", "import socket", PURE, id="errors imports socket"),
        pytest.param("btrsync/errors.py", "import fcntl", PURE, id="errors imports fcntl"),
        pytest.param("btrsync/target.py", "import pybtrfs", PYBTRFS, id="target imports pybtrfs"),
        pytest.param("harness/wait.py", "import btrsync.errors", METER, id="the harness imports btrsync"),
        pytest.param("btrsync/report.py", "import harness.wait", METER, id="btrsync imports the harness"),
        pytest.param("vmimages/newcomer.py", "", MACHINES, id="a new module of vmimages has no place yet"),
        pytest.param("vmimages/cache.py", "import btrsync.errors", ABOVE, id="machines import btrsync"),
        pytest.param("harness/wait.py", "import vmimages.errors", ABOVE, id="the harness imports machines"),
    ],
)
def test_a_wrong_import_breaks_its_law(checkout: Checkout, path: str, text: str, law: str) -> None:
    checkout.plant(path, text)
    done = checkout.run("lint-imports", "--no-cache")
    assert done.returncode == 1, done.stdout
    assert f"{law} BROKEN" in done.stdout


def test_the_laws_hold_without_an_offence(checkout: Checkout) -> None:
    done = checkout.run("lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout
    assert "BROKEN" not in done.stdout
