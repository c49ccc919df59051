"""Loop devices."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from harness import command, loop, wait
from harness.identity import run_prefix
from harness.loop import LoopDevice

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.requires("loop")
SIZE = 64 << 20


def test_a_loop_device_has_the_size_asked_for_and_costs_nothing() -> None:
    with LoopDevice(SIZE) as made:
        assert command.run(["blockdev", "--getsize64", made.device]).stdout == f"{SIZE}\n"
        assert os.stat(made.backing_file).st_blocks == 0


def test_a_loop_device_is_gone_on_leaving() -> None:
    with LoopDevice(SIZE, name="leaver") as made:
        assert run_prefix() in loop.attached()[made.device]
        device = made.device
    assert run_prefix() not in loop.attached().get(device, "")


def test_a_loop_device_is_autoclear_from_its_first_moment() -> None:
    with LoopDevice(SIZE) as made:
        assert command.run(["losetup", "-n", "-O", "AUTOCLEAR", made.device]).stdout.strip() == "1"


@pytest.mark.parametrize("where", ["memory", "directory"])
def test_a_backing_file_keeps_what_is_written_and_has_no_name(where: str, tmp_path: Path) -> None:
    with LoopDevice(SIZE, tmp_path if where == "directory" else None) as made:
        made.device.write_bytes(b"words")
        command.run(["sync"])
        assert made.backing_file.read_bytes()[:5] == b"words"
        assert list(tmp_path.iterdir()) == []


def test_many_at_once_are_all_different() -> None:
    with LoopDevice(SIZE) as a, LoopDevice(SIZE) as b, LoopDevice(SIZE) as c:
        assert len({a.device, b.device, c.device}) == 3


@pytest.mark.parametrize("where", ["memory", "directory"])
def test_two_of_one_name_stand_on_files_of_two_names(where: str, tmp_path: Path) -> None:
    directory = tmp_path if where == "directory" else None
    with LoopDevice(SIZE, directory, "twin") as a, LoopDevice(SIZE, directory, "twin") as b:
        assert loop.attached()[a.device] != loop.attached()[b.device]
        names = [backing.name for device in (a.device, b.device) if (backing := loop.backing(device))]
        assert len(set(names)) == 2 and all(name.endswith("-twin") for name in names)


def test_a_device_that_stays_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "DETACH_S", 0.2)
    made = LoopDevice(SIZE).__enter__()
    device = made.device
    holder = os.open(device, os.O_RDONLY)
    try:
        with pytest.raises(wait.NeverCame, match=f"{device} detached"):
            made.close()
    finally:
        os.close(holder)
    wait.until(
        lambda: run_prefix() not in loop.attached().get(device, ""), timeout_s=5, what="the device detached"
    )


def test_uses_tell_which_devices_are_ours_now_and_before_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[frozenset[Path]] = []
    monkeypatch.setattr(loop.uses, "observers", [lambda: seen.append(loop.uses.current)])
    before = loop.uses.current
    with LoopDevice(SIZE) as one:
        device = one.device
        assert loop.uses.current == before | {device}
    assert loop.uses.current == before
    assert seen == [before, before | {device}]
