"""`btrsync list`: every snapshot and backup of the jobs, oldest first; looks and changes nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import msgspec

from btrsync.commands.options import (
    common_options,
    config_option,
    jobs_argument,
    json_option,
    require_root,
    target_option,
)
from btrsync.commands.tables import show_table
from btrsync.config import load_client
from btrsync.report import JobSurvey, SnapshotRow, format_pair, format_partial, utc_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

HEADINGS = ("JOB", "TARGET", "SNAPSHOT", "CREATED", "WHERE", "REMARK")

EPILOG = """\b
Examples:
  btrsync list
  btrsync list share --target daisy
  btrsync list --json
"""


@click.command(name="list", epilog=EPILOG)
@jobs_argument
@config_option
@target_option
@json_option
@common_options
def command(jobs: tuple[str, ...], file: Path, targets: tuple[str, ...], as_json: bool) -> int:
    """List the snapshots of each JOB and the backups at its targets, and where each one is.

    A snapshot that both sides hold is one row, found by UUID, whatever it is called there. The
    latest one on both sides is pinned: the next send starts from it, and it is never deleted.
    What a target holds of a transfer that was cut stands below, as a partial.
    The exit status is 1 if a source or a target could not be looked at.
    """
    config = load_client(file)
    require_root("list")
    from btrsync.survey import survey

    surveys = survey(config, jobs, targets)
    show_surveys(surveys, as_json=as_json)
    return 1 if any(one.error for one in surveys) else 0


def show_surveys(surveys: Sequence[JobSurvey], *, as_json: bool) -> None:
    """Write the surveys to standard output, and for people what could not be seen to stderr."""
    if as_json:
        click.echo(msgspec.json.encode({"surveys": surveys}))
        return
    rows = [row for survey in surveys for row in _rows(survey)]
    if rows:
        show_table(HEADINGS, rows)
    for survey in surveys:
        if survey.error:
            words = " ".join(survey.error.split())
            print(f"btrsync: {format_pair(survey.job, survey.target)}: {words}", file=sys.stderr)
        elif not (survey.snapshots or survey.partials):
            print(f"{format_pair(survey.job, survey.target)}: no snapshots yet", file=sys.stderr)


def _rows(survey: JobSurvey) -> Iterator[tuple[str, ...]]:
    for row in survey.snapshots:
        yield _cells(survey, row)
    for partial in survey.partials:
        made = utc_text(partial.made)
        yield (survey.job, survey.target, partial.snapshot, made, "target", format_partial(partial))


def _cells(survey: JobSurvey, row: SnapshotRow) -> tuple[str, ...]:
    remarks = [*(["latest on both sides, pinned"] if row.is_latest_common else []), row.remark]
    created = utc_text(row.created) if row.created else ""
    return (survey.job, survey.target, row.name, created, row.where, ", ".join(filter(None, remarks)))
