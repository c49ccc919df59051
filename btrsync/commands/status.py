"""`btrsync status`: for each job and target how old its latest backup is; looks and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click
import msgspec

from btrsync.commands.options import (
    common_options,
    config_option,
    jobs_argument,
    json_option,
    now,
    require_root,
    target_option,
)
from btrsync.commands.tables import show_table
from btrsync.config import load_client
from btrsync.report import JobSurvey, PartialRow, format_age, format_partial, format_seconds

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

HEADINGS = ("JOB", "TARGET", "LATEST SNAPSHOT", "LATEST ON BOTH SIDES", "AGE", "STATE")

EPILOG = """\b
Examples:
  btrsync status
  btrsync status --json
  btrsync status || echo "some target has no backup, or is out of reach"
"""

State = Literal["in_sync", "behind", "never_synced", "nothing_in_common", "unreachable"]


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one target of a job stands; names are None where there is none. partials: transfers cut short."""

    job: str
    target: str
    state: State
    latest_snapshot: str | None = None
    latest_common: str | None = None
    age_seconds: float | None = None
    snapshots_behind: int = 0
    partials: tuple[PartialRow, ...] = ()
    error: str | None = None

    @property
    def is_served(self) -> bool:
        return self.state in ("in_sync", "behind")


@click.command(name="status", epilog=EPILOG)
@jobs_argument
@config_option
@target_option
@json_option
@common_options
def command(jobs: tuple[str, ...], file: Path, targets: tuple[str, ...], as_json: bool) -> int:
    """Tell for each JOB and target what the latest backup is, how old, and how far behind.

    Of a transfer that was cut the target may hold a part, from which the next run goes on: it is
    shown with its share of the data and its age.

    The exit status is 1 if a target could not be looked at or has never been synced, or
    holds nothing that the next send could start from.
    """
    config = load_client(file)
    require_root("status")
    from btrsync.survey import survey

    moment = now()
    surveys = survey(config, jobs, targets)
    statuses = [judge(one, moment) for one in surveys]
    is_served = all(status.is_served for status in statuses)
    if as_json:
        click.echo(msgspec.json.encode({"ok": is_served, "statuses": statuses}))
    else:
        show_table(HEADINGS, [_cells(status, moment) for status in statuses])
    return 0 if is_served else 1


def judge(survey: JobSurvey, moment: datetime) -> JobStatus:
    """Return how a target stands at `moment`, an aware time."""
    if survey.error is not None:
        return JobStatus(job=survey.job, target=survey.target, state="unreachable", error=survey.error)
    at_source = [row.name for row in survey.snapshots if row.where != "target"]
    latest = at_source[-1] if at_source else None
    common = survey.latest_common
    if common is None:
        has_backups = any(row.where == "target" for row in survey.snapshots)
        return JobStatus(
            job=survey.job,
            target=survey.target,
            state="nothing_in_common" if has_backups else "never_synced",
            latest_snapshot=latest,
            snapshots_behind=survey.snapshots_behind,
            partials=survey.partials,
        )
    return JobStatus(
        job=survey.job,
        target=survey.target,
        state="behind" if survey.snapshots_behind else "in_sync",
        latest_snapshot=latest,
        latest_common=common.name,
        age_seconds=(moment - common.created).total_seconds() if common.created else None,
        snapshots_behind=survey.snapshots_behind,
        partials=survey.partials,
    )


def format_state(status: JobStatus, moment: datetime) -> str:
    """Return the last column: what people want to know, at `moment`."""
    partials = (
        f"{one.snapshot}: {format_partial(one)}, {format_age(one.made, moment)} old"
        for one in status.partials
    )
    return "; ".join([_format_standing(status), *partials])


def _format_standing(status: JobStatus) -> str:
    if status.state == "unreachable":
        return f"unreachable: {' '.join((status.error or '').split())}"
    if status.state == "never_synced":
        return "never synced"
    if status.state == "nothing_in_common":
        return "nothing in common: it has backups, and none is of a snapshot that is here"
    count = status.snapshots_behind
    return "in sync" if not count else f"{count} snapshot{'s' if count > 1 else ''} behind"


def _cells(status: JobStatus, moment: datetime) -> tuple[str, ...]:
    age = "" if status.age_seconds is None else format_seconds(max(0.0, status.age_seconds))
    return (
        status.job,
        status.target,
        status.latest_snapshot or "",
        status.latest_common or "",
        age,
        format_state(status, moment),
    )
