"""`btrsync config`: check a configuration before something runs by it, or print a sample to start from."""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import click
import msgspec

from btrsync.commands.options import common_options, config_option
from btrsync.config import SERVER_FILE, client_warnings, load_client, load_server
from btrsync.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

CHECK_EPILOG = """\b
Examples:
  btrsync config check
  btrsync config check --config ./btrsync.toml --json
  btrsync config check --server
"""
SAMPLE_EPILOG = """\b
Examples:
  btrsync config sample > /etc/btrsync/btrsync.toml
  btrsync config sample server > /etc/btrsync/server.toml
"""


@click.group(name="config")
def command() -> None:
    """Check a configuration, or print a sample."""


@command.command(name="check", epilog=CHECK_EPILOG)
@config_option
@click.option("--server", "is_server", is_flag=True, help=f"Check the server's configuration, {SERVER_FILE}.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON on standard output.")
@click.pass_context
@common_options
def check(context: click.Context, file: Path, is_server: bool, as_json: bool) -> int:
    """Read a configuration and name every mistake in it, with its key and what to write instead.

    Only files are looked at: the configuration, and the mode of the keys it names. What is odd but
    allowed is a warning, and the exit status stays 0. Mistakes end with 3.
    """
    if is_server and context.get_parameter_source("file") is click.core.ParameterSource.DEFAULT:
        file = SERVER_FILE
    found: dict[str, Any] = {"ok": True, "file": file, "problems": [], "warnings": []}
    try:
        if is_server:
            server = load_server(file)
            words = f"root {server.root}, {len(server.clients) or 'any'} clients"
        else:
            client = load_client(file)
            found["warnings"] = client_warnings(client)
            words = f"{_count(client.jobs, 'job')}, {_count(client.targets, 'target')}"
    except ConfigError as error:
        if not as_json:
            raise
        found |= {"ok": False, "problems": error.problems, "hint": error.hint}
        click.echo(msgspec.json.encode(found, enc_hook=str))
        return error.exit_status
    if as_json:
        click.echo(msgspec.json.encode(found, enc_hook=str))
        return 0
    for warning in found["warnings"]:
        print(f"btrsync: warning: {file}: {warning}", file=sys.stderr)
    click.echo(f"{file}: {words}, no mistakes")
    return 0


@command.command(name="sample", epilog=SAMPLE_EPILOG)
@click.argument("which", type=click.Choice(["client", "server"]), default="client")
@common_options
def sample(which: str) -> int:
    """Print an annotated configuration: of the CLIENT, which sends, or the SERVER, which receives."""
    click.echo(read_sample(which), nl=False)
    return 0


def read_sample(which: str) -> str:
    """Return the sample that is installed with the program; which: "client" or "server"."""
    return (files("btrsync") / "data" / f"{which}.toml").read_text(encoding="utf-8")


def _count(items: dict[str, Any], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
