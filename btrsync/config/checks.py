"""What must hold between the keys of a configuration, beyond the type of each: problems as sentences."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from btrsync.config.fields import (
    DEFAULT_SNAPSHOT_NAME,
    NAME_PATTERN,
    NAME_RULE,
    SMALLEST_CHECKPOINT_BYTES,
)
from btrsync.plan.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from btrsync.config.fields import ClientEntry, JobConfig, TargetConfig

HOST_PATTERN = re.compile(r"[A-Za-z0-9:_][A-Za-z0-9._:%-]*")
USER_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*\$?")
SSH_OPTION_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9]*=[^\x00-\x1f]+")
TIME_DIRECTIVES = ("%Y", "%m", "%d", "%H", "%M", "%S")


def name_problems(table: Mapping[str, Any], keys: Iterable[str]) -> Iterator[str]:
    """Yield each job, target or client whose name could not be a directory, a word or a log entry."""
    for key in keys:
        tables = table.get(key)
        for name in tables if isinstance(tables, dict) else ():
            if not NAME_PATTERN.fullmatch(name):
                yield f"{key}.{name!r}: is not a name; use {NAME_RULE}"


def path_problems(key: str, path: Path) -> Iterator[str]:
    """Yield what is wrong with a path, without looking whether it is there."""
    if not path.is_absolute():
        yield f"{key}: {path} is relative, and a timer runs in another directory; begin it with /"
    elif ".." in path.parts:
        yield f"{key}: {path} contains ..; write the path without it"


def target_problems(key: str, target: TargetConfig) -> Iterator[str]:
    """Yield what is wrong with one target, whose types are right."""
    if target.host is None and target.path is None:
        yield f'{key}: has neither host nor path; write host = "NAME", or path = "/DIRECTORY" for a disk here'
    if target.host is not None and target.path is not None:
        yield f"{key}: has both host and path; keep host for a server, path for a disk on this machine"
    if target.host is not None and not HOST_PATTERN.fullmatch(target.host):
        yield f"{key}.host: {target.host!r} is no host name or address; the user has a key of its own: user"
    if not USER_PATTERN.fullmatch(target.user):
        yield f"{key}.user: {target.user!r} is not the name of a user; write the name alone"
    for index, option in enumerate(target.ssh_options):
        if not SSH_OPTION_PATTERN.fullmatch(option):
            yield f'{key}.ssh_options[{index}]: {option!r} is not "Key=value"; write it so, without -o'
    for name in ("path", "key", "known_hosts"):
        path = getattr(target, name)
        if path is not None:
            yield from path_problems(f"{key}.{name}", path)
    if target.rate_limits:
        yield from rate_problems(f"{key}.rate_limits", target.rate_limits)


def rate_problems(key: str, texts: Sequence[str]) -> Iterator[str]:
    """Yield which rates for hours of the day are none, or contradict one another."""
    # Late, since most configurations have none.
    from btrsync.plan.rates import overlaps, parse_window

    windows, places = [], []
    for index, text in enumerate(texts):
        try:
            windows.append(parse_window(text))
            places.append(index)
        except ValueError as error:
            yield f"{key}[{index}]: {error}"
    for one, other in overlaps(windows):
        yield (
            f"{key}[{places[other]}]: {texts[places[other]]!r} shares minutes with"
            f" {texts[places[one]]!r}; let one begin when the other ends"
        )


def checkpoint_problems(checkpoint_bytes: object) -> Iterator[str]:
    """Yield why checkpoints would come after every few commands: a slip, 4 written for 4 GiB."""
    if isinstance(checkpoint_bytes, int) and 0 < checkpoint_bytes < SMALLEST_CHECKPOINT_BYTES:
        yield (
            f"checkpoint_bytes: found the number {checkpoint_bytes}, and that is in bytes; write 0 for none,"
            f" or at least {SMALLEST_CHECKPOINT_BYTES}"
        )


def job_problems(key: str, job: JobConfig, targets: object) -> Iterator[str]:
    """Yield what is wrong with one job, whose types are right; `targets` is that table of the file."""
    yield from path_problems(f"{key}.subvolume", job.subvolume)
    yield from path_problems(f"{key}.snapshots", job.snapshots)
    if job.subvolume == job.snapshots:
        yield (
            f"{key}.snapshots: is the subvolume itself; name a directory for the snapshots,"
            f" {job.subvolume / 'snapshots'} for example"
        )
    yield from snapshot_name_problems(f"{key}.snapshot_name", job.snapshot_name)
    if not job.targets:
        yield f"{key}.targets: is empty, so nothing would be sent; name a target, or remove the job"
    known = list(targets) if isinstance(targets, dict) else []
    for index, name in enumerate(job.targets):
        if name not in known:
            yield f"{key}.targets[{index}]: there is no target {name!r}; {_format_choice(name, known)}"
        elif name in job.targets[:index]:
            yield f"{key}.targets[{index}]: {name} is there twice; remove one"


def snapshot_name_problems(key: str, pattern: str) -> Iterator[str]:
    """Yield why the names made of `pattern` would not be unique, sortable names of one directory entry."""
    found = tuple(re.findall(r"%.?", pattern))
    missing = [directive for directive in TIME_DIRECTIVES if directive not in found]
    others = [directive for directive in found if directive not in TIME_DIRECTIVES]
    if others:
        yield f"{key}: contains {others[0]}; only {' '.join(TIME_DIRECTIVES)} sort by time, use these"
    elif missing:
        yield f"{key}: lacks {' '.join(missing)}, so two snapshots could get one name; add it"
    elif found != TIME_DIRECTIVES:
        yield f"{key}: names would not sort by time; write {DEFAULT_SNAPSHOT_NAME}, or at least this order"
    name = re.sub(r"%.?", "00", pattern.replace("%Y", "0000"))
    if "/" in name:
        yield f"{key}: contains /; it is a name within `snapshots`, so put a directory there"
    elif name.startswith("."):
        yield f"{key}: begins with a dot, as only receives in progress do; begin it with a letter"
    elif not is_valid_name(name):
        yield f"{key}: must hold A-Z a-z 0-9 . _ + @ - only, begin with a letter or a digit, and be short"


def shared_directory_problems(jobs: Mapping[str, JobConfig]) -> Iterator[str]:
    """Yield jobs that would give their snapshots the same names in the same directory."""
    seen: dict[tuple[Path, str], str] = {}
    for name, job in jobs.items():
        other = seen.setdefault((job.snapshots, job.snapshot_name), name)
        if other != name:
            yield (
                f"jobs.{name}.snapshots: is also that of jobs.{other}, with the same snapshot_name;"
                f" give each job a directory of its own"
            )


def server_directory_problems(clients: Mapping[str, ClientEntry]) -> Iterator[str]:
    """Yield clients whose directory is no name, or is that of another client."""
    seen: dict[str, str] = {}
    for name, entry in clients.items():
        directory = entry.directory or name
        if entry.directory is not None and not NAME_PATTERN.fullmatch(entry.directory):
            yield f"clients.{name}.directory: {entry.directory!r} is no name below root; use {NAME_RULE}"
        other = seen.setdefault(directory, name)
        if other != name:
            yield (
                f"clients.{name}.directory: {directory} is that of clients.{other} already;"
                f" give each client a directory of its own"
            )


def _format_choice(name: str, known: list[str]) -> str:
    """Return the remedy for a name that is not among the known ones."""
    import difflib  # here, since only a wrong file needs it and every sync waits for imports

    nearest = difflib.get_close_matches(name, known, n=1)
    if nearest:
        return f"did you mean {nearest[0]}?"
    return f"known are {', '.join(known)}" if known else f"write a table [targets.{name}]"
