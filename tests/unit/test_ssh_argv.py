"""The argv of ssh, as ssh itself reads it (`ssh -G`), and what its last words mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from btrsync.errors import CommandError, Exit, RefusedError, UnreachableError
from btrsync.system import process, ssh


def read_by_ssh(argv: list[str]) -> dict[str, str]:
    """Return the settings that ssh takes from an argv."""
    said = process.run([argv[0], "-G", "-F", "/dev/null", *argv[1:]]).stdout.decode()
    return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)


def test_ssh_is_told_to_ask_nothing_and_to_carry_bytes() -> None:
    found = read_by_ssh(ssh.ssh_argv("daisy"))
    assert found["hostname"] == "daisy"
    wanted = {
        "batchmode": "yes",
        "stricthostkeychecking": "true",
        "requesttty": "false",
        "forwardagent": "no",
        "forwardx11": "no",
        "escapechar": "none",
        "compression": "no",
        "controlmaster": "false",
        "serveraliveinterval": "10",
        "serveralivecountmax": "3",
        "connecttimeout": "10",
        "updatehostkeys": "false",
        "permitlocalcommand": "no",
    }
    assert {name: found[name] for name in wanted} == wanted
    assert "controlpath" not in found  # none


def test_user_port_key_and_known_hosts_reach_ssh_whatever_their_names() -> None:
    argv = ssh.ssh_argv(
        "daisy.local", user="root", port=2222, connect_timeout_s=7,
        key=Path("/root/my keys/100%d"), known_hosts=Path("/root/known hosts %h"),
    )  # fmt: skip
    found = read_by_ssh(argv)
    assert (found["user"], found["port"], found["connecttimeout"]) == ("root", "2222", "7")
    assert found["identitiesonly"] == "yes"
    assert found["identityfile"].replace("%%", "%") == "/root/my keys/100%d"
    assert found["userknownhostsfile"].replace("%%", "%") == "/root/known hosts %h"


def test_a_key_that_is_missing_is_not_replaced_by_the_usual_ones() -> None:
    argv = ssh.ssh_argv("daisy", key=Path("/nonexistent/key"))
    said = process.run([argv[0], "-G", "-F", "/dev/null", *argv[1:]]).stdout.decode()
    assert [line for line in said.splitlines() if line.startswith("identityfile ")] == [
        "identityfile /nonexistent/key"
    ]


def test_without_a_key_ssh_offers_its_usual_ones() -> None:
    assert read_by_ssh(ssh.ssh_argv("daisy"))["identitiesonly"] == "no"


def test_the_users_options_are_stronger_than_our_defaults() -> None:
    argv = ssh.ssh_argv("daisy", options=["Compression=yes", "ServerAliveInterval=3", "ConnectTimeout=99"])
    found = read_by_ssh(argv)
    assert (found["compression"], found["serveraliveinterval"], found["connecttimeout"]) == ("yes", "3", "99")


def test_of_those_that_share_a_connection_one_makes_it_and_the_others_cannot() -> None:
    socket = Path("/run/btr sync/100%d/0")
    theirs = ["ControlMaster=auto", "ControlPersist=yes", "ProxyJump=gate"]
    first, further = (
        read_by_ssh(
            ssh.ssh_argv("daisy", options=theirs, sharing=ssh.sharing_options(socket, is_first=is_first))
        )
        for is_first in (True, False)
    )
    for found in (first, further):
        assert found["controlpath"].replace("%%", "%") == str(socket)
        assert found["controlpersist"] == "no"
    assert (first["controlmaster"], first["proxyjump"]) == ("true", "gate")
    assert (further["controlmaster"], further["proxycommand"]) == ("false", "false")
    assert "proxyjump" not in further


@pytest.mark.parametrize(
    "option", ["StrictHostKeyChecking=no", "stricthostkeychecking=accept-new", "BATCHMODE=no"]
)
def test_no_option_can_make_ssh_accept_a_host_key_or_ask(option: str) -> None:
    with pytest.raises(RefusedError, match="is fixed"):
        ssh.ssh_argv("daisy", options=[option])


@pytest.mark.parametrize(
    "option", ["", "Compression", "Compression yes", "-v", "=yes", "-oProxyCommand=x", "a\nb=c"]
)
def test_what_is_not_key_and_value_is_no_option(option: str) -> None:
    with pytest.raises(RefusedError, match="Key=value"):
        ssh.ssh_argv("daisy", options=[option])


@pytest.mark.parametrize(
    "name", ["-oProxyCommand=touch /tmp/x", "-v", "", "a b", "a\nb", "$(x)", "a;b", "ssh://a", "a@b"]
)
def test_a_host_or_user_that_ssh_could_take_for_something_else_is_refused(name: str) -> None:
    with pytest.raises(RefusedError, match="host"):
        ssh.ssh_argv(name)
    if name:
        with pytest.raises(RefusedError, match="user"):
            ssh.ssh_argv("daisy", user=name)


@pytest.mark.parametrize("name", ["daisy", "daisy.local", "10.0.0.1", "fe80::1%eth0", "::1", "my_nas-2"])
def test_an_ordinary_host_is_no_trouble(name: str) -> None:
    assert ssh.ssh_argv(name)[-2:] == ["--", name]


def test_the_command_follows_the_host() -> None:
    assert ssh.ssh_argv("daisy", command=["btrsync", "serve"])[-4:] == ["--", "daisy", "btrsync", "serve"]


CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r
Offending ED25519 key in /root/.ssh/known_hosts:1\r
Host key for [daisy]:2222 has changed and you have requested strict checking.\r
Host key verification failed.\r
"""
NOT_KNOWN = """\
No ED25519 host key is known for [daisy]:2222 and you have requested strict checking.
Host key verification failed.
"""
WORDS = {
    "ssh: Could not resolve hostname daisy: Name or service not known": ("does not resolve", True),
    "ssh: connect to host daisy port 2222: Connection refused": ("nothing listens on that port", True),
    "ssh: connect to host daisy port 2222: No route to host": ("no route", True),
    "ssh: connect to host daisy port 2222: Network is unreachable": ("no route", True),
    "ssh: connect to host daisy port 2222: Connection timed out": ("does not answer", True),
    "Connection timed out during banner exchange\nConnection to 10.0.0.2 port 2222 timed out": ("does not answer", True),
    CHANGED: ("has changed; it is never accepted silently", False),
    NOT_KNOWN: ("is not known; it is never accepted silently", False),
    "root@daisy: Permission denied (publickey).": ("does not accept the key", False),
    "Received disconnect from 10.0.0.2 port 22:2: Too many authentication failures": ("does not accept the key", False),
    "no such identity: /k: No such file or directory.\n"
    "root@daisy: Permission denied (publickey).": ("the key is missing", False),
    'Load key "/k": bad permissions\nroot@daisy: Permission denied (publickey).': ("that others can read", False),
    'Load key "/k": error in libcrypto\nroot@daisy: Permission denied (publickey).': ("cannot be read", False),
    "Unable to negotiate with 10.0.0.2 port 22: no matching host key type found.": ("no common algorithm", False),
    "command-line: line 0: Bad configuration option: foo": ("does not understand an option", False),
    "kex_exchange_identification: read: Connection reset by peer": ("hung up before ssh began", True),
    "kex_exchange_identification: banner line 0: Not allowed at this time": ("turns new connections away", True),
    "Connection closed by 10.0.0.2 port 22": ("hung up while logging in", True),
    "Connection reset by 10.0.0.2 port 22": ("hung up while logging in", True),
    "Timeout, server daisy not responding.": ("went silent", True),
    "client_loop: send disconnect: Broken pipe": ("connection was lost", True),
    "Connection to daisy closed by remote host.": ("connection was lost", True),
    "": ("connection was lost", True),
}  # fmt: skip

