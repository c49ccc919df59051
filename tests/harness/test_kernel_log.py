"""What the kernel says, and what of it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import kernel_log, loop
from harness.loop import LoopDevice

OURS = [Path("/dev/loop3"), Path("/dev/loop4")]


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("WARNING: CPU: 1 PID: 5 at fs/btrfs/inode.c:1 x+0x1/0x2", True),
        ("BUG: kernel NULL pointer dereference, address: 0", True),
        ("UBSAN: array-index-out-of-bounds in fs/btrfs/send.c", True),
        ("btrfs invoked oom-killer: gfp_mask=0x0", True),
        ("oom-kill:constraint=CONSTRAINT_NONE", True),
        ("BTRFS error (device loop3): bad tree block", True),
        ("BTRFS error (device loop4 state EA): commit failed", True),
        ("BTRFS critical (device loop3): corrupt leaf", True),
        ("BTRFS error (device loop33): a neighbour's", False),
        ("BTRFS error (device sda2): the machine's own", False),
        ("BTRFS warning (device loop3): a warning", False),
        ("BTRFS info (device loop3): last unmount of filesystem", False),
        ("I/O error, dev loop9, sector 1", False),
    ],
)
def test_a_line_counts_if_no_healthy_kernel_says_it_about_ours(line: str, counts: bool) -> None:
    said = kernel_log.alarms([line], OURS)
    assert said == ([line] if counts else [])


@pytest.mark.requires("kernel_log", "root")
def test_a_marker_gives_what_was_said_since_and_only_once() -> None:
    Path("/dev/kmsg").write_text("btrsync-harness: before the marker\n")
    with kernel_log.Marker() as marker:
        Path("/dev/kmsg").write_text("btrsync-harness: after the marker\n")
        said = marker.lines()
        assert "btrsync-harness: after the marker" in said
        assert "btrsync-harness: before the marker" not in said
        assert "btrsync-harness: after the marker" not in marker.lines()


def say(words: str) -> None:
    Path("/dev/kmsg").write_text(f"btrsync-harness: {words}\n")


@pytest.mark.kernel_errors_expected
@pytest.mark.requires("kernel_log", "loop")
def test_what_is_said_of_a_device_counts_only_while_it_is_ours() -> None:
    with kernel_log.Watch(is_alone=True) as watch:
        watch.begin()
        with LoopDevice(1 << 20) as loop_device:
            name = loop_device.device.name
            say(f"BTRFS error (device {name}): ours")
        say(f"BTRFS error (device {name}): a neighbour's")
        with LoopDevice(1 << 20):
            pass
        alarms, _ = watch.end()
        assert [line for line in alarms if line.startswith("btrsync-harness")] == [
            f"btrsync-harness: BTRFS error (device {name}): ours"
        ]
        watch.begin()
        say("WARNING: while no device was in use")
        assert watch.end() == ([], [])


@pytest.mark.parametrize(("is_alone", "neighbour"), [(True, True), (False, True), (False, False)])
@pytest.mark.kernel_errors_expected
@pytest.mark.requires("kernel_log", "loop")
def test_what_bears_no_device_is_a_rumour_while_a_neighbour_is_at_work(
    is_alone: bool, neighbour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {Path("/dev/loop99"): "/memfd:btrsync-harness-000000-1-disk (deleted)"} if neighbour else {}
    monkeypatch.setattr(loop, "attached", lambda: files)
    with kernel_log.Watch(is_alone=is_alone) as watch:
        watch.begin()
        with LoopDevice(1 << 20) as loop_device:
            ours = f"btrsync-harness: BTRFS error (device {loop_device.device.name}): ours"
            say("WARNING: planted")
            say(ours.partition(": ")[2])
        # Of neighbours that really are at work we may hear too.
        certain, rumours = (
            [line for line in lines if line.startswith("btrsync-harness")] for lines in watch.end()
        )
    if neighbour and not is_alone:
        assert (certain, rumours) == ([ours], ["btrsync-harness: WARNING: planted"])
    else:
        assert (certain, rumours) == (["btrsync-harness: WARNING: planted", ours], [])


@pytest.mark.kernel_errors_expected
@pytest.mark.requires("kernel_log", "loop")
def test_a_known_bug_of_the_kernel_is_a_rumour_and_any_other_warning_is_none() -> None:
    known = "WARNING: CPU: 0 PID: 7 at fs/btrfs/send.c:8297 btrfs_ioctl_send+0x655/0x2170"
    other = "WARNING: CPU: 0 PID: 7 at fs/btrfs/inode.c:1 btrfs_ioctl_send+0x1/0x2"
    with kernel_log.Watch(is_alone=True) as watch:
        watch.begin()
        with LoopDevice(1 << 20):
            say(known)
            say(other)
        certain, rumours = watch.end()
    assert f"btrsync-harness: {other}" in certain
    assert f"btrsync-harness: {known}" in rumours
    assert not any(known in line for line in certain)
