"""The link that goes silent, resets or loses its other end: both ends notice, and the next run goes on."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import faults, wait
from harness.scenario import Job, Synced, Target
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
BANNER_S = 10
"""How long a server waits for a client's first word."""


@contextlib.contextmanager
def transferring(target: Target = mirror.ONCE) -> Iterator[tuple[TwoHosts, Process, str]]:
    """Two hosts with one common snapshot, in the middle of an incremental transfer."""
    with mirror.small(targets=(target,)) as both:
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
        assert mirror.committed(both) == [first]
        (cut,) = set(both.snapshots()) - {first}
        assert len(mirror.partials(both)) == 1
        synced = both.sync()
        assert mirror.assert_mirrored(both, synced) == cut
        assert synced.outcome()["resumed_from_bytes"] > 0
        assert both.snapshots() == both.backups() == [first, cut]


def test_a_killed_server_machine_ends_the_run_at_once() -> None:
    with transferring() as (both, process, first):
        faults.kill_host(both.daisy)
        synced = mirror.finished(process, timeout_s=15)
        assert synced.returncode == 5
        assert "daisy: " in mirror.words(synced)
        assert first in both.snapshots()
        assert len(both.snapshots()) == 2, "what was sent may be there, and is kept"


@contextlib.contextmanager
def vanished(both: TwoHosts) -> Iterator[None]:
    """The client's machine is gone, and its server hears nothing of that."""
    faults.vanish(both.workstation, both.link)
    yield


PAUSED = "a receive that is stopped"
PERSISTENT = "a link that drops, and a run that tries again"
STRIKES: dict[str, Callable[[TwoHosts], AbstractContextManager[object]]] = {
    PAUSED: lambda both: faults.StoppedProcess(both.daisy, "btrfs receive"),
    "a cut link": lambda both: faults.CutLink(both.link),
    "a link that drops": lambda both: faults.SilentLink(both.link),
    "a server that is stopped": lambda both: faults.StoppedProcess(both.daisy, "btrsync serve"),
    "a client that vanished": vanished,
    PERSISTENT: lambda both: faults.SilentLink(both.link),
}
NOTICED = ("a cut link", "a link that drops", "a server that is stopped")
ATTIC = Target("attic", host="attic", client="attic", key_file=Path("/root/.ssh/attic"))
LATE = "a second target whose turn comes late"


@dataclass(slots=True)
class Case:
    """A transfer, what happened to it, and when both its ends had ended."""

    both: TwoHosts
    process: Process
    first: str
    struck: float
    ended: float = 0.0


@pytest.fixture(scope="module")
def silences() -> Iterator[dict[str, Case]]:
    """All that takes longer than a silence may last, done side by side; each test looks at one of them."""
    cases: dict[str, Case] = {}
    with contextlib.ExitStack() as hosts, contextlib.ExitStack() as strikes:
        both = hosts.enter_context(
            mirror.small(jobs=(Job(targets=("daisy", "attic")),), targets=(mirror.ONCE, ATTIC))
        )
        mirror.add_bulk(both)
        process = hosts.enter_context(mirror.moving(both))
        cases[LATE] = Case(both, process, "", time.monotonic())
        for name, strike in STRIKES.items():
            target = Target(settings={"retry_pause_s": 1}) if name == PERSISTENT else mirror.ONCE
            both, process, first = hosts.enter_context(transferring(target))
            strikes.enter_context(strike(both))
            cases[name] = Case(both, process, first, time.monotonic())
        note_ends({name: case for name, case in cases.items() if name not in (PAUSED, PERSISTENT)})
        paused = cases[PAUSED]
        wait.until(
            lambda: time.monotonic() - paused.struck > SILENCE_S + 2,
            timeout_s=SILENCE_S,
            what="a pause that is longer than a silence",
        )
        assert paused.process.poll() is None, paused.process.completed()
        strikes.close()
        for case in cases.values():
            case.both.link.normal()
        yield cases


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

    wait.until(are_over, timeout_s=90, what="both ends of every case", interval_s=0.2)


@pytest.mark.parametrize("name", NOTICED)
def test_a_silence_ends_both_ends_in_time_and_the_next_run_goes_on_at_once(
    silences: dict[str, Case], name: str
) -> None:
    case = silences[name]
    # Up to a heartbeat's interval may lie between the last word and the strike.
    assert SILENCE_S - 7 < case.ended - case.struck < NOTICED_S
    synced = Synced.of(case.process.completed())
    assert synced.returncode == 5
    assert "daisy" in mirror.words(synced)
    (cut,) = set(case.both.snapshots()) - {case.first}
    mirror.nobody_is_left(case.both)
    # Right after a cut the client's kernel still remembers that nobody answers (ARP).
    knock = ["bash", "-c", "exec 3<>/dev/tcp/daisy/22"]
    wait.until(
        lambda: case.both.workstation.run(knock, ok=None).returncode == 0,
        timeout_s=10,
        what="the link is back",
    )
    began = time.monotonic()
    again = case.both.sync()
    assert mirror.assert_mirrored(case.both, again) == cut
    assert again.outcome()["resumed_from_bytes"] > 0
    assert time.monotonic() - began < SILENCE_S / 2
    assert case.both.snapshots() == case.both.backups() == [case.first, cut]


def test_a_client_that_vanished_is_noticed_in_time_and_leaves_a_partial(silences: dict[str, Case]) -> None:
    case = silences["a client that vanished"]
    assert SILENCE_S - 7 < case.ended - case.struck < NOTICED_S
    assert mirror.committed(case.both) == [case.first]
    assert len(mirror.partials(case.both)) == 1


def test_a_receive_that_pauses_for_longer_than_a_silence_is_waited_for(silences: dict[str, Case]) -> None:
    case = silences[PAUSED]
    survived = mirror.finished(case.process)
    assert survived.returncode == 0
    mirror.assert_mirrored(case.both, survived)


def test_a_run_that_tries_again_outlives_a_silence_and_goes_on(silences: dict[str, Case]) -> None:
    case = silences[PERSISTENT]
    survived = mirror.finished(case.process)
    assert survived.returncode == 0, survived
    assert "the link was lost, tried again " in survived.outcome()["detail"]
    mirror.assert_mirrored(case.both, survived)
    assert case.both.snapshots() == case.both.backups()


def test_a_second_target_is_reached_after_a_first_that_took_longer_than_any_banner_may(
    silences: dict[str, Case],
) -> None:
    case = silences[LATE]
    synced = mirror.finished(case.process)
    assert synced.outcome("share", "daisy")["seconds"] > BANNER_S, "not exercised: the first was too quick"
    for target in case.both.targets:
        mirror.assert_mirrored(case.both, synced, "share", target)
