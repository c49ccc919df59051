"""The CPU of btrsync's own processes at both ends, exact to a clock tick each."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import sshd, wait
from harness.bench import stage
from harness.scenario import Synced

if TYPE_CHECKING:
    from harness.host import Host
    from harness.scenario import TwoHosts

SCRIPT = Path(__file__).with_name("accounted.py")
NOTES = Path("/run/btrsync-cpu")
KEY = Path("/root/.ssh/counted")
CONFIG = Path("/etc/btrsync/counted.toml")


class Counted:
    """A second way from the workstation to daisy, whose processes are accounted for."""

    def __init__(self, both: TwoHosts) -> None:
        self._both = both
        self._command = [sys.executable, "-I", "-S", str(SCRIPT), str(NOTES), str(both.btrsync_path)]
        key = sshd.Key("ed25519", "counted")
        key.install(both.workstation, KEY)
        sshd.authorize(both.daisy, key, command=shlex.join([*self._command, "serve", "workstation"]))
        both.write_client_file(CONFIG, key=KEY)

    def sync(self) -> int:
        """Sync that way; return the bytes sent."""
        argv = [*self._command, "sync", "--json", "--config", str(CONFIG)]
        synced = Synced.of(self._both.workstation.run(argv, timeout_s=stage.LONG_S))
        if synced.outcome()["result"] != "sent":
            raise AssertionError(f"nothing was sent: {synced}")
        return synced.bytes_sent

    @staticmethod
    def take(host: Host) -> float:
        """Return the CPU seconds noted on a host since the last time."""
        file = host.path(NOTES)
        # The server's process ends a moment after its client's.
        wait.until(file.exists, timeout_s=10, what=f"the account of {host.name}")
        ticks = [int(word) for word in file.read_text().split()]
        file.unlink()
        return sum(ticks) / os.sysconf("SC_CLK_TCK")
