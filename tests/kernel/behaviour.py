"""The record of a behaviour: what was tried on a real filesystem, what was seen, how a page tells it.

A *behaviour* is one test with a docstring of four parts: a sentence that names it, then paragraphs that
begin with ``Expected:``, ``btrsync:`` and ``Source:``. A *step* is a command with its exit status and its
words. A *fact* is a sentence about the state of the filesystem that was found to hold. What changes from
run to run (UUIDs, times, paths) is replaced by a word before it is recorded, so that two runs on one
kernel give one record.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_LOOP = re.compile(r"/dev/loop\d+")
_ID = re.compile(r"\b(id|subvolume) \d+\b")
_CHUNKS = re.compile(r"\d+ out of \d+ chunks")
_LABELS = ("Expected", "btrsync", "Source")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one test claims: its sentence, and why anybody should care."""

    name: str
    group: str
    expected: str
    btrsync: str
    source: str
    test: str


@dataclass(frozen=True, slots=True)
class Step:
    """A command as a person would type it, its exit status, and every line it said."""

    command: str
    status: int
    words: tuple[str, ...] = ()


@dataclass(slots=True)
class Record:
    """A behaviour and what was seen of it in this run, in the order in which it was seen."""

    behaviour: Behaviour
    steps: list[Step] = field(default_factory=list)
    facts: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Versions:
    """What the words and the facts of a record depend on."""

    kernel: str
    btrfs_progs: str
    coreutils: str

    @property
    def key(self) -> str:
        """Under which an atlas over many kernels files what was seen."""
        return f"kernel {self.kernel}, btrfs-progs {self.btrfs_progs}, coreutils {self.coreutils}"


def behaviour_of(test: Callable[..., object]) -> Behaviour:
    """Read the behaviour that a test function describes in its docstring.

    Raises ValueError where a part is missing: a behaviour without an expectation or without a
    consequence is an anecdote.
    """
    paragraphs = inspect.cleandoc(test.__doc__ or "").split("\n\n")
    name = " ".join(paragraphs[0].split())
    parts = dict.fromkeys(_LABELS, "")
    for paragraph in paragraphs[1:]:
        label, colon, text = paragraph.partition(":")
        if not colon or label not in parts:
            raise ValueError(f"{test.__name__}: a paragraph begins with none of {_LABELS}: {paragraph!r}")
        parts[label] = " ".join(text.split()).removesuffix(".")
    missing = [label for label, text in parts.items() if not text]
    if not name or missing:
        raise ValueError(f"{test.__name__}: its docstring lacks {missing or 'a first sentence'}")
    module = inspect.unwrap(test).__globals__
    group = inspect.cleandoc(module["__doc__"] or "").split("\n\n")[0]
    return Behaviour(
        name=name.removesuffix("."),
        group=" ".join(group.split()).removesuffix("."),
        expected=parts["Expected"],
        btrsync=parts["btrsync"],
        source=parts["Source"],
        test=f"tests/kernel/{Path(module['__file__']).name}::{test.__name__}",
    )


def normal(text: str, names: Iterable[tuple[str, str]]) -> str:
    """Replace what varies from run to run: paths by their `names`, longest first, UUIDs and loop devices."""
    for real, shown in sorted(names, key=lambda pair: len(pair[0]), reverse=True):
        text = text.replace(real, shown)
    text = _LOOP.sub("/dev/loopN", _UUID.sub("<uuid>", text))
    return _CHUNKS.sub("N out of N chunks", _ID.sub(r"\1 N", text))


# --------------------------------------------------------------------------------------- the page


def format_record(record: Record) -> str:
    """Render one behaviour as a section of the page, without a trailing newline."""
    behaviour = record.behaviour
    lines = [f"### {behaviour.name}", "", *_wrapped(f"**Expected:** {behaviour.expected}."), ""]
    if record.steps:
        lines.append("```console")
        for step in record.steps:
            lines.append(f"# {step.command}")
            lines.extend(step.words)
            if step.status:
                lines.append(f"[exit status {step.status}]")
        lines += ["```", ""]
    for sentence, holds in record.facts.items():
        lines += _wrapped(sentence if holds else f"NOT SO: {sentence}", bullet=True)
    lines += [""] if record.facts else []
    lines += [*_wrapped(f"**What btrsync does about it:** {behaviour.btrsync}."), ""]
    lines += _wrapped(f"Source: {behaviour.source}. Test: `{behaviour.test}`.")
    return "\n".join(lines)


def without_words(section: str) -> str:
    """Return a section without what programs said: commands, exit statuses and facts remain."""
    kept: list[str] = []
    in_console = False
    for line in section.splitlines():
        if line.startswith("```"):
            in_console = line == "```console"
        elif in_console and not line.startswith(("# ", "[exit status ")):
            continue
        kept.append(line)
    return "\n".join(kept)


def sections_of(page: str) -> dict[str, str]:
    """Split a page into its behaviours, by name."""
    found: dict[str, str] = {}
    for part in re.split(r"^(?=#{2,3} )", page, flags=re.MULTILINE):
        heading, _, _ = part.partition("\n")
        if heading.startswith("### "):
            found[heading.removeprefix("### ")] = part.rstrip()
    return found


def written_on(page: str) -> str:
    """Return the versions that a page says it was written on; empty if it does not say."""
    match = re.search(r"^Written on (.+)\.$", page, flags=re.MULTILINE)
    return match[1] if match else ""


def _wrapped(text: str, *, bullet: bool = False) -> list[str]:
    indent = "- " if bullet else ""
    return textwrap.wrap(
        text,
        width=110,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


# --------------------------------------------------------------------------------------- the atlas


def as_json(records: Iterable[Record], versions: Versions) -> dict[str, Any]:
    """Return the records as plain data: what was expected once, what was seen under the versions' key.

    Documents of several kernels differ only below `seen`, so that an atlas is the union of them.
    """
    return {
        "versions": {versions.key: asdict(versions)},
        "behaviours": [
            asdict(record.behaviour)
            | {
                "seen": {
                    versions.key: {
                        "steps": [asdict(step) for step in record.steps],
                        "facts": record.facts,
                    }
                }
            }
            for record in records
        ],
    }


def records_of(document: dict[str, Any], key: str) -> list[Record]:
    """Read back from `as_json` what was seen under `key`."""
    records = []
    for item in document["behaviours"]:
        seen = item["seen"].get(key)
        if seen is None:
            continue
        described = {name: item[name] for name in Behaviour.__dataclass_fields__}
        steps = [Step(step["command"], step["status"], tuple(step["words"])) for step in seen["steps"]]
        records.append(Record(Behaviour(**described), steps, dict(seen["facts"])))
    return records
