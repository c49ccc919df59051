"""What `array create` makes of disks as they were found: every refusal, every word, no disk."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest

from btrsync.plan.array_create import FRESH_GENERATION, CreatePlan, Known, Wish, plan_create
from btrsync.plan.array_member import MemberWish, plan_member
from btrsync.plan.disk_contents import Disk, Layer, LvmGroup, Signature, describe, lvm_group_of, uses
from btrsync.plan.superblock import Superblock

GIB = 1 << 30
TIB = 1 << 40
MIRROR = UUID("7ebc7d8d-35c6-4d98-8457-3323c242e9fe")
OTHER = UUID("0d09b605-a52b-48f4-8ad5-ed26456ab6cd")


def member(devid: int, *, uuid: UUID = MIRROR, members: int = 2, generation: int = 100) -> Superblock:
    return Superblock(
        fsid=uuid,
        metadata_uuid=uuid,
        generation=generation,
        num_devices=members,
        devid=devid,
        device_uuid=UUID(int=devid),
        device_bytes=GIB,
        total_bytes=members * GIB,
        label="MirrorBtr",
        nodesize=16384,
        csum_type="crc32c",
        compat_ro_flags=1,
        incompat_flags=0,
    )


def layer(index: int, **words: Any) -> Layer:
    known: dict[str, Any] = {
        "device": f"/dev/sd{'abcdef'[index]}", "number": f"8:{16 * index}", "kind": "disk", "size_bytes": TIB,
    }  # fmt: skip
    return Layer(**(known | words))


def disk(number: int, shows: Superblock | None = None, **words: Any) -> Disk:
    behind = layer(5, kind="mapping", block=shows) if shows else layer(5, kind="mapping")
    known: dict[str, Any] = {"member": f"ata-{number}", "layer": layer(number), "behind": behind}
    return Disk(**(known | words))


def above(kind: str, **words: Any) -> Layer:
    return layer(4, **({"kind": kind, "number": "254:7"} | words))


BLANK = [disk(0), disk(1)]
NAMED = Wish(wipe={"ata-0": "8:0", "ata-1": "8:16"})
KNOWN = Known(name="mirror", uuid=MIRROR)


def plan(disks: list[Disk], wish: Wish = NAMED, known: Known = KNOWN) -> CreatePlan:
    return plan_create(disks, wish, known)


def words_of(found: CreatePlan) -> str:
    return "; ".join(f"{problem.words} -> {problem.remedy}" for problem in found.problems)


def test_blank_disks_that_are_named_become_the_array() -> None:
    found = plan(BLANK)
    assert (found.kind, found.problems, found.ends) == ("make", (), ())
    assert "one disk lost is data lost" in "; ".join(found.notes)


@pytest.mark.parametrize("is_blank", [True, False])
def test_no_signature_is_never_taken_for_empty(is_blank: bool) -> None:
    disks = [msgspec.structs.replace(one, is_blank=is_blank) for one in BLANK]
    said = words_of(plan(disks, Wish(wipe={"ata-0": "8:0"})))
    assert "all that is on ata-1 would be lost, and --wipe does not name it" in said
    assert "btrsync array create mirror --wipe ata-0 ata-1" in said
    assert ("perhaps" in describe(disks[0])[0]) is not is_blank


def test_a_disk_that_is_no_member_is_not_named_for_nothing() -> None:
    said = words_of(plan(BLANK, Wish(wipe={**NAMED.wipe, "ata-9": "8:99"})))
    assert said.startswith("ata-9 is no member of the array")


def test_this_very_array_is_gone_on_with_unless_it_is_named_itself() -> None:
    disks = [disk(0, member(1)), disk(1, member(2))]
    assert plan(disks, Wish()).kind == "go_on"
    assert plan(disks, NAMED).kind == "go_on"
    anew = plan(disks, msgspec.structs.replace(NAMED, arrays=(MIRROR,)))
    assert (anew.kind, anew.problems) == ("make", ())


@pytest.mark.parametrize(
    "disks",
    [
        [disk(0, member(1)), disk(1)],
        [disk(0, member(1)), disk(1, member(1))],
        [disk(0, member(1)), disk(1, member(2, generation=90))],
        [disk(0, member(1, members=3)), disk(1, member(2, members=3))],
    ],
    ids=["noise", "doubled", "stale", "missing"],
)
def test_this_very_array_in_disorder_is_not_made_anew(disks: list[Disk]) -> None:
    found = plan(disks)
    assert found.kind == "make"
    assert "this very array, though not complete" in words_of(found)
    assert plan(disks, msgspec.structs.replace(NAMED, arrays=(MIRROR,))).problems == ()


def test_what_an_unfinished_create_left_is_no_array_until_it_was_written_to() -> None:
    known = Known(name="mirror", uuid=MIRROR, unfinished=MIRROR)
    fresh = [disk(0, member(1, generation=FRESH_GENERATION)), disk(1)]
    assert plan(fresh, NAMED, known).problems == ()
    assert plan(fresh).problems != ()
    used = [disk(0, member(1, generation=FRESH_GENERATION + 1)), disk(1)]
    assert "this very array" in words_of(plan(used, NAMED, known))
    whole = [disk(0, member(1, generation=FRESH_GENERATION)), disk(1, member(2, generation=FRESH_GENERATION))]
    assert plan(whole, NAMED, known).kind == "go_on"


@pytest.mark.parametrize(
    "one",
    [
        disk(0, member(1, uuid=OTHER)),
        disk(0, layer=layer(0, block=member(1, uuid=OTHER))),
        disk(0, layer=layer(0, above=(above("partition", block=member(1, uuid=OTHER)),))),
    ],
    ids=["behind the key", "in the clear", "on a partition"],
)
def test_another_btrfs_must_be_named(one: Disk) -> None:
    disks = [one, disk(1)]
    assert f"--wipe-array {OTHER}" in words_of(plan(disks))
    assert plan(disks, msgspec.structs.replace(NAMED, arrays=(OTHER,))).problems == ()
    assert "no disk shows the btrfs" in words_of(plan(BLANK, msgspec.structs.replace(NAMED, arrays=(OTHER,))))


def test_a_damaged_superblock_cannot_be_named_away() -> None:
    for damaged in (disk(0, behind=layer(5, block="damaged")), disk(0, layer=layer(0, block="damaged"))):
        found = plan([damaged, disk(1)], msgspec.structs.replace(NAMED, arrays=(MIRROR,)))
        assert "damaged superblock" in words_of(found)


@pytest.mark.parametrize("deactivates", [True, False])
def test_the_machines_own_disk_is_never_written_to(deactivates: bool) -> None:
    wish = msgspec.structs.replace(NAMED, deactivates=deactivates, accepts_uneven=True)
    for one, said in (
        (disk(0, layer=layer(0, above=(above("partition", mounts=("/boot", "/")),))), "it holds /boot, /"),
        (disk(0, keeps=("/home/foo/key",)), "ata-0 holds /home/foo/key"),
        (disk(0, is_readonly=True), "ata-0 is read-only"),
    ):
        assert said in words_of(plan([one, disk(1)], wish))


def test_what_uses_a_disk_is_named_or_ended_from_the_top_down() -> None:
    upper = layer(
        3, kind="logical_volume", number="254:1", name="Mirror--VG-LV", device="/dev/mapper/Mirror--VG-LV",
        mounts=("/MirrorSlave",), signatures=(Signature("xfs", 0, label="slave"),),
    )  # fmt: skip
    mapping = layer(
        2, kind="mapping", number="254:0", name="luks", device="/dev/mapper/luks", above=(upper,),
        signatures=(Signature("LVM2_member", 536),), group=LvmGroup("Mirror-VG", 4),
    )  # fmt: skip
    part = layer(4, kind="partition", number="8:65", is_swap=True)
    used = disk(0, layer=layer(0, above=(mapping, part)), behind=None)
    found = plan([used, disk(1)], msgspec.structs.replace(NAMED, deactivates=True))
    assert [use.argv for use in found.ends] == [
        ("umount", "--", "/MirrorSlave"),
        ("vgchange", "--activate", "n", "--", "Mirror-VG"),
        ("cryptsetup", "close", "--", "luks"),
        ("swapoff", "--", "/dev/sde"),
    ]
    assert found.problems == ()
    assert "Mirror-VG has 4 physical volumes, and 1 go here" in "; ".join(found.notes)
    said = words_of(plan([used, disk(1)]))
    assert "the volume group Mirror-VG is active -> vgchange --activate n -- Mirror-VG; --deactivate" in said
    told = describe(used)
    assert (
        told[1]
        == "  mapping /dev/mapper/luks, 1.0 TiB: physical volume of LVM, volume group Mirror-VG, active"
    )
    assert (
        told[2]
        == '    logical volume /dev/mapper/Mirror--VG-LV, 1.0 TiB: XFS "slave"; mounted at /MirrorSlave'
    )
    assert told[3] == "  /dev/sde, 1.0 TiB: used as swap"


def test_one_use_of_several_disks_is_ended_once() -> None:
    shared = above("mapping", name="btrdm_01", is_ours=True, block=member(1), mounts=("/MirrorRoot",))
    both = [disk(0, layer=layer(0, above=(shared,))), disk(1, layer=layer(1, above=(shared,)))]
    assert [use.argv for use in uses(both)] == [("umount", "--", "/MirrorRoot")]


def test_a_use_without_a_known_command_is_not_ended_by_force() -> None:
    odd = disk(0, layer=layer(0, above=(above("other"),)))
    said = words_of(plan([odd, disk(1)], msgspec.structs.replace(NAMED, deactivates=True)))
    assert "in use -> end it by its own tools" in said


def test_disks_that_are_one_or_on_one_another_or_anothers_or_uneven_are_told() -> None:
    alias = msgspec.structs.replace(BLANK[0], member="wwn-0")
    assert "ata-0 and wwn-0 are one disk" in words_of(plan([BLANK[0], alias]))
    part = layer(1, kind="partition")
    whole = disk(0, layer=layer(0, above=(part,)))
    assert "ata-1 lies on ata-0, the whole disk" in words_of(plan([whole, disk(1)]))
    others = Known(name="mirror", others={"8:16": "arrays.slave"})
    assert "ata-1 is a member of arrays.slave" in words_of(plan(BLANK, NAMED, others))
    uneven = [BLANK[0], disk(1, layer=layer(1, size_bytes=TIB // 2 - 1))]
    assert "ata-1 has 512.0 GiB and ata-0 1.0 TiB" in words_of(plan(uneven))
    assert plan(uneven, msgspec.structs.replace(NAMED, accepts_uneven=True)).problems == ()


def test_a_profile_that_needs_more_disks_is_refused() -> None:
    said = words_of(plan(BLANK, msgspec.structs.replace(NAMED, metadata="raid1c3")))
    assert "metadata in the profile raid1c3 needs 3 disks, and the array has 2" in said


def test_a_cipher_that_repeats_on_disks_so_large_is_told() -> None:
    large = [disk(n, layer=layer(n, size_bytes=3 * TIB)) for n in (0, 1)]
    said = "; ".join(plan(large, NAMED, Known(name="mirror", cipher="twofish-xts-plain")).notes)
    assert 'write cipher = "twofish-xts-plain64"' in said
    for disks, cipher in ((BLANK, "twofish-xts-plain"), (large, "twofish-xts-plain64")):
        assert "repeat" not in "; ".join(plan(disks, NAMED, Known(name="mirror", cipher=cipher)).notes)


def test_names_of_logical_volumes_tell_their_group() -> None:
    for name, group in (("vg-lv", "vg"), ("my--vg-lv--1", "my-vg"), ("a----b-lv-real", "a--b")):
        assert lvm_group_of(name) == group


def test_a_new_member_is_held_to_the_same() -> None:
    wish = MemberWish(wipes=True, needed_bytes=TIB, offset_bytes=0)
    assert plan_member(disk(0), wish, KNOWN).problems == ()
    for one, changed, known, said in (
        (disk(0), {"wipes": False}, KNOWN, "all that is on ata-0 would be lost"),
        (disk(0), {"offset_bytes": 1}, KNOWN, "the disk in whose place it comes"),
        (disk(0, member(1)), {}, KNOWN, "of this very array"),
        (disk(0), {}, Known(name="mirror", others={"8:0": "arrays.mirror"}), "a member of arrays.mirror"),
        (disk(0, layer=layer(0, mounts=("/home",))), {"deactivates": True}, KNOWN, "this machine's own disk"),
    ):
        found = plan_member(one, msgspec.structs.replace(wish, **changed), known)
        assert said in "; ".join(problem.words for problem in found.problems)
