"""Entering a rehearsal host by testinfra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.command import CommandFailed
from tests.machines import backend

if TYPE_CHECKING:
    from harness.scenario import TwoHosts

pytestmark = [pytest.mark.rehearsal, pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")]


def test_a_command_runs_in_the_host(workstation: Any, server: Any) -> None:
    assert (workstation.check_output("hostname"), server.check_output("hostname")) == ("workstation", "daisy")
    assert "10.77.0.2" in server.interface("eth0").addresses


def test_no_shell_of_this_machine_sees_a_command(server: Any, rehearsal: TwoHosts) -> None:
    words = "$(touch /run/seen) `touch /run/seen`; touch /run/seen 'and' \"quotes\""
    assert server.check_output("printf '%%s' %s", words) == words
    # What the host's own shell is asked for runs there.
    server.check_output("echo $$ > /run/own-shell; hostname >> /run/own-shell")
    assert rehearsal.daisy.read_text("/run/own-shell").endswith("\ndaisy\n")
    assert not rehearsal.daisy.path("/run/seen").exists()


@pytest.mark.parametrize("status", [0, 1, 127, 255])
def test_the_status_of_a_command_comes_through(server: Any, status: int) -> None:
    assert server.run(f"exit {status}").rc == status


def test_answers_that_are_no_utf8_come_through(server: Any) -> None:
    assert server.run(r"printf '\377\303\244'").stdout_bytes == b"\xff\xc3\xa4"
    assert server.check_output("printf %s", "日本語") == "日本語"


def test_a_command_that_never_ends_is_given_up(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "TIMEOUT_S", 0.2)
    with pytest.raises(CommandFailed, match="still ran after"):
        server.run("exec sleep 60")
