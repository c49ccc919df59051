"""The manual pages, made of the commands and the fields of the configuration.

`python -m btrsync.commands.manual docs/man` writes them; a test sees that they are current.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import fields

import btrsync
from btrsync.commands.config import read_sample
from btrsync.commands.group import COMMANDS, group
from btrsync.commands.statuses import EXIT_STATUSES
from btrsync.config import CLIENT_FILE, SERVER_FILE
from btrsync.config.array_fields import ArrayConfig
from btrsync.config.fields import ClientEntry, JobConfig, ServerConfig, TargetConfig, describe
from btrsync.config.reading import format_wanted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import msgspec

OVERVIEW = """
Each subvolume is a job, each place that backups go to a target. A run makes a read-only snapshot of
the subvolume and sends what is new since the latest snapshot that both sides hold. A backup becomes
visible at the target only when it is complete, read-only and on disk.
"""
FILE_RULES = """
Both files are TOML. Names of jobs, targets and clients have 1 to 64 of the characters
A-Z a-z 0-9 . _ -, the first a letter or a digit. Paths are absolute. A key that is not known is an
error, and all errors of a file are shown at once. A file that every user may write is refused.
Check with btrsync config check.
"""
COMPLETION_RULE = """
Commands, options, jobs and targets are completed after this line in the shell's start-up file:
"""
ENVIRONMENT = (
    ("BTRSYNC_TRACEBACK", "Set to 1, shows where in the program an error arose, as --traceback does."),
    ("NO_COLOR", "Set to anything, keeps colours off a terminal."),
    (
        "SSH_AUTH_SOCK",
        "The ssh agent. Programs that btrsync starts see this, HOME, PATH and nothing else.",
    ),
)
FILES = (
    (str(CLIENT_FILE), "What is mirrored from this machine, and to where; see btrsync.toml(5)."),
    (str(SERVER_FILE), "On a server, where the backups of others are kept; see btrsync.toml(5)."),
    ("/run/btrsync", "Locks. A lock is held by a running process, so a file left there locks nothing."),
)
COMPLETION = (
    ("bash", 'eval "$(_BTRSYNC_COMPLETE=bash_source btrsync)"', "~/.bashrc"),
    ("zsh", 'eval "$(_BTRSYNC_COMPLETE=zsh_source btrsync)"', "~/.zshrc"),
    ("fish", "_BTRSYNC_COMPLETE=fish_source btrsync | source", "~/.config/fish/completions/btrsync.fish"),
)
TABLES: tuple[tuple[str, str, type[msgspec.Struct]], ...] = (
    (
        "targets.NAME",
        "One place that backups go to: a host behind ssh, or a directory on this machine.",
        TargetConfig,
    ),
    ("jobs.NAME", "One subvolume that is mirrored, and to where.", JobConfig),
)
SERVER_TABLES: tuple[tuple[str, str, type[msgspec.Struct]], ...] = (
    ("", "Above all tables stand:", ServerConfig),
    (
        "clients.NAME",
        "One client that may connect. Without any such table, every forced command may.",
        ClientEntry,
    ),
    (
        "arrays.NAME",
        "An array of encrypted disks. It has one of key_file, key_credential and their likes.",
        ArrayConfig,
    ),
)


def pages() -> dict[str, str]:
    """Return each page's text by its file name, "btrsync.1" and so on."""
    context = click.Context(group, info_name="btrsync", help_option_names=["-h", "--help"])
    made = {"btrsync.1": _overview(context), "btrsync.toml.5": _file_page()}
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        made[f"btrsync-{name}.1"] = _command_page(click.Context(command, parent=context, info_name=name))
    return made


