"""Power cuts and lost writes: no backup that was committed is lost or changed, and the next run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vmimages import mirror_machines as mirror
from tests.vmimages import power_cuts
from tests.vmimages.power_cuts import OPEN, Installation

if TYPE_CHECKING:
    from tests.vmimages.power_cuts import Kind
    from vmimages.image import Image
    from vmimages.machine import Machine

KINDS: tuple[Kind, ...] = ("sync", "sync", "open", "sync", "sync", "sync", "open", "sync", "create", "create")
LONG_S = 1_000_000


def low(_machine: Machine, number: int) -> str:
    """What a member lies on, below dm-crypt: a mapping that can be told to lose what is written."""
    return f"/dev/mapper/low{number}"


def make_low(machine: Machine) -> None:
    for number in (2, 3):
        disk = machine.device(number)
        machine.succeed(f"echo 0 $(blockdev --getsz {disk}) linear {disk} 0 | dmsetup create low{number}")


def write_to_disk(machine: Machine, path: str) -> None:
    """Write a file, and have it on disk as far as the kernel knows."""
    machine.succeed(f"date > {path} && btrfs filesystem sync /MirrorRoot")


def drop_writes(machine: Machine, number: int) -> None:
    """Lose all later writes in silence; nothing is flushed before."""
    disk = machine.device(number)
    table = f"0 $(blockdev --getsz {disk}) flakey {disk} 0 0 {LONG_S} 1 drop_writes"
    machine.succeed(
        f'dmsetup suspend --nolockfs --noflush low{number} && dmsetup load low{number} --table "{table}"'
        f" && dmsetup resume low{number}"
    )


def test_ten_cuts_at_random_moments_are_put_right_by_the_next_run(image: Image) -> None:
    struck: set[str] = set()
    with power_cuts.installed(image, 1) as one:
        for seed, kind in enumerate(KINDS, 1):
            cut = one.cut(kind, seed)
            struck |= set(cut["found"].split()) if kind == "sync" else set()
        # Random moments miss a transfer now and then: more of them, until one has struck it.
        for seed in range(len(KINDS) + 1, 2 * len(KINDS)):
            if struck & {"incoming", "partial"}:
                break
            struck |= set(one.cut("sync", seed)["found"].split())
    assert struck & {"incoming", "partial"}, f"no cut struck a transfer, so nothing was shown: {struck}"


def test_what_was_acknowledged_is_on_disk_though_later_writes_are_lost(image: Image) -> None:
    with Installation(image, seed=2, below=low) as one:
        one.install()
        make_low(one.machine)
        one.make_array()
        write_to_disk(one.machine, "/MirrorRoot/before")
        one.sync()
        acknowledged = set(one.committed)
        for number in (2, 3):
            drop_writes(one.machine, number)
        write_to_disk(one.machine, "/MirrorRoot/after")
        mirror.change(one.machine, seed=2, bulk_bytes=power_cuts.BULK_BYTES)
        mirror.outcome(mirror.sync(one.machine))
        one.machine.crash()

        one.power_on()
        make_low(one.machine)
        one.machine.succeed(OPEN)
        one.machine.succeed("test -e /MirrorRoot/before", "test ! -e /MirrorRoot/after")
        found = {name for name in one.assert_committed_unchanged() if not name.startswith(".")}
        assert found == acknowledged, "the second backup was lost, as the file written before it"
        one.sync()
        assert set(one.committed) > acknowledged
        one.assert_sound()
