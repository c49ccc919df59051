"""The ledger of what a client's backups have written, in real files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.errors import NoSpaceError, StorageError
from btrsync.quota import NAME, Ledger, _Line, _remaining, lock
from btrsync.system import files

if TYPE_CHECKING:
    from pathlib import Path


def uuid(number: int) -> UUID:
    return UUID(int=number)


def filled(directory: Path) -> Ledger:
    """A job of one full backup and three increments, and another job."""
    ledger = Ledger(directory)
    ledger.add("share", uuid(1), 1000, True)
    ledger.add("share", uuid(2), 20, False)
    ledger.add("share", uuid(3), 30, False)
    ledger.add("share", uuid(4), 40, False)
    ledger.add("home", uuid(9), 500, True)
    return ledger


def test_a_client_without_backups_has_used_nothing(tmp_path: Path) -> None:
    assert Ledger(tmp_path).used_bytes({"share": [uuid(1)]}) == 0
    assert list(tmp_path.iterdir()) == [], "to look writes nothing"


def test_what_is_present_adds_up_for_the_next_connection_too(tmp_path: Path) -> None:
    filled(tmp_path)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    present = {"share": {uuid(1), uuid(2), uuid(3), uuid(4)}, "home": {uuid(9)}, "other": {uuid(77)}}
    assert Ledger(tmp_path).used_bytes(present) == 1590


def test_a_deleted_increment_counts_no_more(tmp_path: Path) -> None:
    assert filled(tmp_path).used_bytes({"share": [uuid(1), uuid(2), uuid(4)], "home": []}) == 1060


def test_what_a_deleted_full_backup_wrote_counts_with_the_oldest_that_is_left(tmp_path: Path) -> None:
    assert filled(tmp_path).used_bytes({"share": [uuid(3), uuid(4)]}) == 1070
    # And goes on with the next one when that is deleted too, by the ledger as it is written anew.
    ledger = Ledger(tmp_path)
    ledger.used_bytes({"share": [uuid(3), uuid(4)]})
    ledger.add("share", uuid(5), 50, False)
    text = (tmp_path / NAME).read_text()
    assert str(uuid(1)) not in text and str(uuid(9)) not in text
    assert Ledger(tmp_path).used_bytes({"share": [uuid(4), uuid(5)]}) == 1000 + 40 + 50
    assert Ledger(tmp_path).used_bytes({"share": []}) == 0


def test_a_second_full_backup_ends_what_the_first_one_wrote(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    ledger.add("share", uuid(5), 2000, True)
    ledger.add("share", uuid(6), 60, False)
    assert ledger.used_bytes({"share": [uuid(n) for n in range(1, 7)]}) == 3150
    assert Ledger(tmp_path).used_bytes({"share": [uuid(6)]}) == 2060
    assert Ledger(tmp_path).used_bytes({"share": [uuid(4), uuid(5)]}) == 3040


@given(
    lines=st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=8),
    kept=st.sets(st.integers(0, 7)),
)
def test_deleting_in_steps_comes_to_the_same_as_at_once(
    lines: list[tuple[int, bool]], kept: set[int]
) -> None:
    found = [_Line(uuid(n), size, is_full) for n, (size, is_full) in enumerate(lines)]
    present = {uuid(n) for n in kept}
    step = list(found)
    for line in found:
        if line.uuid not in present:
            step = list(_remaining(step, {each.uuid for each in step} - {line.uuid}))
    at_once = list(_remaining(found, present))
    assert step == at_once
    assert sum(line.data_bytes + line.inherited_bytes for line in at_once) <= sum(size for size, _ in lines)


def test_the_same_backup_is_counted_once(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    ledger.add("home", uuid(9), 700, True)
    assert ledger.used_bytes({"home": [uuid(9)]}) == 700


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"\xff", b'{"version": 2, "jobs": {}}', b'{"jobs": {}}',
        b'{"version": 1, "jobs": {"a": [{"uuid": "x", "data_bytes": 1, "is_full": true}]}}',
        b'{"version": 1, "jobs": {"a": [{"uuid": "%s", "data_bytes": -1, "is_full": true}]}}' % str(UUID(int=1)).encode(),
    ],
)  # fmt: skip
def test_a_broken_ledger_is_one_sentence(tmp_path: Path, text: bytes) -> None:
    (tmp_path / NAME).write_bytes(text)
    with pytest.raises(StorageError, match=r"\.usage\.json is no ledger of backups: [^\n]+\Z") as caught:
        Ledger(tmp_path)
    assert "move it away" in (caught.value.hint or "")
    assert (tmp_path / NAME).read_bytes() == text


def test_a_ledger_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(StorageError, match=r"\.usage\.json: Is a directory"):
        Ledger(tmp_path)


def test_a_ledger_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = filled(tmp_path)
    before = (tmp_path / NAME).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / NAME))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", full)
        with pytest.raises(NoSpaceError, match="No space left"):
            ledger.add("share", uuid(5), 50, False)
    assert (tmp_path / NAME).read_bytes() == before
    assert ledger.used_bytes({"share": [uuid(5)]}) == 0


def test_of_several_who_add_at_once_none_is_lost(tmp_path: Path) -> None:
    found = {f"job-{number}": uuid(number) for number in range(8)}

    def add(job: str) -> None:
        with lock(tmp_path):
            Ledger(tmp_path).add(job, found[job], 1000, True)

    with ThreadPoolExecutor(len(found)) as threads:
        assert len(list(threads.map(add, found))) == len(found)
    assert Ledger(tmp_path).used_bytes({job: [found[job]] for job in found}) == 8000


def test_who_reads_leaves_alone_what_another_one_is_writing(tmp_path: Path) -> None:
    aside = tmp_path / f".{NAME}.00112233"
    aside.write_bytes(b"")
    Ledger(tmp_path)
    assert aside.exists()
    filled(tmp_path)
    assert not aside.exists()
