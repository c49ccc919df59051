"""All commands of `btrsync array`, in the order in which an array lives."""

from __future__ import annotations

from btrsync.commands.array import command
from btrsync.commands.array_create import create_command
from btrsync.commands.array_members import add_command, replace_command
from btrsync.commands.array_scrub import scrub_command
from btrsync.commands.array_unit import unit_command

__all__ = ["command"]

for added in (create_command, add_command, replace_command, scrub_command, unit_command):
    command.add_command(added)
