"""The link that goes silent, resets or loses its other end: both ends notice, and the next run goes on."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from harness import faults, wait
from harness.scenario import Synced
from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from harness.command import Process
    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd", "tbf", "nftables")

SILENCE_S = 30
"""What the tool takes for a dead peer."""
NOTICED_S = 45.0


@contextlib.contextmanager
def transferring() -> Iterator[tuple[TwoHosts, Process, str]]:
    """Two hosts with one common snapshot, in the middle of an incremental transfer."""
    with mirror.small() as both:
        first = mirror.assert_mirrored(both, both.sync())
        mirror.change(both)
        mirror.add_bulk(both)
        with mirror.moving(both) as process:
            yield both, process, first


def test_a_reset_connection_ends_the_run_at_once_and_the_next_one_goes_on() -> None:
    with transferring() as (both, process, first):
        with faults.ResettingLink(both.link):
            synced = mirror.finished(process, timeout_s=15)
            assert synced.returncode == 5
            assert "daisy: " in mirror.words(synced)
        both.link.normal()
        mirror.nobody_is_left(both)
        assert both.snapshots() == mirror.visible_backups(both) == [first]
        name = mirror.assert_mirrored(both, both.sync())
        assert both.snapshots() == both.backups() == [first, name]


def test_a_killed_server_machine_ends_the_run_at_once() -> None:
    with transferring() as (both, process, first):
        faults.kill_host(both.daisy)
        synced = mirror.finished(process, timeout_s=15)
        assert synced.returncode == 5
        assert "daisy: " in mirror.words(synced)
        assert both.snapshots() == [first]


@contextlib.contextmanager
def vanished(both: TwoHosts) -> Iterator[None]:
    """The client's machine is gone, and its server hears nothing of that."""
    faults.vanish(both.workstation, both.link)
    yield


@dataclass(slots=True)
class Case:
    """One way to fall silent, at work beside the others, since each takes its half minute."""

    both: TwoHosts
    process: Process
    first: str
    struck: float
    ended: float = 0.0


def test_every_silence_is_noticed_by_both_ends_and_a_pause_of_receive_is_none() -> None:
    strikes: dict[str, Callable[[TwoHosts], AbstractContextManager[object]]] = {
        "cut": lambda both: faults.CutLink(both.link),
        "dropped": lambda both: faults.SilentLink(both.link),
        "stopped serve": lambda both: faults.StoppedProcess(both.daisy, "btrsync serve"),
        "stopped receive": lambda both: faults.StoppedProcess(both.daisy, "btrfs receive"),
        "vanished client": vanished,
    }
    cases: dict[str, Case] = {}
    with contextlib.ExitStack() as hosts, contextlib.ExitStack() as silences:
        for name, strike in strikes.items():
            both, process, first = hosts.enter_context(transferring())
            silences.enter_context(strike(both))
            cases[name] = Case(both, process, first, time.monotonic())
        paused = cases.pop("stopped receive")
        note_ends(cases)
        assert paused.process.poll() is None, paused.process.completed()
        assert time.monotonic() - paused.struck > SILENCE_S, "not exercised"
        silences.close()
        for case in (paused, *cases.values()):
            case.both.link.normal()
        survived = mirror.finished(paused.process)
        assert survived.returncode == 0
        mirror.assert_mirrored(paused.both, survived)
        for name, case in cases.items():
            assert SILENCE_S - 7 < case.ended - case.struck < NOTICED_S, name
        for name in ("cut", "dropped", "stopped serve"):
            goes_on(cases[name])


def note_ends(cases: dict[str, Case]) -> None:
    """Wait until the client of each case, and the server where it can, has ended; note when."""

    def is_over(case: Case) -> bool:
        daisy = case.both.daisy
        left = [info for words in ("btrsync serve", "btrfs receive") for info in faults.find(daisy, words)]
        is_stopped = any(info.state in "tT" for info in left)
        return case.process.poll() is not None and (is_stopped or not left)

    def are_over() -> bool:
        for case in cases.values():
            if not case.ended and is_over(case):
                case.ended = time.monotonic()
        return all(case.ended for case in cases.values())

    wait.until(are_over, timeout_s=60, what="both ends of every case", interval_s=0.2)


def goes_on(case: Case) -> None:
    """See what the ended client said, and the next run work at once."""
    synced = Synced.of(case.process.completed())
    assert synced.returncode == 5
    assert "daisy" in mirror.words(synced)
    assert case.both.snapshots() == [case.first]
    mirror.nobody_is_left(case.both)
    # Right after a cut the client's kernel still remembers that nobody answers (ARP).
    knock = ["bash", "-c", "exec 3<>/dev/tcp/daisy/22"]
    wait.until(
        lambda: case.both.workstation.run(knock, ok=None).returncode == 0, timeout_s=10, what="the link is back"
    )
    began = time.monotonic()
    name = mirror.assert_mirrored(case.both, case.both.sync())
    assert time.monotonic() - began < SILENCE_S / 2
    assert case.both.snapshots() == case.both.backups() == [case.first, name]
