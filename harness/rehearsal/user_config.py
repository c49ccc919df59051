"""The user's own configuration, read as data and mapped onto rehearsal hosts and loop devices.

Kept: the names of jobs and targets, all paths of jobs, paths of targets on a local disk, names of
hosts, ports, harmless ssh options, waiting times. Replaced: what the hosts' names mean, every key,
every known_hosts. Refused by name: what cannot be mapped. Nothing of it is opened, run or contacted.
"""

from __future__ import annotations

import ipaddress
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import command
from harness.rehearsal.problems import UNFIT, CannotRehearse
from harness.scenario import Job, Target, installed_btrsync

KEY_DIRECTORY = Path("/etc/btrsync/rehearsal-keys")
SYSTEM_DIRECTORIES = frozenset(
    Path(path)
    for path in (
        "/ /bin /boot /dev /etc /etc/btrsync /etc/ssh /lib /lib32 /lib64 /libx32 /opt /proc /run"
        " /run/btrsync /run/sshd /sbin /sys /tmp /usr /usr/bin /usr/lib /usr/local /usr/sbin /var /var/log"
    ).split()
)
"""Places that a host itself lives in: a loop device mounted there would take away what runs it."""
VIRTUAL_DIRECTORIES = tuple(Path(path) for path in ("/dev", "/proc", "/sys"))

TARGET_KEPT = frozenset(
    "connect_timeout_s busy_wait_s compressed rate_limit_bytes rate_limits retries retry_pause_s parallel"
    " nice io_class buffer_bytes".split()
)
TARGET_REPLACED = frozenset({"host", "path", "user", "port", "key", "known_hosts", "ssh_options"})
JOB_KEPT = frozenset({"snapshot_name", "clone_sources"})
JOB_MAPPED = frozenset({"subvolume", "snapshots", "targets"})
SSH_OPTIONS_KEPT = frozenset(
    "addressfamily ciphers compression connectionattempts connecttimeout hostkeyalgorithms ipqos"
    " kexalgorithms loglevel macs pubkeyacceptedalgorithms rekeylimit serveralivecountmax"
    " serveraliveinterval tcpkeepalive".split()
)
"""Options that say how to speak, not to whom, through what, or who we are. Source: ssh_config(5)."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """What is rehearsed in place of the user's configuration, and how each target was mapped, as lines."""

    jobs: tuple[Job, ...]
    targets: tuple[Target, ...]
    notes: tuple[str, ...]