def write_pages(directory: Path) -> list[Path]:
    """Write every page into `directory`, and return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages().items():
        (directory / name).write_text(text, encoding="utf-8")
        written.append(directory / name)
    return written


def _overview(context: click.Context) -> str:
    lines = [
        *_head("btrsync", 1, "mirror btrfs subvolumes by incremental send and receive"),
        *_section("SYNOPSIS", [_bold("btrsync") + " [" + _italic("options") + "] " + _italic("command")]),
        ".SH DESCRIPTION",
        *_text(group.help or ""),
        ".PP",
        *_text(OVERVIEW),
        *_section(
            "COMMANDS",
            _items(
                (f"btrsync {name}", f"{words} See btrsync-{name}(1).")
                for name, (_, words) in COMMANDS.items()
            ),
        ),
        *_options(context),
        *_section("EXIT STATUS", _items((row.status, row.meaning) for row in EXIT_STATUSES)),
        ".PP",
        *_text("When several targets fail and none is served, the highest of 3 to 10 counts."),
        *_section("ENVIRONMENT", _items(ENVIRONMENT)),
        *_section("FILES", _items(FILES)),
        *_section(
            "SHELL COMPLETION",
            _text(COMPLETION_RULE),
        ),
        *_items((f"{shell}, {file}", line) for shell, line, file in COMPLETION),
        *_examples(group.epilog),
        *_see_also(
            [
                *(f"btrsync-{name}(1)" for name in COMMANDS),
                "btrsync.toml(5)",
                "btrfs-send(8)",
                "btrfs-receive(8)",
            ]
        ),
    ]
    return _join(lines)


def _command_page(context: click.Context) -> str:
    """Return the page of one command; the commands of a group follow one another on its page."""
    command = context.command
    name = f"btrsync-{context.info_name}"
    summary = COMMANDS[context.info_name or ""][1].rstrip(".")
    lines = [*_head(name, 1, summary[0].lower() + summary[1:])]
    parts = [context]
    if isinstance(command, click.Group):
        parts = [
            click.Context(part, parent=context, info_name=part_name)
            for part_name, part in command.commands.items()
        ]
    lines.append(".SH SYNOPSIS")
    for part in parts:
        usage = " ".join(part.command.collect_usage_pieces(part))
        lines += [f"{_bold(part.command_path)} {_escape(usage)}", ".br"]
    for part in parts:
        heading = f"DESCRIPTION OF {(part.info_name or '').upper()}" if len(parts) > 1 else "DESCRIPTION"
        lines += [f".SH {heading}", *_text(part.command.help or "")]
        lines += [*_options(part), *_examples(part.command.epilog)]
    lines += _section("EXIT STATUS", _text("See btrsync(1)."))
    lines += _see_also(["btrsync(1)", "btrsync.toml(5)"])
    return _join(lines)


def _file_page() -> str:
    lines = [
        *_head("btrsync.toml", 5, "configuration of btrsync"),
        *_section("SYNOPSIS", [_escape(str(CLIENT_FILE)), ".br", _escape(str(SERVER_FILE))]),
        ".SH DESCRIPTION",
        *_text(FILE_RULES),
        ".SH CLIENT",
    ]
    for heading, words, struct in TABLES:
        lines += _table(heading, words, struct)
    lines.append(".SH SERVER")
    for heading, words, struct in SERVER_TABLES:
        lines += _table(heading, words, struct)
    lines += [".SH EXAMPLES", *_text("A client's:"), *_verbatim(_without_comments(read_sample("client")))]
    lines += [*_text("A server's:"), *_verbatim(_without_comments(read_sample("server")))]
    lines += _see_also(["btrsync(1)", "btrsync-config(1)", "ssh_config(5)"])
    return _join(lines)


def _table(heading: str, words: str, struct: type[msgspec.Struct]) -> Iterator[str]:
    if heading:
        yield f".SS [{_escape(heading)}]"
    yield from _text(words)
    for field in fields(struct):
        if field.name in ("file", "clients", "arrays"):
            continue
        wanted = format_wanted(field.type)
        if field.required:
            default = "required"
        elif field.default is None:
            default = "none by default"
        else:
            default = f"default {_toml(field.default)}"
        yield from (".TP", _bold(field.name), *_text(f"{describe(struct, field.name)} ({wanted}; {default})"))


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _without_comments(sample: str) -> str:
    return "\n".join(line for line in sample.splitlines() if line and not line.startswith("#"))


def _head(name: str, section: int, summary: str) -> list[str]:
    # No date: the page changes when what it says changes, and not when it is made again.
    title = f'.TH "{_escape(name).upper()}" {section} "" "btrsync {btrsync.__version__}"'
    return [title, ".SH NAME", rf"{_escape(name)} \- {_escape(summary)}"]


def _section(heading: str, lines: Sequence[str] | Iterator[str]) -> list[str]:
    return [f".SH {heading}", *lines]


def _items(items: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> Iterator[str]:
    for term, words in items:
        yield from (".TP", _bold(term), *_text(words))


def _options(context: click.Context) -> list[str]:
    records = [
        record
        for parameter in context.command.get_params(context)
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)) is not None
    ]
    return _section("OPTIONS", _items(records)) if records else []


def _examples(epilog: str | None) -> list[str]:
    """Return the examples of an epilog: its lines that are set in, after a line with a colon."""
    lines = [line for line in (epilog or "").replace("\b", "").splitlines() if line.startswith("  ")]
    return _section("EXAMPLES", _verbatim("\n".join(line[2:] for line in lines))) if lines else []


def _see_also(names: Sequence[str]) -> list[str]:
    return _section("SEE ALSO", [_escape(", ".join(names))])


def _text(words: str) -> list[str]:
    """Return paragraphs as roff; an empty line parts them."""
    lines: list[str] = []
    for paragraph in words.replace("\b", "").strip().split("\n\n"):
        escaped = _escape(" ".join(paragraph.split()))
        lines += [*([".PP"] if lines else []), re.sub("`([^`]+)`", r"\\fB\1\\fR", escaped)]
    return lines


def _verbatim(words: str) -> list[str]:
    return [".PP", ".nf", ".RS 4", *(_escape(line) for line in words.splitlines()), ".RE", ".fi", ".PP"]


def _bold(words: str) -> str:
    return rf"\fB{_escape(words)}\fR"


def _italic(words: str) -> str:
    return rf"\fI{_escape(words)}\fR"


def _escape(words: str) -> str:
    """Return text as roff shows it literally: a line must not begin with a dot or a quote."""
    escaped = words.replace("\\", r"\e").replace("-", r"\-").replace("~", r"\(ti").replace("^", r"\(ha")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _join(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path in write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/man")):
        print(path)
