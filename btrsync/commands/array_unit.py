"""`btrsync array unit`: the systemd unit that opens an array before what needs it."""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

import click

from btrsync.commands.options import common_options, require_root
from btrsync.errors import StorageError, storage_error

NAME = "btrsync-array@.service"
UNIT = Path("/etc/systemd/system") / NAME
UNIT_EPILOG = """\b
Examples:
  btrsync array unit
  btrsync array unit --write
  systemctl start btrsync-array@mirror
"""


@click.command(name="unit", epilog=UNIT_EPILOG)
@click.option(
    "--write", is_flag=True, help=f"Write it to {UNIT}; a file that says something else is left alone."
)
@common_options
def unit_command(write: bool) -> int:
    """Print the systemd unit that opens and closes an array: btrsync-array@NAME.service.

    It is not enabled at boot, as the line in fstab has noauto. A unit that needs the array names it
    by Requires= and After= in a drop-in. Its comments tell how, and how it gets a key that is a
    credential.
    """
    text = unit_text(_program())
    if not write:
        click.echo(text, nl=False)
        return 0
    require_root("array unit --write")
    from btrsync.system.files import write_atomically

    try:
        if UNIT.exists() and UNIT.read_text(encoding="utf-8") != text:
            raise StorageError(
                f"{UNIT} is there, and says something else", hint=f"btrsync array unit | diff {UNIT} -"
            )
        UNIT.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(UNIT, text.encode(), 0o644)
    except OSError as error:
        raise storage_error(error) from error
    click.echo(f"{UNIT} written; now: systemctl daemon-reload")
    return 0


def unit_text(program: str) -> str:
    """Return the unit that is installed with the program; program: absolute path of btrsync."""
    text = (files("btrsync") / "data" / NAME).read_text(encoding="utf-8")
    return text.replace("@BTRSYNC@", program)


def _program() -> str:
    """Return where btrsync is: as it was started, if that is a file of that name, else as PATH has it."""
    started = Path(sys.argv[0])
    if started.name == "btrsync" and started.is_file():
        return str(started.absolute())
    return shutil.which("btrsync") or "/usr/local/bin/btrsync"
