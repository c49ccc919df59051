"""A real sshd with PAM, forced commands and both kinds of key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness import sshd, wait

if TYPE_CHECKING:
    from harness.command import Completed
    from harness.host import Host
    from harness.sshd import Kind, Sshd

pytestmark = pytest.mark.requires("host", "veth", "sshd")


def ssh(workstation: Host, *words: str, key: str = "/root/.ssh/btrsync") -> Completed:
    options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes"]
    return workstation.run(["ssh", *options, "-i", key, *words], ok=None)


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_a_key_runs_its_forced_command_and_nothing_else(
    kind: Kind, workstation: Host, daisy: Host, daisy_sshd: Sshd
) -> None:
    key = sshd.Key(kind)
    key.install(workstation)
    sshd.authorize(daisy, key, command='echo "forced $SSH_ORIGINAL_COMMAND"; exit 3')
    sshd.trust(workstation, daisy)
    said = ssh(workstation, "daisy", "rm", "-rf", "/")
    assert (said.returncode, said.stdout, said.stderr) == (3, "forced rm -rf /\n", "")
    assert "Starting session: forced-command (key-option)" in daisy_sshd.log_text()


def test_a_key_without_a_forced_command_is_refused(workstation: Host, daisy: Host, daisy_sshd: Sshd) -> None:
    key = sshd.Key()
    key.install(workstation)
    sshd.authorize(daisy, key)
    sshd.trust(workstation, daisy)
    assert ssh(workstation, "daisy", "true").returncode == 255
    wait.until(lambda: "ROOT LOGIN REFUSED FROM" in daisy_sshd.log_text(), timeout_s=5, what="the refusal")


def test_a_stranger_s_key_is_refused(workstation: Host, daisy: Host, daisy_sshd: Sshd) -> None:
    sshd.Key(comment="stranger").install(workstation)
    sshd.authorize(daisy, sshd.Key(), command="true")
    sshd.trust(workstation, daisy)
    said = ssh(workstation, "daisy")
    assert said.returncode == 255 and "Permission denied (publickey" in said.stderr
    assert "Starting session" not in daisy_sshd.log_text()


def test_a_server_that_is_not_trusted_is_not_spoken_to(
    workstation: Host, daisy: Host, daisy_sshd: Sshd
) -> None:
    key = sshd.Key()
    key.install(workstation)
    sshd.authorize(daisy, key, command="true")
    said = ssh(workstation, "daisy")
    assert said.returncode == 255 and "Host key verification failed" in said.stderr
    assert daisy_sshd.pid > 0


def test_pam_opens_the_session_and_says_so(workstation: Host, daisy: Host, daisy_sshd: Sshd) -> None:
    key = sshd.Key()
    key.install(workstation)
    sshd.authorize(daisy, key, command="true")
    sshd.trust(workstation, daisy)
    assert ssh(workstation, "daisy").returncode == 0
    assert daisy_sshd.effective()["usepam"] == "yes"
    wait.until(
        lambda: "pam_unix(sshd:session): session opened for user root" in daisy.read_text("/var/log/syslog"),
        timeout_s=5,
        what="PAM's word in the log",
    )


def test_modes_are_what_sshd_insists_on(daisy: Host, daisy_sshd: Sshd) -> None:
    sshd.authorize(daisy, sshd.Key(), command="true")
    said = daisy.run(
        ["stat", "-c", "%a %U", "/root/.ssh", "/root/.ssh/authorized_keys", "/etc/ssh/ssh_host_rsa_key"]
    )
    assert said.stdout == "700 root\n600 root\n600 root\n"
    assert daisy_sshd.effective()["strictmodes"] == "yes"


def test_a_second_authorized_key_does_not_replace_the_first(daisy: Host) -> None:
    sshd.authorize(daisy, sshd.Key(comment="one"), command='say "one"')
    sshd.authorize(daisy, sshd.Key(comment="two"), restrict=False)
    lines = daisy.read_text(sshd.AUTHORIZED_KEYS).splitlines()
    assert lines[0].startswith('restrict,command="say \\"one\\"" ssh-ed25519 ') and lines[0].endswith(" one")
    assert lines[1].startswith("ssh-ed25519 ") and lines[1].endswith(" two")


def test_sshd_listens_where_it_is_told_and_no_more_afterwards(daisy: Host) -> None:
    with sshd.Sshd(daisy, port=2222, permit_root_login="prohibit-password") as daemon:
        assert sshd.is_listening(daisy, 2222)
        assert daemon.effective()["permitrootlogin"] == "without-password"
    wait.until(lambda: not sshd.is_listening(daisy, 2222), timeout_s=5, what="nobody listens")


def test_a_configuration_that_sshd_refuses_is_told(daisy: Host) -> None:
    with pytest.raises(AssertionError, match="Bad configuration option: NoSuchOption"):
        sshd.Sshd(daisy, options=["NoSuchOption yes"]).__enter__()


def test_a_configuration_that_does_not_hold_is_told(daisy: Host) -> None:
    daisy.append_text("/etc/ssh/sshd_config.d/00-other.conf", "LogLevel DEBUG\n")
    with pytest.raises(sshd.SshdFailed, match="'loglevel': 'DEBUG'"):
        sshd.Sshd(daisy).__enter__()


def test_a_port_that_is_taken_is_told(daisy: Host) -> None:
    with sshd.Sshd(daisy), pytest.raises(AssertionError, match="something listens at port 22 of daisy"):
        sshd.Sshd(daisy).__enter__()


def test_the_same_key_is_made_once_and_others_differ() -> None:
    assert sshd.Key("ed25519") == sshd.Key("ed25519")
    assert sshd.Key("ed25519").private == sshd.Key("ed25519").private
    assert sshd.Key("ed25519").public != sshd.Key("ed25519", "another").public
    assert "PRIVATE KEY" in sshd.Key("rsa").private and sshd.Key("rsa").public.startswith("ssh-rsa ")
