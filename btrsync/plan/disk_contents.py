"""What a disk holds now, in words, and by which commands its use would end.

A disk is a tree of layers: partitions, mappings, logical volumes, each with its signatures and mounts.
That no signature is found never means that a disk is empty: plain dm-crypt leaves none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from btrsync.plan.sizes import format_size
from btrsync.plan.superblock import Absence, Superblock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Kind = Literal["disk", "partition", "mapping", "logical_volume", "raid", "other"]

SYSTEM_MOUNTS: Final = frozenset({
    "/", "/boot", "/boot/efi", "/efi", "/etc", "/home", "/nix", "/opt", "/root", "/usr", "/usr/local", "/var",
    "/var/lib", "/var/log",
})  # fmt: skip
"""What is mounted here is this machine's own: nothing overrides that."""

NAMES: Final = {
    "LVM2_member": "physical volume of LVM",
    "linux_raid_member": "member of an md array",
    "crypto_LUKS": "LUKS",
    "gpt": "partition table (gpt)",
    "PMBR": "partition table (gpt)",
    "dos": "partition table (dos)",
    "xfs": "XFS",
    "zfs_member": "member of a ZFS pool",
    "swap": "swap space",
}
"""Words for types of libblkid; any other stands for itself."""


class Signature(msgspec.Struct, frozen=True):
    """One magic number on a device, with the type that libblkid gives it: "xfs", "LVM2_member", "gpt"."""

    type: str
    offset_bytes: int
    label: str | None = None
    uuid: str | None = None


class LvmGroup(msgspec.Struct, frozen=True):
    """The group of LVM that a physical volume belongs to, and how many of them it has in all."""

    name: str
    physical_volumes: int


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One block device, and in `above` those that lie on it: its partitions, or what maps it.

    number: "8:0". name: of a mapping of the device mapper. is_ours: a mapping just as the array's
    configuration has it. group: of a physical volume; mounts: of what it holds, of every member of a
    mounted btrfs.
    """

    device: str
    number: str
    kind: Kind
    size_bytes: int
    name: str = ""
    signatures: tuple[Signature, ...] = ()
    block: Superblock | Absence = "no_magic"
    group: LvmGroup | None = None
    mounts: tuple[str, ...] = ()
    is_swap: bool = False
    is_ours: bool = False
    above: tuple[Layer, ...] = ()

    def walk(self) -> Iterator[Layer]:
        """Yield this layer and all above it, the highest first."""
        for layer in self.above:
            yield from layer.walk()
        yield self


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk by the name it was given, with all that lies on it.

    whole: the disk that it is a partition of. is_blank: zeros wherever it was looked at. behind: what
    it shows through the configured key, None where that was not tried. keeps: files of ours that lie on it.
    """

    member: str
    layer: Layer
    whole: str | None = None
    is_readonly: bool = False
    is_blank: bool = False
    behind: Layer | None = None
    keeps: tuple[str, ...] = ()

    @property
    def own_mapping(self) -> Layer | None:
        """The array's own mapping of it, if that is open."""
        return next((layer for layer in self.layer.above if layer.is_ours), None)

    @property
    def shown(self) -> Layer | None:
        """What it shows through the configured key: in the mapping that is open, else as `behind` tells."""
        return self.own_mapping or self.behind


class Use(msgspec.Struct, frozen=True):
    """One use that a disk is in; argv: what ends it, None where btrsync knows no command for it."""

    words: str
    argv: tuple[str, ...] | None


def describe(disk: Disk) -> list[str]:
    """Return what the disk holds, a line for each layer; what lies on another is set in."""
    named = disk.member if disk.member == disk.layer.device else f"{disk.member} is {disk.layer.device}"
    part = f", a partition of {disk.whole}" if disk.whole else ""
    lines = [
        f"{named}{part}, {format_size(disk.layer.size_bytes)}: {_contents(disk.layer) or _nothing(disk)}"
    ]
    for layer in disk.layer.above:
        lines += _lines(layer, 1)
    if disk.behind is not None:
        lines.append(f"  behind the configured key: {_contents(disk.behind) or 'nothing that is known'}")
    return lines


def _nothing(disk: Disk) -> str:
    if disk.layer.above:
        return "in use"
    if disk.is_blank:
        return "zeros wherever it was looked at"
    return "no signature, and not blank: encrypted without a header, perhaps"


