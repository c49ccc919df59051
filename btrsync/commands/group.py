"""The commands by name, each imported only when it is wanted, as click sees them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

import btrsync

if TYPE_CHECKING:
    from collections.abc import Sequence

    from btrsync.commands.invocation import Invocation

COMMANDS = {
    "sync": ("btrsync.commands.sync", "Send what changed to the targets."),
    "fetch": ("btrsync.commands.fetch", "Have a backup sent back from a target."),
    "list": ("btrsync.commands.list", "List snapshots and backups, and which are on both sides."),
    "status": ("btrsync.commands.status", "Tell for each job and target how far behind it is."),
    "array": ("btrsync.commands.array_commands", "Make, open, close and mend an array of encrypted disks."),
    "config": ("btrsync.commands.config", "Check a configuration, or print a sample."),
    "serve": ("btrsync.commands.serve_options", "Receive from one client: the forced command."),
}
"""Name, module whose `command` it is, and the line in `btrsync --help`, which imports none of them."""

EPILOG = """\b
Examples:
  btrsync config sample > /etc/btrsync/btrsync.toml
  btrsync config check
  btrsync sync --dry-run
  btrsync sync
  btrsync status

\b
Every command has a manual page: man btrsync-sync, man btrsync.toml.
"""


class Commands(click.Group):
    """The group of all commands; `btrsync sync` imports sync alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  same
        """Return a command by its name, None for an unknown one."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  same
        """Write the commands with the table's words, so that --help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


@click.command(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(btrsync.__version__, prog_name="btrsync", message="%(prog)s %(version)s")
def group() -> None:
    """Mirror btrfs subvolumes to other disks and machines, by incremental send and receive."""


def run_group(arguments: Sequence[str], invocation: Invocation) -> int:
    """Run a command line and return its exit status; usage errors are shown as click words them."""
    try:
        result: Any = group.main(list(arguments), prog_name="btrsync", standalone_mode=False, obj=invocation)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return result if isinstance(result, int) else 0
