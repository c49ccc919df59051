"""`btrsync array create`: from disks to an array that `open` takes.

A power cut anywhere is put right by the next run. In order: what uses the disks is ended, if that is
wanted; a mark, and the UUID in the configuration; old signatures; mappings; mkfs.btrfs with that UUID;
proof that all members show it; the mark goes. Then, each only if it is missing: the subvolume, the mount
point, the line in fstab.
"""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID, uuid4

import msgspec

from btrsync.array import recording
from btrsync.array.inspecting import inspect
from btrsync.array.recording import Places
from btrsync.errors import RefusedError, StorageError
from btrsync.plan.array_create import CreatePlan, Known, Problem, Wish, plan_create, use_problems
from btrsync.plan.array_open import MemberView, judge, mount_options
from btrsync.plan.disk_contents import Disk, describe
from btrsync.plan.fstab import UNWANTED, FstabEdit, fstab_line
from btrsync.plan.superblock import Superblock
from btrsync.system import btrfs_devices, disks, dmcrypt, mounting
from btrsync.system.top_level import has_subvolume, make_subvolume, top_level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from btrsync.array.setup import ArraySetup

MKFS_TIMEOUT_S: Final = 3600.0
END_TIMEOUT_S: Final = 600.0


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """How `create` ended. "unchanged": the disks hold this very array, and nothing was missing."""

    outcome: Literal["made", "completed", "unchanged"]
    uuid: UUID
    done: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What was found and what would be done, before anything is."""

    disks: tuple[Disk, ...]
    plan: CreatePlan
    uuid: UUID

    def contents(self) -> list[str]:
        """Return in words what each disk holds now."""
        return [line for disk in self.disks for line in describe(disk)]


class CreateRefusedError(RefusedError):
    """The disks may not become the array as they are; every reason with its remedy."""

    def __init__(self, name: str, found: Survey, problems: Sequence[Problem], *, ended: bool = False) -> None:
        self.problems = tuple(problems)
        what = "only what used the disks was ended" if ended else "nothing was changed"
        lines = [f"array {name}: not created, and {what}. The disks hold now:"]
        lines += [f"  {line}" for line in found.contents()]
        for problem in problems:
            lines += [f"but {problem.words}", f"    {problem.remedy}"]
        super().__init__("\n".join(lines))


class Wanting(msgspec.Struct, frozen=True, kw_only=True):
    """What `create` is to do: the wish, where it is written down, and the disks of other arrays."""

    wish: Wish
    places: Places
    others: dict[str, str] = {}


def survey(setup: ArraySetup, wanting: Wanting) -> Survey:
    """Look at the disks, and return what `create` would do; nothing is changed."""
    with setup.lock():
        return _survey(setup, wanting)


def create_array(
    setup: ArraySetup,
    wanting: Wanting,
    *,
    confirm: Callable[[Survey], None],
    say: Callable[[str], None] = lambda _: None,
) -> Created:
    """Make the array, or complete what an earlier run has begun; closed again if it was closed.

    confirm: shown what would be done before anything is, raises what stops it. say: told what is being
    done. Raises CreateRefusedError with every reason, StorageError, CommandError, ConfigError, LockedError.
    """
    with setup.lock():
        found = _survey(setup, wanting)
        if found.plan.problems:
            raise CreateRefusedError(setup.name, found, found.plan.problems)
        if found.plan.kind == "go_on":
            return _complete(setup, wanting, found, "completed", say)
        recording.record_uuid(wanting.places, setup.name, found.uuid, is_trial=True)
        confirm(found)
        if found.plan.ends:
            for use in found.plan.ends:
                say(shlex.join(use.argv or ()))
                disks.run(use.argv or (), timeout_s=END_TIMEOUT_S)
            found = _survey(setup, wanting)
            if found.plan.problems or found.plan.ends:
                left = use_problems(found.plan.ends, deactivates=False)
                raise CreateRefusedError(setup.name, found, [*found.plan.problems, *left], ended=True)
            if found.plan.kind == "go_on":
                return _complete(setup, wanting, found, "completed", say)
        _make(setup, wanting, found, say)
        return _complete(setup, wanting, found, "made", say)


def commands(setup: ArraySetup, wanting: Wanting, found: Survey) -> list[str]:
    """Return the commands that would be run, as a person would type them."""
    lines = [shlex.join(use.argv or ()) for use in found.plan.ends]
    if found.plan.kind == "make":
        lines += [shlex.join(argv) for disk in found.disks for argv in wipe_commands(setup, disk)]
        key = setup.needed_key()
        if setup.encryption.type == "luks2":
            lines += [
                shlex.join(dmcrypt.format_argv(one.device, setup.encryption, key)) for one in setup.wanted
            ]
        lines += [shlex.join(dmcrypt.open_argv(one, setup.encryption, key)) for one in setup.wanted]
        lines += [shlex.join(disks.wipe_argv(str(dmcrypt.MAPPER / one.name))) for one in setup.wanted]
        lines.append(shlex.join(_mkfs_argv(setup, wanting.wish, found.uuid)))
    name = subvolume_of(setup.config.options)
    if name is not None:
        lines.append(f"btrfs subvolume create {name}, if it is not there")
    if not setup.config.mount_point.exists():
        lines.append(f"mkdir -p {shlex.quote(str(setup.config.mount_point))}")
    shown = found.disks[0].shown
    edit, _ = _edit_fstab(setup, wanting, found.uuid, shown.block if shown else None, is_trial=True)
    lines.append(f"in {wanting.places.fstab}: {edit.line}")
    return lines


def subvolume_of(options: str) -> str | None:
    """Return the subvolume that mount options name, without slashes around it; None for the top level."""
    named = [word.partition("=")[2].strip("/") for word in options.split(",") if word.startswith("subvol=")]
    return named[-1] or None if named else None


def _survey(setup: ArraySetup, wanting: Wanting) -> Survey:
    key = setup.config.key_file or setup.config.passphrase_file
    keeps = [wanting.places.configuration, wanting.places.fstab, *([key] if key else [])]
    found = inspect(setup, setup.wanted, keeps=keeps)
    unfinished = recording.read_unfinished(wanting.places, setup.name)
    known = Known(
        name=setup.name,
        uuid=setup.config.uuid,
        unfinished=unfinished,
        others=wanting.others,
        cipher=setup.config.cipher if setup.encryption.type == "plain" else None,
    )
    plan = plan_create(found, wanting.wish, known)
    # The UUID of what is written over is not given again: a member of it may lie in a drawer.
    uuid = setup.config.uuid or unfinished
    if uuid is None or uuid in wanting.wish.arrays:
        uuid = uuid4()
    return Survey(disks=found, plan=plan, uuid=uuid)


def _make(setup: ArraySetup, wanting: Wanting, found: Survey, say: Callable[[str], None]) -> None:
    recording.write_unfinished(wanting.places, setup.name, found.uuid)
    recording.record_uuid(wanting.places, setup.name, found.uuid)
    _close(setup, [one.name for one in setup.wanted])
    for disk in found.disks:
        for argv in wipe_commands(setup, disk):
            say(shlex.join(argv))
            disks.run(argv, timeout_s=END_TIMEOUT_S)
    if setup.encryption.type == "luks2":
        for wanted in setup.wanted:
            say(f"writing a LUKS2 header to {wanted.device}")
            dmcrypt.format_luks2(wanted.device, setup.encryption, setup.needed_key())
    with ExitStack() as undo:
        names = _open(setup)
        undo.callback(_close, setup, names)
        for name in names:
            # What lies behind the key from before: mkfs.btrfs without --force then refuses all it still sees.
            disks.run(disks.wipe_argv(str(dmcrypt.MAPPER / name)), timeout_s=END_TIMEOUT_S)
        argv = _mkfs_argv(setup, wanting.wish, found.uuid)
        say(shlex.join(argv))
        disks.run(argv, timeout_s=MKFS_TIMEOUT_S)
        _prove(setup, found.uuid)
        undo.pop_all()
    recording.remove_unfinished(wanting.places, setup.name)


def wipe_commands(setup: ArraySetup, disk: Disk) -> Iterator[list[str]]:
    """Yield what removes signatures in the clear, which would let LVM or md take the disk at the next boot.

    What lies before the mapping's offset is left alone, as the configuration says.
    """
    offset_bytes = setup.encryption.offset_sectors * dmcrypt.SECTOR_BYTES
    for layer in disk.layer.walk():
        if layer.kind not in ("disk", "partition") or not layer.signatures:
            continue
        if not offset_bytes:
            yield disks.wipe_argv(layer.device)
        elif layer is disk.layer:
            offsets = [one.offset_bytes for one in layer.signatures if one.offset_bytes >= offset_bytes]
            yield from (disks.wipe_argv(layer.device, offset) for offset in offsets)


def _mkfs_argv(setup: ArraySetup, wish: Wish, uuid: UUID) -> list[str]:
    label = ["--label", setup.config.label] if setup.config.label else []
    profiles = ["--data", wish.data, "--metadata", wish.metadata]
    devices = [str(dmcrypt.MAPPER / one.name) for one in setup.wanted]
    return ["mkfs.btrfs", "--quiet", *label, "--uuid", str(uuid), *profiles, "--", *devices]


def _open(setup: ArraySetup) -> list[str]:
    """Open the mappings that are not open yet, and return their names."""
    found = setup.open_mappings()
    wanted = [one for one in setup.wanted if one.name not in found]
    if wanted:
        dmcrypt.open_mappings(wanted, setup.encryption, setup.needed_key())
    dmcrypt.make_nodes([one.name for one in setup.wanted])
    return [one.name for one in wanted]


def _close(setup: ArraySetup, names: Sequence[str]) -> None:
    found = [mapping for name, mapping in setup.open_mappings().items() if name in names]
    btrfs_devices.forget([mapping.device for mapping in found])
    dmcrypt.close_mappings(found)


def _prove(setup: ArraySetup, uuid: UUID) -> None:
    """Raise StorageError unless every mapping shows its member of what mkfs.btrfs has made."""
    views = [
        MemberView(str(one.device), btrfs_devices.read_superblock(dmcrypt.MAPPER / one.name))
        for one in setup.wanted
    ]
    verdict = judge(views, uuid)
    if not verdict.is_whole:
        raise StorageError(f"array {setup.name}: after mkfs.btrfs: {verdict.sentence}", hint="dmesg")


def _complete(
    setup: ArraySetup,
    wanting: Wanting,
    found: Survey,
    outcome: Literal["made", "completed"],
    say: Callable[[str], None],
) -> Created:
    """Do what is missing beside the filesystem, and close what this opens."""
    done: list[str] = []
    is_mounted = bool(mounting.btrfs_mounts(one.number for one in setup.open_mappings().values()))
    with ExitStack() as undo:
        was_open = set(setup.open_mappings()) if outcome == "completed" else set()
        opened = [one.name for one in setup.wanted if one.name not in was_open]
        undo.callback(_close, setup, opened)
        _open(setup)
        block = btrfs_devices.read_superblock(dmcrypt.MAPPER / setup.wanted[0].name)
        name = subvolume_of(setup.config.options)
        if name is not None and not is_mounted and _add_subvolume(setup, name):
            done.append(f"the subvolume {name}")
    point = setup.config.mount_point
    if not point.exists():
        point.mkdir(mode=0o755, parents=True)
        done.append(f"the directory {point}")
    edit, notes = _edit_fstab(setup, wanting, found.uuid, block)
    if edit.outcome != "there":
        done.append(f"the line in {wanting.places.fstab}")
        notes += tuple(
            f"in {wanting.places.fstab}, this line is a comment now: {old}" for old in edit.replaced
        )
    else:
        notes = ()
    if recording.read_unfinished(wanting.places, setup.name) == found.uuid:
        recording.remove_unfinished(wanting.places, setup.name)
    for word in done:
        say(f"made {word}")
    kind = outcome if done or outcome == "made" else "unchanged"
    return Created(outcome=kind, uuid=found.uuid, done=tuple(done), notes=(*found.plan.notes, *notes))


def _add_subvolume(setup: ArraySetup, name: str) -> bool:
    """Make the subvolume if it is missing; looked for on a read-only mount, which changes nothing."""
    devices = [dmcrypt.MAPPER / one.name for one in setup.wanted]
    devices = [one for one in devices if isinstance(btrfs_devices.read_superblock(one), Superblock)]
    btrfs_devices.scan(devices)
    with top_level(devices[0], readonly=True) as top:
        if has_subvolume(top, name):
            return False
    with top_level(devices[0], readonly=False) as top:
        make_subvolume(top, name)
    return True


def _edit_fstab(
    setup: ArraySetup, wanting: Wanting, uuid: UUID, block: object, *, is_trial: bool = False
) -> tuple[FstabEdit, tuple[str, ...]]:
    """Write the array's line into fstab, with the options that its filesystem takes."""
    if isinstance(block, Superblock):
        options, notes = mount_options(setup.config.options, block)
    else:  # before mkfs.btrfs, whose default has been a free space tree since 5.15
        options, notes = tuple(w for w in setup.config.options.split(",") if w and w not in UNWANTED), ()
    line = fstab_line(uuid, str(setup.config.mount_point), options)
    return recording.write_fstab(wanting.places, line, is_trial=is_trial), notes
