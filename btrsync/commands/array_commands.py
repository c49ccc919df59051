"""All commands of `btrsync array`, in the order in which an array lives."""

from __future__ import annotations

from btrsync.commands.array import command
from btrsync.commands.array_create import create_command

__all__ = ["command"]

for added in (create_command,):
    command.add_command(added)
