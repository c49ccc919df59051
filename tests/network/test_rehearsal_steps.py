"""Each step of the rehearsal fails where what it shows does not hold: the fault is planted."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest

from harness import sshd
from harness.command import Completed
from harness.rehearsal import cut_link, hostile, performance, steps
from harness.rehearsal.problems import NotExercised, StepFailed
from harness.rehearsal.session import Session
from harness.rehearsal.show import Show
from harness.rehearsal.steps import STEPS
from harness.rehearsal.wrong_key import wrong_key
from harness.scenario import SERVER_ROOT, Synced, TwoHosts

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator
    from pathlib import Path

    from harness.rehearsal.steps import Step

pytestmark = pytest.mark.requires("host", "veth", "tbf", "btrfs", "sshd")


@pytest.fixture
def session() -> Iterator[Session]:
    with TwoHosts(members=1) as both:
        made = Session(both, Show(io.StringIO()), seed=1, size="tiny", source=None)
        made.fill()
        yield made


@pytest.fixture
def synced(session: Session) -> Session:
    steps.first_full_sync(session)
    return session


def make_writable(session: Session) -> None:
    name = session.latest["share"]
    path = SERVER_ROOT / "workstation" / "share" / name
    session.both.daisy.run(["btrfs", "property", "set", "-f", path, "ro", "false"])


def test_a_backup_that_differs_fails_with_the_first_differences(synced: Session) -> None:
    both, name = synced.both, synced.latest["share"]
    make_writable(synced)
    (both.backup_directory() / name / "rehearsal-tree" / "planted").write_text("not sent\n")
    both.daisy.run(["btrfs", "property", "set", SERVER_ROOT / "workstation/share" / name, "ro", "true"])
    with pytest.raises(StepFailed, match=f"the backup {name} differs from its snapshot") as caught:
        synced.compare(name, "share", "daisy")
    assert any("rehearsal-tree/planted" in line for line in caught.value.evidence)


def test_a_backup_that_can_be_written_to_fails(synced: Session) -> None:
    make_writable(synced)
    with pytest.raises(StepFailed, match="can be written to"):
        synced.compare(synced.latest["share"], "share", "daisy")


def test_something_left_behind_on_the_server_fails(synced: Session) -> None:
    (synced.both.backup_directory() / ".incoming-planted").mkdir()
    with pytest.raises(StepFailed, match=r"\.incoming-planted was left behind"):
        synced.compare(synced.latest["share"], "share", "daisy")


def test_a_second_full_sync_is_no_first_one(synced: Session) -> None:
    synced.change(["churn"])
    with pytest.raises(StepFailed, match="sent incremental, not sent full"):
        steps.first_full_sync(synced)


def test_a_full_send_is_no_incremental_sync(session: Session) -> None:
    with pytest.raises(StepFailed, match="sent full, not sent incremental"):
        steps.incremental_sync(session)


def test_a_change_is_not_nothing(synced: Session) -> None:
    synced.change(["churn"])
    with pytest.raises(StepFailed, match="sent incremental, not nothing_changed"):
        steps.nothing_changed(synced)


def test_a_name_that_appears_on_the_server_is_not_nothing(
    synced: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = Session.sync

    def and_plant(self: Session) -> object:
        result = sync(self)
        (self.both.backup_directory() / "planted").mkdir()
        return result

    monkeypatch.setattr(Session, "sync", and_plant)
    with pytest.raises(StepFailed, match="backups of share at daisy"):
        steps.nothing_changed(synced)


def test_a_cut_that_comes_too_late_is_not_exercised(synced: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_link, "NOISE_BYTES", 1 << 20)
    with pytest.raises(NotExercised, match="not exercised: the run ended before the link was cut"):
        cut_link.cut_link(synced)


def test_a_cut_that_is_not_noticed_in_time_fails_and_is_undone(
    synced: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut_link, "NOTICE_S", 0.5)
    with pytest.raises(StepFailed, match=r"still waits 0\.5 s after the cut"):
        cut_link.cut_link(synced)
    assert synced.both.link.carrier() == 1


def test_a_server_that_keeps_nothing_of_a_cut_transfer_fails(
    synced: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Synced(Completed(("btrsync",), 5, "", ""), {})
    monkeypatch.setattr(cut_link, "_cut_a_transfer", lambda *_: (1.0, failed))
    monkeypatch.setattr(cut_link, "_check_failure", lambda *_: None)
    monkeypatch.setattr(cut_link, "KEPT_S", 0.1)
    with pytest.raises(StepFailed, match="the server kept nothing of what it had received"):
        cut_link.cut_link(synced)


def test_a_run_that_begins_anew_after_a_cut_fails(synced: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"data_bytes": 12_000_000, "total_bytes": 24 << 20, "percent": 47, "snapshot": "gone"}
    monkeypatch.setattr(cut_link, "find_partial", lambda *_: kept)
    synced.change(["churn"])
    with pytest.raises(StepFailed, match=r"it began anew: .* resumed from 0 of 12000000 bytes"):
        cut_link.resume_after_a_cut(synced)


def test_a_stranger_who_is_let_in_fails(synced: Session) -> None:
    stranger = sshd.Key("ed25519", "a stranger")
    sshd.authorize(synced.both.daisy, stranger, command=synced.both.forced_command())
    with pytest.raises(StepFailed, match="with an unauthorised key btrsync ended with status 0, not 5"):
        wrong_key(synced)


def test_a_refusal_for_another_reason_than_the_key_fails(synced: Session) -> None:
    synced.both.link.reset()
    try:
        with pytest.raises(StepFailed, match="was refused, but not as it should be"):
            wrong_key(synced)
    finally:
        synced.both.link.clear()


def test_a_server_that_lets_root_in_without_a_forced_command_fails() -> None:
    with TwoHosts(members=1, permit_root_login="yes") as both:
        session = Session(both, Show(io.StringIO()), seed=1, size="tiny", source=None)
        session.fill()
        steps.first_full_sync(session)
        with pytest.raises(StepFailed, match="a key without a forced command was refused, but not as it"):
            wrong_key(session)


def test_a_stream_that_the_stock_receive_does_not_obey_shows_nothing(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless = hostile.Attack("a harmless stream", lambda announced, _: hostile._stream(announced), "")
    monkeypatch.setattr(hostile, "ATTACKS", (harmless,))
    with pytest.raises(NotExercised, match="the stock btrfs receive did not obey it"):
        hostile.hostile_stream_refused(session)


def test_a_server_that_takes_a_stream_or_refuses_it_for_another_reason_fails(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = hostile.ATTACKS[0]

    def harmless_to_the_server(announced: uuid.UUID, subvolume: Path) -> bytes:
        is_servers = subvolume.is_relative_to(SERVER_ROOT)
        return hostile._stream(announced) if is_servers else link.build(announced, subvolume)

    monkeypatch.setattr(hostile, "ATTACKS", (link._replace(refusal="out of spite"),))
    with pytest.raises(StepFailed, match="refused, but not for that"):
        hostile.hostile_stream_refused(session)
    monkeypatch.setattr(hostile, "ATTACKS", (link._replace(build=harmless_to_the_server),))
    with pytest.raises(StepFailed, match="the server took it"):
        hostile.hostile_stream_refused(session)


def test_a_hostile_stream_that_leaves_a_trace_or_reaches_the_canary_fails(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = hostile._attack

    def and_touch(path: Path) -> None:
        def attack_and_touch(both: TwoHosts, *rest: Any) -> str:
            said = attack(both, *rest)
            both.daisy.write_text(path, "planted")
            return said

        monkeypatch.setattr(hostile, "_attack", attack_and_touch)

    and_touch(hostile.CANARY)
    with pytest.raises(StepFailed, match="it was written to"):
        hostile.hostile_stream_refused(session)
    and_touch(SERVER_ROOT / "workstation/share/planted")
    with pytest.raises(StepFailed, match="refused, but not without a trace"):
        hostile.hostile_stream_refused(session)


def step(name: str) -> Step:
    (found,) = (each for each in STEPS if each.name == name)
    return found


def test_a_failed_step_is_shown_with_its_evidence_and_the_others_go_on(session: Session) -> None:
    stream = io.StringIO()
    session.show = Show(stream)
    incremental = performance._play(step("incremental sync"), session)
    assert not incremental.ok and incremental.evidence
    shown = stream.getvalue()
    assert "  FAILED: share → daisy: sent full, not sent incremental" in shown
    assert "daisy sshd: " in shown and "daisy syslog: " in shown
    assert performance._play(step("nothing changed"), session).ok


def test_an_error_within_a_step_is_its_failure(session: Session) -> None:
    session.both.daisy.kill()
    result = performance._play(step("first full sync"), session)
    assert not result.ok
    assert "btrsync sync ended with status 5" in result.detail