def _lines(layer: Layer, depth: int) -> Iterator[str]:
    kind = {"mapping": "mapping ", "logical_volume": "logical volume ", "raid": "md array "}.get(layer.kind)
    held = _contents(layer) or ("in use" if layer.above else "no signature that is known")
    yield f"{'  ' * depth}{kind or ''}{layer.device}, {format_size(layer.size_bytes)}: {held}"
    for above in layer.above:
        yield from _lines(above, depth + 1)


def _contents(layer: Layer) -> str:
    words = []
    for signature in layer.signatures:
        if signature.type == "btrfs" and isinstance(layer.block, Superblock):
            continue
        word = NAMES.get(signature.type, signature.type)
        if signature.type == "LVM2_member" and layer.group:
            word += f", volume group {layer.group.name}, {'active' if _is_active(layer) else 'not active'}"
        if signature.label:
            word += f' "{printable(signature.label)}"'
        words.append(word)
    if isinstance(layer.block, Superblock):
        words.append(_btrfs(layer.block))
    elif layer.block == "damaged":
        words.append("btrfs with a damaged superblock")
    words += [f"mounted at {point}" for point in layer.mounts]
    words += ["used as swap"] * layer.is_swap
    return "; ".join(dict.fromkeys(words))


def _btrfs(block: Superblock) -> str:
    label = f' "{printable(block.label)}"' if block.label else ""
    return f"btrfs {block.fsid}{label}, member {block.devid} of {block.num_devices}"


def _is_active(layer: Layer) -> bool:
    return any(above.kind == "logical_volume" for above in layer.above)


def printable(text: str) -> str:
    """Return somebody else's label fit for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def uses(disks: Iterable[Disk]) -> list[Use]:
    """Return what the disks are used by, in the order in which it can be ended, each once.

    The array's own mappings are none, but what is mounted from them is.
    """
    found = [use for disk in disks for layer in disk.layer.walk() for use in _uses(layer, disk.layer)]
    return list(dict.fromkeys(found))


def _uses(layer: Layer, lowest: Layer) -> Iterator[Use]:
    for point in reversed(layer.mounts):
        # One use, however many members the filesystem has.
        what = layer.block.fsid if isinstance(layer.block, Superblock) else layer.device
        yield Use(f"{what} is mounted at {point}", ("umount", "--", point))
    if layer.is_swap:
        yield Use(f"{layer.device} is used as swap", ("swapoff", "--", layer.device))
    if layer is lowest or layer.is_ours or layer.kind == "partition":
        return
    match layer.kind:
        case "logical_volume":
            group = lvm_group_of(layer.name)
            yield Use(f"the volume group {group} is active", ("vgchange", "--activate", "n", "--", group))
        case "mapping":
            argv = ("cryptsetup", "close", "--", layer.name)
            yield Use(f"the mapping {layer.name} is open", argv)
        case "raid":
            yield Use(f"the md array {layer.device} is running", ("mdadm", "--stop", layer.device))
        case _:
            argv = ("dmsetup", "remove", "--", layer.name)
            yield Use(f"{layer.device} is in use", argv if layer.name else None)


def lvm_group_of(mapping_name: str) -> str:
    """Return the volume group in the name of a logical volume's mapping.

    Source: dm_build_dm_name() of lvm2: GROUP-VOLUME[-LAYER], each hyphen within one doubled.
    """
    group = ""
    rest = mapping_name
    while True:
        before, hyphen, rest = rest.partition("-")
        group += before
        if not hyphen or not rest.startswith("-"):
            return group
        group += "-"
        rest = rest[1:]


def system_mounts(disk: Disk) -> list[str]:
    """Return the mount points on this disk that belong to the machine itself."""
    points = [point for layer in disk.layer.walk() for point in layer.mounts]
    return [point for point in dict.fromkeys(points) if point in SYSTEM_MOUNTS]


def superblocks(disk: Disk) -> list[tuple[str, Superblock]]:
    """Return every superblock that the disk shows, in the clear or through a key, with its place in words."""
    found = [(layer.device, layer.block) for layer in disk.layer.walk()]
    if disk.behind is not None:
        found.append((f"{disk.member}, behind the configured key", disk.behind.block))
    return [(place, block) for place, block in found if isinstance(block, Superblock)]


def is_damaged(disk: Disk) -> bool:
    """Return whether a superblock is there whose checksum is wrong."""
    layers = [*disk.layer.walk(), *([disk.behind] if disk.behind else [])]
    return any(layer.block == "damaged" for layer in layers)
