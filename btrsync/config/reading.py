"""From a TOML file to the classes of `fields`, with every wrong key and value named."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin
from uuid import UUID

import msgspec
from msgspec import Meta
from msgspec.structs import fields

from btrsync.config.fields import describe
from btrsync.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

StructType = TypeVar("StructType", bound=msgspec.Struct)


def read_table(path: Path, which: str) -> dict[str, Any]:
    """Return the TOML of a file as a dict; a file that others may write is refused, root obeys it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except FileNotFoundError as error:
        raise ConfigError(
            path,
            ["there is no such file"],
            hint=f"btrsync config sample {which} > {path}, then edit it; or name another with --config",
        ) from error
    except OSError as error:
        raise ConfigError(path, [f"cannot be read: {error.strerror}"]) from error
    if mode & stat.S_IWOTH:
        raise ConfigError(
            path,
            [f"has mode {stat.S_IMODE(mode):04o}: every user can write it, and it says what root does"],
            hint=f"look at what it says, then chmod o-w {path}",
        )
    try:
        return tomllib.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise ConfigError(path, [f"line {line}: is not UTF-8; save the file as UTF-8"]) from error
    except tomllib.TOMLDecodeError as error:
        # "Expected '=' after a key (at line 3, column 5)", or "... (at end of document)"
        words, _, place = str(error).rpartition(" (at ")
        raise ConfigError(
            path, [f"{place.rstrip(')')}: {words}"], hint="the file is TOML, see toml.io"
        ) from error


def convert_table(
    table: object, struct: type[StructType], path: str, problems: list[str], given: dict[str, Any]
) -> StructType | None:
    """Return `table` as a `struct` and add all that is wrong with it to `problems`.

    path: key path of the table, "" for the whole file; given: fields that are not from the file.
    None if a value is wrong or missing; keys that have no meaning are left out of the result.
    """
    if not isinstance(table, dict):
        found = _format_found(table)
        problems.append(f"{path}: found {found}, wanted a table; write [{path}] above its keys")
        return None
    prefix = f"{path}." if path else ""
    known = {field.name: field for field in fields(struct) if field.name not in given}
    problems += [f"{prefix}{key}: {_format_unknown(key, known)}" for key in table if key not in known]
    values = dict(given)
    for name, field in known.items():
        if name in table:
            values[name] = _convert_value(table[name], field.type, f"{prefix}{name}", problems)
        elif field.required:
            problems.append(f"{prefix}{name}: is missing; add it. {describe(struct, name)}")
            values[name] = None
    # TOML has no null, so None is a value that was wrong.
    return None if None in values.values() else struct(**values)


def _convert_value(value: object, hint: object, path: str, problems: list[str]) -> object:
    """Return one value as its field wants it; if it is wrong, None, after saying so in `problems`."""
    bare, _ = _bare(hint)
    if get_origin(bare) is dict:
        struct = get_args(bare)[1]
        if not isinstance(value, dict):
            problems.append(f"{path}: found {_format_found(value)}, wanted tables; write [{path}.NAME]")
            return None
        return {
            key: convert_table(item, struct, f"{path}.{key}", problems, {}) for key, item in value.items()
        }
    if get_origin(bare) is tuple and isinstance(value, list):
        item_hint = get_args(bare)[0]
        items = [
            _convert_value(item, item_hint, f"{path}[{index}]", problems) for index, item in enumerate(value)
        ]
        return None if None in items else tuple(items)
    try:
        return msgspec.convert(value, hint, dec_hook=_decode_path)
    except msgspec.ValidationError:
        problems.append(f"{path}: found {_format_found(value)}, wanted {format_wanted(hint)}")
        return None


def _decode_path(wanted: type, value: object) -> object:
    """Make a Path of a text, for msgspec, which knows no Path."""
    if wanted is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise TypeError(f"cannot make {wanted} of {value!r}")


def readable_tables(tables: object, struct: type[StructType]) -> dict[str, StructType]:
    """Return those of several tables that hold no wrong type, for the checks across keys."""
    if not isinstance(tables, dict):
        return {}
    converted = {name: convert_table(table, struct, name, [], {}) for name, table in tables.items()}
    return {name: value for name, value in converted.items() if value is not None}


def _bare(hint: object) -> tuple[object, list[Meta]]:
    """Return a type without its annotations and without None, and what the annotations held."""
    bounds: list[Meta] = []
    while True:
        if get_origin(hint) is Annotated:
            hint, *metas = get_args(hint)
            bounds += [meta for meta in metas if isinstance(meta, Meta)]
        elif get_origin(hint) in (UnionType, Union):
            # TOML has no null: None is only ever the default.
            hint = next(item for item in get_args(hint) if item is not type(None))
        else:
            return hint, bounds


def format_wanted(hint: object) -> str:
    """Return in words what a field takes: "a whole number from 1 to 65535"."""
    bare, bounds = _bare(hint)
    if bare is int:
        lowest = next((meta.ge for meta in bounds if meta.ge is not None), None)
        highest = next((meta.le for meta in bounds if meta.le is not None), None)
        return f"a whole number from {lowest} to {highest}"
    if bare is bool:
        return "true or false"
    if get_origin(bare) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(bare))
    if get_origin(bare) is tuple:
        return "a list of texts"
    if bare is UUID:
        return "a UUID in quotes, as blkid shows it"
    return "an absolute path in quotes" if bare is Path else "a text in quotes"


def _format_found(value: object) -> str:
    """Return in words what stands in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'the text "{value}"' if value else "an empty text"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, list):
        return "a list"
    return "a table" if isinstance(value, dict) else f"the time {value}"


def _format_unknown(key: str, known: Iterable[str]) -> str:
    """Return the problem and the remedy for a key that has no meaning."""
    import difflib  # here, since only a wrong file needs it and every sync waits for imports

    names = list(known)
    nearest = difflib.get_close_matches(key, names, n=1)
    return (
        f"unknown key; did you mean {nearest[0]}?"
        if nearest
        else f"unknown key; known are {', '.join(names)}"
    )
