"""What a real ssh client says when a real sshd, or the way to it, is at fault; and what it is taken for."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from btrsync.errors import BtrsyncError, CommandError, Exit, UnreachableError
from btrsync.system import ssh
from harness import wait
from harness.sshd import KNOWN_HOSTS, Key, Sshd, authorize, trust

if TYPE_CHECKING:
    from harness.host import Host
    from harness.netns import Link

pytestmark = pytest.mark.requires("root", "host", "veth", "sshd")

KEY = Path("/root/.ssh/btrsync")


def connect(client: Host, host: str = "daisy", **changed: object) -> BtrsyncError | None:
    """Run our ssh inside a host; return what its end is taken for, None if it went well."""
    settings: dict[str, object] = {"user": "root", "key": KEY, "connect_timeout_s": 2} | changed
    argv = ssh.ssh_argv(host, **settings)  # type: ignore[arg-type]
    done = client.run(argv, ok=None)
    return ssh.classify(Exit(tuple(argv), done.returncode, done.stderr)) if done.returncode else None


@pytest.fixture
def client(workstation: Host, daisy: Host, link: Link) -> Host:
    """The workstation with its key, which knows daisy."""
    Key().install(workstation, KEY)
    trust(workstation, daisy)
    return workstation


def assert_unreachable(error: BtrsyncError | None, words: str, *, may_pass: bool) -> None:
    assert isinstance(error, UnreachableError), error
    assert words in str(error)
    assert error.retryable is may_pass
    assert "\n" not in str(error)


def test_a_forced_command_runs_and_its_status_comes_through(
    client: Host, daisy: Host, daisy_sshd: Sshd
) -> None:
    authorize(daisy, Key(), command="exit $(cat /root/status)")
    for status in (0, 3):
        daisy.write_text("/root/status", str(status))
        error = connect(client, command=["btrsync", "serve"])
        if status:
            assert isinstance(error, CommandError) and error.exit.returncode == status
        else:
            assert error is None
    assert "forced-command" in daisy_sshd.log_text()


def test_a_name_that_does_not_resolve(client: Host) -> None:
    assert_unreachable(connect(client, "nosuch.invalid"), "the name does not resolve", may_pass=True)


def test_a_port_where_nothing_listens(client: Host) -> None:
    assert_unreachable(connect(client, port=2299), "nothing listens on that port", may_pass=True)


def test_a_host_that_is_silent(client: Host, link: Link) -> None:
    link.drop()
    assert_unreachable(connect(client), "it does not answer", may_pass=True)


def test_a_network_without_a_route(client: Host) -> None:
    assert_unreachable(connect(client, "192.0.2.1"), "there is no route to it", may_pass=True)


def test_a_host_key_that_is_not_known_is_not_accepted(client: Host, daisy: Host, daisy_sshd: Sshd) -> None:
    authorize(daisy, Key(), command="true")
    client.write_text(KNOWN_HOSTS, "")
    error = connect(client)
    assert_unreachable(error, "its host key is not known; it is never accepted silently", may_pass=False)
    assert client.read_text(KNOWN_HOSTS) == ""
    assert error is not None and error.hint is not None and "ssh-keyscan -p 22 daisy" in error.hint


def test_a_host_key_that_changed_is_not_accepted(client: Host, daisy: Host, daisy_sshd: Sshd) -> None:
    authorize(daisy, Key(), command="true")
    foreign = " ".join(Key(comment="somebody else").public.split()[:2])
    client.write_text(KNOWN_HOSTS, f"daisy {foreign}\n")
    error = connect(client)
    assert_unreachable(error, "the host key has changed; it is never accepted silently", may_pass=False)
    assert client.read_text(KNOWN_HOSTS) == f"daisy {foreign}\n"
    assert error is not None and error.hint is not None and "ssh-keygen -R daisy" in error.hint


def test_a_known_hosts_file_of_our_own_is_the_one_that_counts(
    client: Host, daisy: Host, daisy_sshd: Sshd
) -> None:
    authorize(daisy, Key(), command="true")
    client.write_text("/root/own hosts", client.read_text(KNOWN_HOSTS))
    client.write_text(KNOWN_HOSTS, "")
    assert connect(client, known_hosts=Path("/root/own hosts")) is None


def test_a_key_that_the_server_does_not_know(client: Host, daisy_sshd: Sshd) -> None:
    error = connect(client)
    assert_unreachable(error, "the server does not accept the key", may_pass=False)
    assert error is not None and error.hint is not None and str(KEY) in error.hint


def test_a_key_that_is_missing(client: Host, daisy_sshd: Sshd) -> None:
    assert_unreachable(connect(client, key=Path("/root/.ssh/missing")), "the key is missing", may_pass=False)


def test_a_key_that_others_can_read(client: Host, daisy: Host, daisy_sshd: Sshd) -> None:
    authorize(daisy, Key(), command="true")
    os.chmod(client.path(KEY), 0o644)
    error = connect(client)
    assert_unreachable(error, "a key that others can read", may_pass=False)
    assert error is not None and error.hint == f"chmod 600 {KEY}"


def test_a_key_without_a_forced_command(client: Host, daisy: Host, daisy_sshd: Sshd) -> None:
    authorize(daisy, Key())
    error = connect(client)
    # Whether ssh has noticed that the login was let in first is a race: two sets of words.
    assert isinstance(error, UnreachableError)
    assert "hung up while logging in" in str(error) or "connection was lost" in str(error)
    assert "ROOT LOGIN REFUSED" in daisy_sshd.log_text()


def test_a_server_without_btrsync(client: Host, daisy: Host, daisy_sshd: Sshd) -> None:
    authorize(daisy, Key(), command="/opt/btrsync/bin/btrsync serve workstation")
    assert_unreachable(
        connect(client), "has no btrsync where the forced command looks for it", may_pass=False
    )


def test_a_btrsync_that_cannot_be_executed(client: Host, daisy: Host, daisy_sshd: Sshd) -> None:
    daisy.write_text("/opt/btrsync", "#!/bin/sh\n", mode=0o644)
    authorize(daisy, Key(), command="/opt/btrsync serve workstation")
    assert_unreachable(connect(client), "cannot execute what the forced command names", may_pass=False)


def test_a_connection_that_breaks_off(client: Host, daisy: Host, daisy_sshd: Sshd) -> None:
    authorize(daisy, Key(), command="echo $PPID > /root/ppid; exec sleep 1000")
    argv = ssh.ssh_argv("daisy", user="root", key=KEY)
    with client.spawn(argv) as running:
        file = daisy.path("/root/ppid")
        session = wait.until(
            lambda: file.exists() and file.read_text().strip(), timeout_s=20, what="a session"
        )
        daisy.run(["kill", f"-{signal.SIGKILL}", str(session)])
        running.wait(20)
        done = running.completed()
    error = ssh.classify(Exit(tuple(argv), done.returncode, done.stderr))
    assert_unreachable(error, "the connection was lost", may_pass=True)
