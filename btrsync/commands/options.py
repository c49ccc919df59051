"""The options that several commands share, and the completion of names from the configuration."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from btrsync.commands.invocation import Invocation
from btrsync.config import CLIENT_FILE
from btrsync.config.reading import read_table
from btrsync.errors import BtrsyncError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

Function = TypeVar("Function", bound="Callable[..., Any]")


def complete_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the jobs or targets of the configuration for the shell; none if it cannot be read.

    context: holds the --config that was typed before, if any; parameter: `jobs` or `targets`.
    """
    try:
        table = read_table(Path(context.params.get("file") or CLIENT_FILE), "client")
    except (BtrsyncError, OSError):
        return []
    tables = table.get(parameter.name or "")
    return sorted(name for name in tables if name.startswith(incomplete)) if isinstance(tables, dict) else []


def invocation_of(context: click.Context) -> Invocation:
    """Return what was said so far about the whole run."""
    return context.find_root().ensure_object(Invocation)


def _show_traceback(context: click.Context, _parameter: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        invocation_of(context).shows_traceback = True


def _set_verbosity(context: click.Context, _parameter: click.Parameter, count: int) -> None:
    """-v shows what is done, -vv every program that is started, with its words and its status."""
    invocation_of(context).verbosity = count
    if not count:
        return
    import logging

    logging.basicConfig(
        level=logging.INFO if count == 1 else logging.DEBUG,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )


def common_options(function: Function) -> Function:
    """Add -v and --traceback, which every command has."""
    function = click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_set_verbosity,
        help="Show what is done; twice: every program that is started.",
    )(function)
    return click.option(
        "--traceback",
        is_flag=True,
        expose_value=False,
        callback=_show_traceback,
        help="After an error, show where in the program it arose, for a bug report.",
    )(function)


config_option = click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=CLIENT_FILE,
    show_default=True,
    is_eager=True,
    help="Configuration of this machine.",
)
target_option = click.option(
    "--target",
    "targets",
    metavar="TARGET",
    multiple=True,
    shell_complete=complete_names,
    help="Only this target; may be given several times.",
)
jobs_argument = click.argument("jobs", metavar="[JOB]...", nargs=-1, shell_complete=complete_names)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one line of JSON on standard output."
)


def require_root(command: str) -> None:
    """Raise RefusedError unless run as root: the kernel shows and sends subvolumes to root only."""
    if os.geteuid() != 0:
        raise RefusedError(
            f"btrsync {command} was started by user {os.geteuid()}: only root may read and send subvolumes",
            hint=f"sudo btrsync {command}",
        )


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)
