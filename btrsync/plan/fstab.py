"""The line of an array in fstab(5): what it is, and the file's text with it, all else as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

REPLACED: Final = "# replaced by btrsync array create: "
UNWANTED: Final = frozenset({"auto", "space_cache", "space_cache=v1", "nospace_cache"})
"""Mounted at boot before the mappings are open, or refused by a filesystem with a free space tree."""


class FstabEdit(msgspec.Struct, frozen=True):
    """The file's new text. replaced: lines for the same place that are comments now."""

    text: str
    line: str
    outcome: Literal["there", "added", "replaced"]
    replaced: tuple[str, ...] = ()


def fstab_line(uuid: UUID, mount_point: str, options: Sequence[str]) -> str:
    """Return the line of an array: never mounted at boot by itself, since its mappings are not open then."""
    words = ["noauto", *(word for word in options if word not in ("noauto", "auto"))]
    return f"UUID={uuid} {escape(mount_point)} btrfs {','.join(words)} 0 0"


def escape(field: str) -> str:
    r"""Return a name as a field of fstab: a space as `\040`. Source: fstab(5), getmntent(3)."""
    for letter in "\\ \t\n#":
        field = field.replace(letter, f"\\{ord(letter):03o}")
    return field


def with_line(text: str, line: str) -> FstabEdit:
    """Return the text with that line. Another line for its mount point becomes a comment.

    A line that is there for the same UUID and place, with its options in another order or with some of
    its own, is left alone if it has all that the new line has, and nothing that contradicts it.
    """
    wanted = line.split()
    lines = text.splitlines(keepends=True)
    replaced: list[str] = []
    for number, found in enumerate(lines):
        fields = found.split()
        if len(fields) < 2 or found.lstrip().startswith("#") or fields[1].rstrip("/") != wanted[1]:
            continue
        if _is_enough(fields, wanted):
            return FstabEdit(text, found.strip(), "there")
        replaced.append(found.strip())
        lines[number] = f"{REPLACED}{found}"
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    outcome: Literal["added", "replaced"] = "replaced" if replaced else "added"
    return FstabEdit("".join([*lines, f"{line}\n"]), line, outcome, tuple(replaced))


def _is_enough(fields: Sequence[str], wanted: Sequence[str]) -> bool:
    if len(fields) < 4 or fields[2] != "btrfs":
        return False
    same = fields[0].replace('"', "").lower() == wanted[0].lower()
    has, wants = set(fields[3].split(",")), set(wanted[3].split(","))
    return same and wants <= has and not (has - wants) & UNWANTED
