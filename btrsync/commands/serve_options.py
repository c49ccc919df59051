"""`btrsync serve` as click sees it, apart from `serve`, which the forced command runs without click."""

from __future__ import annotations

from pathlib import Path

import click

from btrsync.commands.options import common_options
from btrsync.config import SERVER_FILE

EPILOG = """\b
Examples, lines of /root/.ssh/authorized_keys on the server:
  restrict,command="/usr/local/bin/btrsync serve workstation" ssh-ed25519 AAAA... root@workstation
  restrict,command="/usr/local/bin/btrsync serve laptop" ssh-ed25519 AAAA... root@laptop
"""


@click.command(name="serve", epilog=EPILOG)
@click.argument("client")
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=SERVER_FILE,
    show_default=True,
    help="Configuration of the server.",
)
@click.option(
    "--root",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="Directory on btrfs with the clients' directories, instead of a configuration.",
)
@click.option("--allow-fetch", is_flag=True, help="With --root: let the client have its backups sent back.")
@common_options
def command(client: str, file: Path, root: Path | None, allow_fetch: bool) -> int:
    """Receive the backups of one CLIENT over standard input and output.

    This is not run by hand: sshd starts it as the forced command of the client's key. The name of
    the client stands in that line on the server, so a client cannot choose whose backups it sees.
    What the client asks ssh to run is logged and otherwise ignored.
    """
    if root is not None and not root.is_absolute():
        raise click.BadParameter(f"{root} is relative; begin it with /", param_hint="--root")
    from btrsync.commands.serve import run_serve

    return run_serve(client, file, root, allow_fetch=allow_fetch)
