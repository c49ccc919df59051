"""Small changes to the text of a configuration, which keep its comments and its layout.

Each is proven: the changed text, read again, differs from the old one in that value and in nothing else.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID


def with_uuid(text: str, array: str, uuid: UUID) -> str | None:
    """Return the text with that `uuid` in [arrays.NAME], None if its layout allows no small change."""
    new = f'uuid = "{uuid}"'

    def change(table: dict[str, Any]) -> None:
        table["uuid"] = str(uuid)

    def candidates(part: str) -> Iterator[str]:
        line = re.compile(r"""^([ \t]*)uuid[ \t]*=[ \t]*(?:"[^"\n]*"|'[^'\n]*')""", re.MULTILINE)
        yield line.sub(rf"\g<1>{new}", part, count=1)
        heading, newline, rest = part.partition("\n")
        yield f"{heading}\n{new}{newline}{rest}"

    return _proven(text, array, change, candidates)


def with_member(text: str, array: str, member: str) -> str | None:
    """Return the text with one more member, the last; None if its layout allows no small change."""
    last = _table(tomllib.loads(text), array)["members"][-1]

    def change(table: dict[str, Any]) -> None:
        table["members"].append(member)

    def candidates(part: str) -> Iterator[str]:
        for start, end in _quoted(part, last):
            before = part[part.rfind("\n", 0, start) + 1 : start]
            gap = f"\n{before}" if not before.strip() else " "
            yield f"{part[:end]},{gap}{json.dumps(member, ensure_ascii=False)}{part[end:]}"

    return _proven(text, array, change, candidates)


def without_member(text: str, array: str, member: str) -> str | None:
    """Return the text without one member, if it names it; None if its layout allows no small change."""
    if member not in _table(tomllib.loads(text), array)["members"]:
        return text

    def change(table: dict[str, Any]) -> None:
        table["members"].remove(member)

    def candidates(part: str) -> Iterator[str]:
        for start, end in _quoted(part, member):
            comma = re.compile(r",\s*\Z").search(part, 0, start)
            yield part[: comma.start()] + part[end:] if comma else part[:start] + part[end:].lstrip(", ")

    return _proven(text, array, change, candidates)


def with_member_instead(text: str, array: str, old: str, new: str) -> str | None:
    """Return the text with one member in the place of another; None if its layout allows no small change."""

    def change(table: dict[str, Any]) -> None:
        table["members"][table["members"].index(old)] = new

    def candidates(part: str) -> Iterator[str]:
        for start, end in _quoted(part, old):
            yield part[:start] + json.dumps(new, ensure_ascii=False) + part[end:]

    return _proven(text, array, change, candidates)


def _table(document: dict[str, Any], array: str) -> dict[str, Any]:
    table: dict[str, Any] = document["arrays"][array]
    return table


def _quoted(part: str, value: str) -> Iterator[tuple[int, int]]:
    """Yield where a text stands in quotes of either kind."""
    for quoted in (json.dumps(value, ensure_ascii=False), f"'{value}'"):
        for match in re.finditer(re.escape(quoted), part):
            yield match.span()


def _proven(
    text: str,
    array: str,
    change: Callable[[dict[str, Any]], None],
    candidates: Callable[[str], Iterator[str]],
) -> str | None:
    """Return the first candidate that says what `change` makes of the old text, None if none does.

    candidates: given the text of the array's table, from its heading to the next.
    """
    wanted = tomllib.loads(text)
    change(_table(wanted, array))
    name = rf"""(?:{re.escape(array)}|"{re.escape(array)}"|'{re.escape(array)}')"""
    heading = re.search(rf"^[ \t]*\[[ \t]*arrays[ \t]*\.[ \t]*{name}[ \t]*\]", text, re.MULTILINE)
    if heading is None:
        return None
    following = re.compile(r"^[ \t]*\[", re.MULTILINE).search(text, heading.end())
    end = following.start() if following else len(text)
    for part in candidates(text[heading.start() : end]):
        changed = text[: heading.start()] + part + text[end:]
        try:
            if tomllib.loads(changed) == wanted:
                return changed
        except tomllib.TOMLDecodeError:
            continue
    return None
