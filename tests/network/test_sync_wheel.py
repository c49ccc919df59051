"""What people install: the wheel, in a fresh venv on either end, and the forced command by its absolute path."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import command
from tests.network import mirror

if TYPE_CHECKING:
    from harness.host import Host
    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")

REPOSITORY = Path(__file__).parents[2]
PLACE = Path("/opt/btrsync")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "btrsync", "harness", "docs")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel, built of a copy, and those of all that it needs."""
    tree, built = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheels")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree)
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    constraints = REPOSITORY / "constraints.txt"
    argv += ["--constraint", str(constraints)] if constraints.exists() else []
    command.run([*argv, "--wheel-dir", built, tree], timeout_s=120)
    return built


def install(host: Host, wheels: Path) -> list[list[str]]:
    """Bring the wheels into a host and return the commands that install them there, without a network."""
    inside = host.path("/root/wheels")
    shutil.copytree(wheels, inside)
    # pip of the outer venv: to put one into each new venv takes longer than all the rest.
    pip = [sys.executable, "-m", "pip", "--python", str(PLACE), "--quiet", "--disable-pip-version-check"]
    return [
        [sys.executable, "-m", "venv", "--without-pip", str(PLACE)],
        [*pip, "install", "--no-compile", "--no-index", "--find-links", "/root/wheels", "btrsync-suite"],
    ]


def test_a_wheel_in_a_venv_on_both_ends_is_a_working_btrsync(both: TwoHosts, wheels: Path) -> None:
    hosts = (both.workstation, both.daisy)
    for step in zip(*(install(host, wheels) for host in hosts), strict=True):
        with both.workstation.spawn(step[0]) as one, both.daisy.spawn(step[1]) as other:
            assert one.wait(60) == 0, one.stderr
            assert other.wait(60) == 0, other.stderr
    where = [str(PLACE / "bin" / "python"), "-c", "import btrsync; print(btrsync.__file__)"]
    for host in hosts:
        assert host.run(where).stdout.startswith(f"{PLACE}/lib/")
    installed = PLACE / "bin" / "btrsync"
    mirror.bind(both, f"{installed} serve workstation")
    both.btrsync_path = installed
    mirror.assert_mirrored(both, both.sync())
    mirror.change(both)
    synced = both.sync()
    assert synced.outcome()["kind"] == "incremental"
    mirror.assert_mirrored(both, synced)
    assert f"'{installed} serve workstation'" in both.sshd.log_text()
    assert both.btrsync("config", "check").returncode == 0
