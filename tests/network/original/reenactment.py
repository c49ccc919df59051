"""The original's two scripts at work between two hosts: its own key, its own forced command, its own names."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command, faults, sshd, wait
from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.command import Completed, Process
    from harness.host import Host
    from harness.scenario import TwoHosts

TEXTS = Path(__file__).parent
CLIENT = Path("/usr/local/sbin/btrsnapsync")
SERVER = Path("/usr/local/sbin/btrrecv.sh")
NOTIFY = Path("/usr/local/bin/notify-send")
KEY_FILE = Path("/root/.ssh/btrsnapsync")
KEY = sshd.Key("rsa", "root@btrsnapsync")
STAND_INS = Path("/opt/stand-ins")
"""First on the PATH of both scripts: what stands there is called instead of the program of that name."""
MINUTE = Path("/run/minute")
REACHED = Path("/run/reached")
OPEN = Path("/run/open")
DEBUG_LINE = re.compile(r"debug1: [^\n]*\n")
UNSEEN = "Cannot autolaunch D-Bus"
"""What notify-send says to nobody when root's timer calls it."""


class Original:
    """The original between two hosts, mirroring one subvolume of /home/foo to daisy:/MirrorRoot.

    has_typo: with the server script's /MirrorRooot; without, as its author will have meant it.
    Its clock is a minute that goes on with every run, so that a run is never late by chance.
    """

    def __init__(self, both: TwoHosts, *, has_typo: bool = False, name: str = "share") -> None:
        """Write the scripts and the key, and bind the key to the server's script."""
        self.both = both
        self.name = name
        self.snapshots = Path("/home/foo") / name / "snapshots"
        self.client = CLIENT.with_name(f"{CLIENT.name}-{name}")
        client = (TEXTS / "client.sh").read_text().replace("/home/foo/share", f"/home/foo/{name}")
        server = (TEXTS / "server.sh").read_text()
        assert "/MirrorRooot/" in server
        if not has_typo:
            server = server.replace("/MirrorRooot/", "/MirrorRoot/")
        both.workstation.write_text(self.client, client, mode=0o755)
        both.workstation.write_text(NOTIFY, (TEXTS / "notify-send.sh").read_text(), mode=0o755)
        both.daisy.write_text(SERVER, server, mode=0o755)
        stand_in(both.daisy, "date", f'exec $real --date="2014-11-20 12:$(cat {MINUTE})" "$@"')
        self.set_minute(0)
        KEY.install(both.workstation, KEY_FILE)
        if KEY.public not in both.daisy.read_text(sshd.AUTHORIZED_KEYS):
            forced_command = f"PATH={STAND_INS}:$PATH {SERVER}"
            sshd.authorize(both.daisy, KEY, command=forced_command, restrict=False)

    def set_minute(self, minute: int) -> None:
        """Let daisy's clock show 12:MM of one day for all runs until the next call."""
        self.minute = minute
        self.both.daisy.write_text(MINUTE, f"{minute:02}\n")

    def run(self) -> Completed:
        """Run the client's script to its end, as root's timer does, one minute after the last run."""
        with self.running() as process:
            process.wait(30)
            completed = process.completed()
        # `ssh -v` talks in between, also into the middle of what the server says.
        return dataclasses.replace(completed, stderr=DEBUG_LINE.sub("", completed.stderr))

    @contextlib.contextmanager
    def running(self) -> Iterator[Process]:
        """The client's script under way; leaving ends it."""
        self.set_minute(self.minute + 1)
        env = {"PATH": f"{STAND_INS}:{command.SYSTEM_PATH}"}
        with self.both.workstation.spawn([self.client], env=env) as process:
            yield process

    @contextlib.contextmanager
    def moving(self) -> Iterator[Process]:
        """The client's script in the middle of its transfer over a slow link."""
        before = self.both.bytes_on_link()
        self.both.link.slow(mirror.SLOW_RATE_BITS)
        try:
            with self.running() as process:
                wait.until(
                    lambda: self.both.bytes_on_link() > before + mirror.MOVED_BYTES or process.poll(),
                    timeout_s=15,
                    what="a transfer under way",
                )
                assert process.poll() is None, process.completed()
                assert faults.find(self.both.daisy, "btrfs receive")
                yield process
        finally:
            self.both.link.normal()

    def on_workstation(self) -> list[str]:
        """Return the names in the snapshot directory, sorted."""
        return sorted(os.listdir(self.both.workstation.path(self.snapshots)))

    def on_daisy(self) -> list[str]:
        """Return the names of the snapshots in /MirrorRoot, sorted."""
        names = os.listdir(self.both.daisy.path("/MirrorRoot"))
        return sorted(name for name in names if name.startswith("snapshot"))

    def is_complete(self, name: str) -> bool:
        """Return whether a snapshot on daisy is read-only and carries a received UUID."""
        shown = self.both.daisy.run(["btrfs", "subvolume", "show", f"/MirrorRoot/{name}"]).stdout
        pairs = (line.partition(":") for line in shown.splitlines())
        values = {key.strip(): value.strip() for key, _, value in pairs}
        return values["Flags"] == "readonly" and values["Received UUID"] != "-"


def stand_in(host: Host, program: str, script: str) -> None:
    """Let the scripts on a host call `script` when they call `program`, which it finds as $real."""
    real = host.run(["sh", "-c", 'command -v "$0"', program]).stdout.strip()
    host.write_text(STAND_INS / program, f"#!/bin/sh\nreal={real}\n{script}\n", mode=0o755)


def gate_behind(host: Host, program: str, words: str = "") -> None:
    """Let a program do its work and then wait for `open_gate`; words: only when it is called with them.

    A gate that was opened is closed again.
    """
    for name in (REACHED, OPEN):
        host.path(name).unlink(missing_ok=True)
    stand_in(
        host,
        program,
        f"""$real "$@"
status=$?
case "$*" in
  "{words}"*)
    touch {REACHED}
    until [ -e {OPEN} ]; do sleep 0.02; done ;;
esac
exit $status""",
    )


def wait_at_gate(host: Host) -> None:
    """Wait until the gated program has done its work."""
    wait.until(host.path(REACHED).exists, timeout_s=20, what=f"a program at the gate of {host.name}")


def open_gate(host: Host) -> None:
    """Let the gated program end, and every later call of it."""
    host.write_text(OPEN, "")


def lose_the_answer(original: Original) -> None:
    """Run the original and kill its ssh when the server has done all of its work."""
    both = original.both
    gate_behind(both.daisy, "mv")
    with original.running() as process:
        wait_at_gate(both.daisy)
        faults.kill(both.workstation, "ssh")
        assert process.wait(30) == 0
    open_gate(both.daisy)
    mirror.nobody_is_left(both)


@contextlib.contextmanager
def bytes_moved(both: TwoHosts) -> Iterator[list[int]]:
    """The bytes that leave the workstation meanwhile: one number, there after leaving."""
    moved: list[int] = []
    before = both.bytes_on_link()
    yield moved
    moved.append(both.bytes_on_link() - before)
