"""What workstation and server must be to each other. One assertion each: test_assertions_can_fail.py sees it fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.machines.inventory import Machines

pytestmark = pytest.mark.requires("root")

CLOCK_LIMIT_S = 60


@pytest.mark.readonly
def test_the_workstations_key_is_bound_on_the_server(machines: Machines) -> None:
    bound = [f"{key.kind} {key.blob}" for key in machines.forced_commands()]
    assert machines.public_key() in bound, "the workstation's key is bound to no forced command"


@pytest.mark.readonly
def test_known_hosts_has_the_key_that_the_server_has(
    machines: Machines, workstation: Any, server: Any
) -> None:
    target = machines.target_of_server()
    name = target["host"] if target["port"] == 22 else f"[{target['host']}]:{target['port']}"
    lines = workstation.run("ssh-keygen -F %s -f %s", name, target["known_hosts"]).stdout.splitlines()
    known = {tuple(line.split()[1:3]) for line in lines if not line.startswith("#")}
    texts = server.check_output("cat /etc/ssh/ssh_host_*_key.pub").splitlines()
    assert known and known <= {tuple(text.split()[:2]) for text in texts}, (
        "a key is known that the server has not"
    )


@pytest.mark.readonly
def test_the_clocks_agree(workstation: Any, server: Any) -> None:
    seconds = [int(machine.check_output("date +%s")) for machine in (workstation, server)]
    assert abs(seconds[0] - seconds[1]) <= CLOCK_LIMIT_S, f"the clocks differ: {seconds}"


def test_the_server_answers(workstation: Any, machines: Machines) -> None:
    # The whole way, from the key to the disk; it starts a process on the server, so it is not `readonly`.
    said = workstation.run("%s sync --dry-run", machines.btrsync)
    assert said.rc == 0, f"btrsync sync --dry-run: {said.stdout}{said.stderr}"
