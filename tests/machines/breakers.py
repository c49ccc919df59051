"""What makes a rightly set-up machine wrong: one fault for each assertion, put back on leaving."""

from __future__ import annotations

import contextlib
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import command, filesystem, sshd
from harness.filesystem import OPTIONS, Array
from harness.scenario import CLIENT_FILE, KEY_FILE, MIRROR_ROOT, SERVER_FILE, SERVER_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from harness.host import Host
    from harness.scenario import TwoHosts

STRANGER = sshd.Key("ed25519", "root@stranger")


@dataclass(frozen=True, slots=True)
class Breaker:
    """says: words of the assertion's failure, so that it fails for this reason and no other."""

    broken: Callable[[TwoHosts], AbstractContextManager[None]]
    says: str


# ------------------------------------------------------------------------------- kinds of faults


@contextlib.contextmanager
def _mode(host: Host, path: Path | str, mode: int) -> Iterator[None]:
    file = host.path(path)
    before = stat.S_IMODE(file.stat().st_mode)
    file.chmod(mode)
    try:
        yield
    finally:
        file.chmod(before)


@contextlib.contextmanager
def _text(host: Host, path: Path | str, old: str, new: str) -> Iterator[None]:
    before = host.read_text(path)
    assert old in before, f"{path} has no {old!r}"
    mode = stat.S_IMODE(host.path(path).stat().st_mode)
    host.write_text(path, before.replace(old, new), mode=mode)
    try:
        yield
    finally:
        host.write_text(path, before, mode=mode)


@contextlib.contextmanager
def _planted(host: Host, path: str, script: str) -> Iterator[None]:
    host.write_text(path, f"#!/bin/sh\n{script}\n", mode=0o755)
    try:
        yield
    finally:
        host.path(path).unlink()


@contextlib.contextmanager
def _remounted(host: Host, options: str, back: str) -> Iterator[None]:
    host.run(["mount", "-o", f"remount,{options}", MIRROR_ROOT])
    try:
        yield
    finally:
        host.run(["mount", "-o", f"remount,{back}", MIRROR_ROOT])


@contextlib.contextmanager
def _mounted_over(host: Host, kind: str, options: str, source: Path | str) -> Iterator[None]:
    host.run(["mount", "-t", kind, "-o", options, source, MIRROR_ROOT])
    try:
        host.path(SERVER_ROOT).mkdir(exist_ok=True)
        yield
    finally:
        host.run(["umount", MIRROR_ROOT])


# --------------------------------------------------------------------------------- single faults


@contextlib.contextmanager
def _no_sshd(both: TwoHosts) -> Iterator[None]:
    both.sshd.__exit__()
    try:
        yield
    finally:
        both.sshd.__enter__()


@contextlib.contextmanager
def _another_subvolume(both: TwoHosts) -> Iterator[None]:
    other = MIRROR_ROOT / "other"
    both.daisy.run(["btrfs", "subvolume", "create", other])
    try:
        # A bind mount: the kernel refuses the same filesystem twice in one place otherwise.
        with _mounted_over(both.daisy, "none", "bind", other):
            yield
    finally:
        both.daisy.run(["btrfs", "subvolume", "delete", other])


@contextlib.contextmanager
def _a_member_missing(both: TwoHosts) -> Iterator[None]:
    with Array(2, 256 << 20, data="raid1", label="Degraded") as array:
        with filesystem.mount(array, "/mnt/whole", host=both.daisy):
            pass
        command.run(["btrfs", "device", "scan", "--forget", *array.devices])
        inside = both.daisy.add_device(array.devices[0])
        try:
            with _mounted_over(both.daisy, "btrfs", f"degraded,{OPTIONS},subvol=mirror", inside):
                yield
        finally:
            both.daisy.remove_device(inside)


@contextlib.contextmanager
def _a_passphrase(both: TwoHosts) -> Iterator[None]:
    both.workstation.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "a secret", "-f", KEY_FILE])
    try:
        yield
    finally:
        both.client_key().install(both.workstation, KEY_FILE)


def _sshd_says(old: str, new: str) -> Callable[[TwoHosts], AbstractContextManager[None]]:
    return lambda both: _text(both.daisy, sshd.DROP_IN, old, new)