def read(path: Path) -> Mapped:
    """Return the configuration at `path`, mapped.

    Raises CannotRehearse (3) with every problem at once: what the tool itself finds wrong with the
    file, or else each setting that cannot be mapped.
    """
    _ask_the_tool(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotRehearse(f"{path}: {error}", exit_status=UNFIT) from error
    return map_table(path, table)


def map_table(path: Path, table: dict[str, Any]) -> Mapped:
    """Return what a configuration says, mapped. table: as the tool itself has found it right.

    Raises CannotRehearse (3) with each setting that cannot be mapped; path: only for its words.
    """
    problems: list[str] = []
    problems += [f"{key}: {NO_MEANING}" for key in table if key not in {"targets", "jobs"}]
    wanted = {name for job in table.get("jobs", {}).values() for name in job["targets"]}
    used = {name: settings for name, settings in table.get("targets", {}).items() if name in wanted}
    is_alone = sum("host" in settings for settings in used.values()) == 1
    targets = [_target(name, settings, problems, is_alone=is_alone) for name, settings in used.items()]
    jobs = [_job(name, settings, problems) for name, settings in table.get("jobs", {}).items()]
    if not jobs:
        problems.append("jobs: there is none, so there is nothing to rehearse")
    problems += _collisions(jobs, targets)
    problems += _shared_servers(jobs, targets)
    if problems:
        raise CannotRehearse(*(f"{path}: {problem}" for problem in problems), exit_status=UNFIT)
    notes = [_note(target, used[target.name]) for target in targets]
    notes += [
        f"target {name}: no job names it, so it is left out" for name in table["targets"] if name not in used
    ]
    return Mapped(tuple(jobs), tuple(targets), tuple(notes))


NO_MEANING = "this setting cannot be rehearsed: the rehearsal does not know what to put in its place"


def _ask_the_tool(path: Path) -> None:
    """Let the installed command judge the file; it reads that file and looks at nothing else but modes."""
    said = command.run([installed_btrsync(), "config", "check", "--json", "--config", path], ok=None)
    try:
        found = json.loads(said.stdout.splitlines()[-1])
        problems, is_ok = list(found["problems"]), bool(found["ok"])
    except (IndexError, ValueError, LookupError, TypeError):
        problems, is_ok = [said.stderr.strip() or f"btrsync config check: status {said.returncode}"], False
    if not is_ok:
        raise CannotRehearse(*(f"{path}: {problem}" for problem in problems), exit_status=UNFIT)


def _target(name: str, settings: dict[str, Any], problems: list[str], *, is_alone: bool) -> Target:
    key = f"targets.{name}"
    known = TARGET_KEPT | TARGET_REPLACED
    problems += [f"{key}.{setting}: {NO_MEANING}" for setting in settings if setting not in known]
    kept: dict[str, object] = {word: settings[word] for word in settings if word in TARGET_KEPT}
    if "path" in settings:
        path = Path(settings["path"])
        problems += [f"{key}.path: {problem}" for problem in _mount_problems(path.parent)]
        return Target(name, path=path, settings=kept)
    if settings.get("user", "root") != "root":
        problems.append(
            f"{key}.user: {settings['user']!r} cannot be rehearsed: the rehearsal server receives as root,"
            " behind a forced command"
        )
    options = settings.get("ssh_options", ())
    for option in options:
        if option.partition("=")[0].lower() not in SSH_OPTIONS_KEPT:
            problems.append(
                f"{key}.ssh_options: {option} cannot be rehearsed: it could lead out of the rehearsal"
            )
    if options:
        kept["ssh_options"] = list(options)
    return Target(
        name,
        host="daisy" if _is_address(settings["host"]) else settings["host"],
        client="workstation" if is_alone else name,
        key_file=KEY_DIRECTORY / name,
        port=settings.get("port", 22),
        settings=kept,
    )


def _is_address(host: str) -> bool:
    """Return whether it is an address, or has one in it: what no /etc/hosts can give another meaning."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ":" in host
    return True


def _job(name: str, settings: dict[str, Any], problems: list[str]) -> Job:
    key = f"jobs.{name}"
    known = JOB_KEPT | JOB_MAPPED
    problems += [f"{key}.{setting}: {NO_MEANING}" for setting in settings if setting not in known]
    job = Job(
        name,
        subvolume=Path(settings["subvolume"]),
        snapshots=Path(settings["snapshots"]),
        targets=tuple(settings["targets"]),
        settings={word: settings[word] for word in settings if word in JOB_KEPT},
    )
    problems += [f"{key}.subvolume: {problem}" for problem in _mount_problems(job.subvolume)]
    if not job.snapshots.is_relative_to(job.subvolume):
        problems += [f"{key}.snapshots: {problem}" for problem in _mount_problems(job.snapshots)]
    return job


def _mount_problems(point: Path) -> list[str]:
    is_virtual = any(point.is_relative_to(path) for path in VIRTUAL_DIRECTORIES)
    if point not in SYSTEM_DIRECTORIES and not is_virtual:
        return []
    words = f"cannot be rehearsed: a loop device would have to be mounted at {point},"
    return [f"{words} where the rehearsal host itself lives"]


def _shared_servers(jobs: list[Job], targets: list[Target]) -> list[str]:
    """Return the jobs with several servers, for the rehearsal has one.

    Two backups of one snapshot on one filesystem are a conflict that the user's own servers do not have.
    """
    servers = {target.name for target in targets if target.path is None}
    return [
        f"jobs.{job.name}.targets: several targets behind ssh for one job cannot be rehearsed at once,"
        " for the rehearsal has one server; rehearse with one of them at a time"
        for job in jobs
        if len(servers.intersection(job.targets)) > 1
    ]


def _collisions(jobs: list[Job], targets: list[Target]) -> list[str]:
    """Return places that two settings would mount something at."""
    found = []
    owners: dict[Path, str] = {}
    for job in jobs:
        if job.subvolume in owners:
            found.append(f"jobs.{job.name}.subvolume: is also {owners[job.subvolume]}; rehearse one of them")
        owners.setdefault(job.subvolume, f"jobs.{job.name}.subvolume")
    found += [
        f"targets.{target.name}.path: lies in {owners[target.path.parent]} itself, and the rehearsal gives"
        f" it a disk of its own; choose a directory one level deeper"
        for target in targets
        if target.path is not None and target.path.parent in owners
    ]
    return found


def _note(target: Target, settings: dict[str, Any]) -> str:
    if target.path is not None:
        return f"target {target.name}: {target.path} is on a loop device mounted at {target.path.parent}"
    words = f"target {target.name}: {settings['host']} is the rehearsal host daisy"
    if target.host != settings["host"]:
        words += " (by that name: an address is not contacted)"
    given = [word for word in ("key", "known_hosts") if word in settings]
    return (
        words + f"; {' and '.join(given) or 'key'} {'are' if len(given) > 1 else 'is'} made for the rehearsal"
    )
