"""The user's configuration mapped onto rehearsal hosts: what is kept, replaced, refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from harness.rehearsal.problems import CannotRehearse
from harness.rehearsal.user_config import KEY_DIRECTORY, map_table

FILE = Path("/etc/btrsync/btrsync.toml")
TABLE: dict[str, Any] = {
    "targets": {
        "daisy": {"host": "daisy.example.org", "key": "/root/.ssh/id_real", "known_hosts": "/root/kh"},
        "usb": {"path": "/mnt/usb/btrsync"},
    },
    "jobs": {
        "share": {
            "subvolume": "/home/foo/share",
            "snapshots": "/home/foo/share/snapshots",
            "targets": ["daisy", "usb"],
            "snapshot_name": "s-%Y%m%d%H%M%S",
            "clone_sources": 1,
        }
    },
}


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the table with one value changed, or added."""
    table = copy.deepcopy(TABLE)
    *tables, key = path.split(".")
    inner = table
    for name in tables:
        inner = inner.setdefault(name, {})
    inner[key] = value
    return table


def problems_of(table: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(CannotRehearse) as caught:
        map_table(FILE, table)
    assert caught.value.exit_status == 3
    return caught.value.problems


def test_names_and_paths_stay_as_they_are() -> None:
    mapped = map_table(FILE, TABLE)
    (job,) = mapped.jobs
    assert (job.name, job.subvolume, job.snapshots) == (
        "share",
        Path("/home/foo/share"),
        Path("/home/foo/share/snapshots"),
    )
    assert job.targets == ("daisy", "usb")
    assert job.settings == {"snapshot_name": "s-%Y%m%d%H%M%S", "clone_sources": 1}
    daisy, usb = mapped.targets
    assert (daisy.name, daisy.host, daisy.client) == ("daisy", "daisy.example.org", "workstation")
    assert (usb.name, usb.path) == ("usb", Path("/mnt/usb/btrsync"))


def test_nothing_mapped_names_a_real_key_or_known_hosts() -> None:
    daisy = map_table(FILE, TABLE).targets[0]
    assert daisy.key_file == KEY_DIRECTORY / "daisy"
    assert "known_hosts" not in daisy.settings and "key" not in daisy.settings


def test_several_servers_are_several_clients_of_the_rehearsal_server() -> None:
    table = changed("targets.offsite", {"host": "offsite.example.org", "port": 2222})
    table["jobs"]["music"] = {
        "subvolume": "/home/foo/music",
        "snapshots": "/home/foo/music/snapshots",
        "targets": ["offsite"],
    }
    clients = {target.name: (target.client, target.port) for target in map_table(FILE, table).targets}
    assert clients == {"daisy": ("daisy", 22), "usb": ("workstation", 22), "offsite": ("offsite", 2222)}


def test_several_servers_of_one_job_are_refused_by_name() -> None:
    table = changed("targets.offsite", {"host": "offsite.example.org"})
    table["jobs"]["share"]["targets"].append("offsite")
    (problem,) = problems_of(table)
    assert "jobs.share.targets" in problem
    assert "one of them at a time" in problem


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "fe80::1%eth0"])
def test_an_address_becomes_the_name_of_the_rehearsal_server(address: str) -> None:
    mapped = map_table(FILE, changed("targets.daisy.host", address))
    assert mapped.targets[0].host == "daisy"
    assert any(address in note and "not contacted" in note for note in mapped.notes)


def test_a_target_that_no_job_names_is_left_out_aloud() -> None:
    mapped = map_table(FILE, changed("targets.unused", {"host": "x.example.org", "user": "backup"}))
    assert [target.name for target in mapped.targets] == ["daisy", "usb"]
    assert any("unused" in note for note in mapped.notes)


def test_ssh_options_that_only_say_how_to_speak_are_kept() -> None:
    options = ["Ciphers=aes128-ctr", "serveraliveinterval=7"]
    mapped = map_table(FILE, changed("targets.daisy.ssh_options", options))
    assert mapped.targets[0].settings["ssh_options"] == options


@pytest.mark.parametrize(
    "option",
    ["ProxyJump=bastion", "ProxyCommand=nc %h %p", "Hostname=real", "IdentityFile=/root/k", "Include=/x"],
)
def test_an_ssh_option_that_could_lead_out_is_refused_by_name(option: str) -> None:
    (problem,) = problems_of(changed("targets.daisy.ssh_options", ["Ciphers=aes128-ctr", option]))
    assert "targets.daisy.ssh_options" in problem and option in problem and "Ciphers" not in problem


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hooks", {"before": "/usr/local/bin/notify-me"}),
        ("jobs.share.before", "/usr/local/bin/stop-database"),
        ("targets.daisy.wake_command", "wakeonlan"),
        ("targets.daisy.user", "backup"),
        ("targets.usb.path", "/backup"),
        ("jobs.share.subvolume", "/"),
        ("jobs.share.subvolume", "/usr"),
        ("jobs.share.subvolume", "/proc/self"),
    ],
)
def test_a_setting_that_cannot_be_mapped_is_refused_by_name(path: str, value: object) -> None:
    problems = problems_of(changed(path, value))
    assert any(problem.startswith(f"{FILE}: {path}: ") for problem in problems), problems


def test_all_problems_are_named_at_once() -> None:
    table = changed("targets.daisy.user", "backup")
    table["targets"]["daisy"]["ssh_options"] = ["ProxyJump=bastion"]
    table["jobs"]["share"]["subvolume"] = "/"
    named = {problem.split(": ")[1] for problem in problems_of(table)}
    assert named >= {"targets.daisy.user", "targets.daisy.ssh_options", "jobs.share.subvolume"}


def test_two_jobs_of_one_subvolume_are_refused() -> None:
    table = changed("jobs.again", dict(TABLE["jobs"]["share"]))
    assert any("jobs.again.subvolume" in problem for problem in problems_of(table))


def test_a_target_within_the_mirrored_subvolume_is_refused() -> None:
    problems = problems_of(changed("targets.usb.path", "/home/foo/share/backups"))
    assert any("targets.usb.path" in problem and "jobs.share.subvolume" in problem for problem in problems)


def test_a_configuration_without_jobs_is_refused() -> None:
    assert any("jobs" in problem for problem in problems_of({"targets": TABLE["targets"], "jobs": {}}))