ARGV = tuple(
    ssh.ssh_argv("daisy", port=2222, key=Path("/root/.ssh/btrsync"), known_hosts=Path("/root/hosts"))
)


@pytest.mark.parametrize(("words", "meaning"), WORDS.items())
def test_last_words_of_ssh_become_one_sentence(words: str, meaning: tuple[str, bool]) -> None:
    error = ssh.classify(Exit(ARGV, 255, words))
    assert isinstance(error, UnreachableError)
    assert error.exit_status == 5
    assert meaning[0] in str(error)
    assert error.retryable is meaning[1]
    assert str(error).startswith("daisy: ")
    assert "\n" not in str(error) and "\r" not in str(error)
    assert error.hint and "{" not in error.hint
    if words.strip():
        assert any(f"({line.strip()[:40]}" in str(error) for line in words.splitlines() if line.strip("\r@"))


def test_a_changed_host_key_tells_how_to_compare_and_how_to_forget() -> None:
    error = ssh.classify(Exit(ARGV, 255, CHANGED))
    assert error.hint is not None
    assert "ssh-keygen -lf" in error.hint
    assert "ssh-keygen -R '[daisy]:2222' -f /root/hosts" in error.hint


def test_a_refused_key_is_named() -> None:
    error = ssh.classify(Exit(ARGV, 255, "root@daisy: Permission denied (publickey)."))
    assert error.hint is not None
    assert "/root/.ssh/btrsync" in error.hint
    assert 'command="' in error.hint


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (127, "bash: line 1: /opt/btrsync/bin/btrsync: No such file or directory"),
        (126, "bash: line 1: /opt/btrsync/bin/btrsync: Permission denied"),
    ],
)
def test_a_forced_command_that_cannot_run_is_the_servers_fault(status: int, words: str) -> None:
    error = ssh.classify(Exit(ARGV, status, words))
    assert isinstance(error, UnreachableError)
    assert "the server" in str(error) and "/opt/btrsync/bin/btrsync" in str(error)
    assert not error.retryable
    assert error.hint is not None and "authorized_keys" in error.hint


@pytest.mark.parametrize("status", [0, 1, 8])
def test_any_other_status_belongs_to_the_remote_command(status: int) -> None:
    assert isinstance(ssh.classify(Exit(ARGV, status, "words")), CommandError)


def test_a_remote_command_that_failed_is_told_by_its_host_and_not_by_our_argv() -> None:
    error = ssh.classify(Exit(ARGV, 3, "its words"))
    assert str(error).endswith(" exited with status 3: its words")
    assert "the forced command on " in str(error)
    assert "BatchMode" not in str(error)


def test_an_ssh_that_was_killed_is_a_lost_connection() -> None:
    error = ssh.classify(Exit(ARGV, -9, ""))
    assert isinstance(error, UnreachableError)
    assert error.retryable
    assert "ssh was killed by signal 9" in str(error)
