"""What a rightly set-up workstation looks like. One assertion each: test_assertions_can_fail.py sees it fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.machines import files
from tests.machines.inventory import CLIENT_FILE

if TYPE_CHECKING:
    from tests.machines.inventory import Machines

pytestmark = [pytest.mark.readonly, pytest.mark.requires("root")]

SUBVOLUME_INODE = "256"
"""Of the root directory of every subvolume. Source: BTRFS_FIRST_FREE_OBJECTID, fs/btrfs."""


def test_roots_ssh_directory_is_private(workstation: Any) -> None:
    assert files.owners_and_mode(workstation, "/root/.ssh") == "root:root 0700 directory"


def test_the_private_key_is_private(workstation: Any, machines: Machines) -> None:
    key = machines.target_of_server()["key"]
    assert files.owners_and_mode(workstation, key) == "root:root 0600 regular file"


def test_the_private_key_needs_no_passphrase(workstation: Any, machines: Machines) -> None:
    # A timer has nobody to ask.
    read = workstation.run("ssh-keygen -y -P '' -f %s", machines.target_of_server()["key"])
    assert read.rc == 0, read.stderr


def test_the_servers_name_resolves(workstation: Any, machines: Machines) -> None:
    name = machines.target_of_server()["host"]
    assert workstation.run("getent ahosts %s", name).rc == 0, f"{name} does not resolve"


def test_known_hosts_has_the_server_under_its_name(workstation: Any, machines: Machines) -> None:
    target = machines.target_of_server()
    name = target["host"] if target["port"] == 22 else f"[{target['host']}]:{target['port']}"
    found = workstation.run("ssh-keygen -F %s -f %s", name, target["known_hosts"])
    assert found.rc == 0, f"{name} is not in {target['known_hosts']}"


def test_only_root_may_write_the_configuration(workstation: Any) -> None:
    assert files.who_may_write(workstation, CLIENT_FILE) == "root alone"


def test_the_configuration_has_no_mistakes(workstation: Any, machines: Machines) -> None:
    checked = workstation.run("%s config check", machines.btrsync)
    assert checked.rc == 0, checked.stderr


def test_the_configuration_gives_no_warnings(workstation: Any, machines: Machines) -> None:
    checked = workstation.run("%s config check", machines.btrsync)
    assert "warning" not in checked.stderr, checked.stderr


def test_every_job_has_a_subvolume(workstation: Any, machines: Machines) -> None:
    paths = [job["subvolume"] for job in machines.client_configuration()["jobs"].values()]
    wrong = [path for path in paths if _kind(workstation, path) != f"btrfs {SUBVOLUME_INODE}"]
    assert wrong == [], f"no subvolumes: {wrong}"


def test_every_snapshot_directory_is_on_its_filesystem(workstation: Any, machines: Machines) -> None:
    jobs = machines.client_configuration()["jobs"].values()
    wrong = [
        job["snapshots"]
        for job in jobs
        if _filesystem(workstation, job["snapshots"]) != _filesystem(workstation, job["subvolume"])
    ]
    assert wrong == [], f"on another filesystem: {wrong}"


def test_btrfs_progs_runs(workstation: Any) -> None:
    said = workstation.run("btrfs --version")
    assert said.rc == 0 and "btrfs-progs v" in said.stdout, f"btrfs --version: {said.stdout}{said.stderr}"


def _kind(machine: Any, path: str) -> str:
    """Return the filesystem and the inode number of a directory: "btrfs 256" for a subvolume."""
    said = machine.run("stat --file-system --format %%T -- %s && stat --format %%i -- %s", path, path)
    return " ".join(said.stdout.split())


def _filesystem(machine: Any, path: str) -> str:
    """Return the UUID of a btrfs, which all its subvolumes share; their device numbers differ."""
    return str(machine.run("findmnt --noheadings --output UUID --target %s", path).stdout.strip())
