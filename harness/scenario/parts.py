"""What a scenario is made of, as values: jobs, targets, the outcome of a run, the text of a configuration."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.command import Completed

MIRROR_ROOT = Path("/MirrorRoot")
SERVER_ROOT = MIRROR_ROOT / "btrsync"
CLIENT_FILE = Path("/etc/btrsync/btrsync.toml")
SERVER_FILE = Path("/etc/btrsync/server.toml")
KEY_FILE = Path("/root/.ssh/btrsync")
INCOMING_PREFIX = ".incoming-"


@dataclass(frozen=True, slots=True)
class Job:
    """One [jobs.NAME] of the client; settings: further keys of its table."""

    name: str = "share"
    subvolume: Path = Path("/home/foo/share")
    snapshots: Path = Path("/home/foo/share/snapshots")
    targets: tuple[str, ...] = ("daisy",)
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """One [targets.NAME] of the client: on daisy unless it has a path.

    host: how the client calls daisy. client: whose directory it has there; each client has a key and
    a forced command of its own. path: a directory on the workstation, on a btrfs that is made and
    mounted at its parent. key_file: where the client finds its key. settings: further keys of its table.
    """

    name: str = "daisy"
    host: str = "daisy"
    client: str = "workstation"
    path: Path | None = None
    key_file: Path = KEY_FILE
    port: int = 22
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Synced:
    """One run of `btrsync sync --json`: how it ended, and the report of its last line, if any."""

    completed: Completed
    report: Mapping[str, Any]

    @property
    def returncode(self) -> int:
        return self.completed.returncode

    @property
    def stderr(self) -> str:
        return self.completed.stderr

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        return list(self.report.get("outcomes", ()))

    @property
    def bytes_sent(self) -> int:
        return sum(int(outcome["bytes_sent"]) for outcome in self.outcomes)

    def outcome(self, job: str = "share", target: str = "daisy") -> dict[str, Any]:
        """Return what came of one job at one target. Raises LookupError, with what there is."""
        for outcome in self.outcomes:
            if (outcome["job"], outcome["target"]) == (job, target):
                return outcome
        raise LookupError(f"no outcome for {job} at {target} in {self.report or self.completed}")

    @classmethod
    def of(cls, completed: Completed) -> Synced:
        """Read the last line of standard output; no JSON there is an empty report."""
        lines = completed.stdout.splitlines()
        report: object = None
        with contextlib.suppress(ValueError):
            report = json.loads(lines[-1]) if lines else None
        return cls(completed, report if isinstance(report, dict) else {})


def installed_btrsync() -> Path:
    """Return the installed command beside the running interpreter: the same path holds in every host.

    In a guest of vmimages the interpreter is the distribution's, and the command in /usr/local/bin.
    Raises FileNotFoundError if the project is not installed there.
    """
    path = Path(sys.executable).with_name("btrsync")
    if not path.exists() and os.environ.get("BTRSYNC_VM"):
        path = Path("/usr/local/bin/btrsync")
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: install the project with pip install -e .")
    return path


def format_toml(tables: Mapping[tuple[str, ...], Mapping[str, object]]) -> str:
    """Return tables, by the parts of their names, of texts, paths, numbers, booleans and lists, as TOML."""
    return "\n".join(
        "\n".join(
            [
                f"[{'.'.join(_format_key(part) for part in name)}]",
                *(f"{key} = {_format_value(value)}" for key, value in table.items()),
                "",
            ]
        )
        for name, table in tables.items()
    )


def _format_key(part: str) -> str:
    """Return a part of a name, bare as a person writes it, but for one with a dot in it, say."""
    return part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else _format_value(part)


def _format_value(value: object) -> str:
    # A JSON string is a TOML basic string but for DEL, which only TOML forbids.
    return json.dumps(value, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")