def _daisys_key_line(old: str, new: str) -> Callable[[TwoHosts], AbstractContextManager[None]]:
    return lambda both: _text(both.daisy, sshd.AUTHORIZED_KEYS, old, new)


def _on_daisy(path: Path | str, mode: int) -> Callable[[TwoHosts], AbstractContextManager[None]]:
    return lambda both: _mode(both.daisy, path, mode)


def _on_workstation(path: Path | str, mode: int) -> Callable[[TwoHosts], AbstractContextManager[None]]:
    return lambda both: _mode(both.workstation, path, mode)


def _client_file(old: str, new: str) -> Callable[[TwoHosts], AbstractContextManager[None]]:
    return lambda both: _text(both.workstation, CLIENT_FILE, old, new)


# --------------------------------------------------------------------------------- for each one

SERVER = {
    "test_only_root_may_write_roots_home": Breaker(_on_daisy("/root", 0o777), "root:root 0777"),
    "test_roots_ssh_directory_is_private": Breaker(_on_daisy("/root/.ssh", 0o777), "0777 directory"),
    "test_authorized_keys_is_private": Breaker(_on_daisy(sshd.AUTHORIZED_KEYS, 0o666), "0666 regular"),
    "test_roots_shell_can_run_a_forced_command": Breaker(
        lambda both: _text(both.daisy, "/etc/passwd", "root:/bin/bash", "root:/usr/sbin/nologin"),
        "nologin runs nothing",
    ),
    "test_roots_account_has_not_expired": Breaker(
        lambda both: _text(
            both.daisy, "/etc/shadow", "root:*:19700:0:99999:7:::", "root:*:19700:0:99999:7::1:"
        ),
        "expired on day 1",
    ),
    "test_a_key_is_bound_to_btrsync_serve": Breaker(_daisys_key_line("serve", "sever"), "no key of root's"),
    "test_every_key_bound_to_btrsync_is_restricted": Breaker(
        _daisys_key_line("restrict,", ""), "without restrict"
    ),
    "test_every_forced_command_has_an_absolute_path": Breaker(
        lambda both: _text(both.daisy, sshd.AUTHORIZED_KEYS, str(both.btrsync_path), "btrsync"),
        "not absolute",
    ),
    "test_every_forced_command_can_be_executed": Breaker(
        _daisys_key_line("/btrsync serve", "/btrsink serve"), "not executable"
    ),
    "test_every_forced_command_names_one_client": Breaker(
        _daisys_key_line("serve workstation", "serve"), "no client is named"
    ),
    "test_sshd_lets_root_in_for_forced_commands_only": Breaker(
        _sshd_says("PermitRootLogin forced-commands-only", "PermitRootLogin yes"),
        "'yes' == 'forced-commands-only'",
    ),
    "test_sshd_uses_pam": Breaker(_sshd_says("Port 22", "Port 22\nUsePAM no"), "'no' == 'yes'"),
    "test_sshd_takes_public_keys": Breaker(
        # In a block that only this connection meets: it is not enough to ask without -C.
        lambda both: _text(
            both.daisy,
            sshd.CONFIG,
            "Subsystem",
            "Match Address 10.77.0.1\nPubkeyAuthentication no\nMatch all\nSubsystem",
        ),
        "'no' == 'yes'",
    ),
    "test_sshd_reads_roots_authorized_keys": Breaker(
        _sshd_says("Port 22", "Port 22\nAuthorizedKeysFile /etc/ssh/keys/%u"), "/etc/ssh/keys/%u"
    ),
    "test_sshd_forces_no_command_of_its_own": Breaker(
        _sshd_says("Port 22", "Port 22\nForceCommand /bin/true"), "'/bin/true' == 'none'"
    ),
    "test_sshd_looks_at_modes": Breaker(_sshd_says("Port 22", "Port 22\nStrictModes no"), "'no' == 'yes'"),
    "test_sshd_listens": Breaker(_no_sshd, "nothing listens at port 22"),
    "test_the_backups_lie_on_btrfs": Breaker(
        lambda both: _mounted_over(both.daisy, "tmpfs", "size=1m", "none"), "'tmpfs' == 'btrfs'"
    ),
    "test_the_subvolume_mirror_is_mounted": Breaker(_another_subvolume, "subvol=/mirror/other"),
    "test_the_array_is_mounted_noatime": Breaker(
        lambda both: _remounted(both.daisy, "bind,strictatime", "bind,noatime"), "mounted with rw,compress"
    ),
    "test_the_array_compresses_by_lzo": Breaker(
        lambda both: _remounted(both.daisy, "compress-force=zstd", "compress-force=lzo"),
        "compress-force=zstd",
    ),
    "test_the_array_can_be_written": Breaker(
        lambda both: _remounted(both.daisy, "bind,ro,noatime", "bind,rw,noatime"), "mounted with ro,"
    ),
    "test_the_array_has_all_its_members": Breaker(_a_member_missing, "not all of 2 members"),
    "test_btrfs_progs_is_new_enough": Breaker(
        lambda both: _planted(both.daisy, "/usr/local/sbin/btrfs", "echo btrfs-progs v5.10.1"),
        "v5.10.1 is older than",
    ),
    "test_only_root_may_write_where_the_backups_are": Breaker(
        _on_daisy(SERVER_ROOT, 0o770), "root:root 0770 directory"
    ),
    "test_only_root_may_write_the_servers_configuration": Breaker(
        _on_daisy(SERVER_FILE, 0o666), "root:root 0666 regular"
    ),
    "test_the_servers_configuration_has_no_mistakes": Breaker(
        lambda both: _text(both.daisy, SERVER_FILE, "root =", "rooot ="), "rooot"
    ),
}

WORKSTATION = {
    "test_roots_ssh_directory_is_private": Breaker(_on_workstation("/root/.ssh", 0o777), "0777 directory"),
    "test_the_private_key_is_private": Breaker(_on_workstation(KEY_FILE, 0o640), "0640 regular"),
    "test_the_private_key_needs_no_passphrase": Breaker(_a_passphrase, "passphrase"),
    "test_the_servers_name_resolves": Breaker(
        lambda both: _text(both.workstation, "/etc/hosts", "daisy", "lily"), "daisy does not resolve"
    ),
    "test_known_hosts_has_the_server_under_its_name": Breaker(
        lambda both: _text(both.workstation, sshd.KNOWN_HOSTS, "daisy", "lily"), "daisy is not in"
    ),
    "test_only_root_may_write_the_configuration": Breaker(
        _on_workstation(CLIENT_FILE, 0o666), "root:root 0666 regular"
    ),
    "test_the_configuration_has_no_mistakes": Breaker(_client_file("subvolume =", "subvolum ="), "subvolum"),
    "test_the_configuration_gives_no_warnings": Breaker(_on_workstation(KEY_FILE, 0o644), "warning"),
    "test_every_job_has_a_subvolume": Breaker(
        _client_file('subvolume = "/home/foo/share"', 'subvolume = "/home/foo/share/snapshots"'),
        "no subvolumes",
    ),
    "test_every_snapshot_directory_is_on_its_filesystem": Breaker(
        _client_file("/home/foo/share/snapshots", "/root"), "on another filesystem: ['/root']"
    ),
    "test_btrfs_progs_runs": Breaker(
        lambda both: _planted(both.workstation, "/usr/local/sbin/btrfs", "echo no >&2; exit 127"),
        "btrfs --version: no",
    ),
}

BOTH = {
    "test_the_workstations_key_is_bound_on_the_server": Breaker(
        lambda both: _text(both.daisy, sshd.AUTHORIZED_KEYS, both.client_key().public, STRANGER.public),
        "bound to no forced command",
    ),
    "test_known_hosts_has_the_key_that_the_server_has": Breaker(
        lambda both: _text(
            both.workstation,
            sshd.KNOWN_HOSTS,
            sshd.host_key("daisy", "ed25519").public.split()[1],
            STRANGER.public.split()[1],
        ),
        "a key is known that the server has not",
    ),
    "test_the_clocks_agree": Breaker(
        lambda both: _planted(both.daisy, "/usr/local/sbin/date", 'exec /usr/bin/date --date=tomorrow "$@"'),
        "the clocks differ",
    ),
    "test_the_server_answers": Breaker(_no_sshd, "btrsync sync --dry-run"),
}
