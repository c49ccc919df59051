"""The configuration: samples that load, samples that must not and what is said about each."""

from __future__ import annotations

import contextlib
import json
import re
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields

from btrsync.commands.config import read_sample
from btrsync.config import client_warnings, load_client, load_server
from btrsync.config.array_fields import ArrayConfig
from btrsync.config.checks import snapshot_name_problems
from btrsync.config.fields import ClientEntry, JobConfig, ServerConfig, TargetConfig, describe
from btrsync.errors import ConfigError, RefusedError
from btrsync.plan.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

SAMPLES = Path(__file__).parent / "config"
VALID = sorted((SAMPLES / "valid").glob("*.toml"))
INVALID = sorted((SAMPLES / "invalid").glob("*.toml"))
STRUCTS = [TargetConfig, JobConfig, ClientEntry, ArrayConfig, ServerConfig]

CLIENT = """
[targets.daisy]
host = "daisy.local"
[jobs.share]
subvolume = "/home/foo/share"
snapshots = "/home/foo/share/snapshots"
targets = ["daisy"]
"""


def load(path: Path) -> object:
    return load_server(path) if path.name.startswith("server") else load_client(path)


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def words_of(error: ConfigError) -> str:
    """What a person reads, with the file's name in place of its path."""
    hint = f"  hint: {error.hint}\n" if error.hint else ""
    return f"{error}\n{hint}".replace(error.file, Path(error.file).name)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_sample_loads(path: Path) -> None:
    config = load(path)
    assert getattr(config, "file") == path  # noqa: B009  client's and server's both


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_sample_fails_with_the_message_beside_it(path: Path, golden: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(path)
    golden(f"config/invalid/{path.stem}.txt").check(words_of(caught.value))


def test_every_expected_message_has_its_sample() -> None:
    assert {path.stem for path in (SAMPLES / "invalid").glob("*.txt")} == {path.stem for path in INVALID}


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_every_problem_is_one_line_that_begins_with_its_key_or_its_line(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(path)
    for problem in caught.value.problems:
        assert re.match(r"(line \d+|[a-z_]+)[^\n]*: [^\n]+\Z", problem)


@pytest.mark.parametrize("which", ["client", "server"])
def test_a_packaged_sample_loads_as_it_is(which: str, tmp_path: Path) -> None:
    assert load(written(tmp_path / f"{which}.toml", read_sample(which)))


def test_what_a_packaged_sample_shows_as_default_is_the_default(tmp_path: Path) -> None:
    client = re.sub(r"(?m)^# (?=\[|[a-z_]+ = )", "", read_sample("client"))
    config = load_client(written(tmp_path / "client.toml", client))
    assert sorted(config.targets) == ["daisy", "usb"]
    shown = {name: getattr(config.targets["daisy"], name) for name in TargetConfig.__struct_fields__}
    for name in ("path", "host", "key", "known_hosts", "rate_limit_bytes", "io_class"):
        del shown[name]
    assert shown == {name: getattr(TargetConfig(), name) for name in shown}
    job = config.jobs["share"]
    assert job == JobConfig(subvolume=job.subvolume, snapshots=job.snapshots, targets=job.targets)
    server = re.sub(r"(?m)^# (?=\[|[a-z_]+ = )", "", read_sample("server"))
    # Each way to name the key is shown, and an array has one.
    server = re.sub(r"(?m)^(key_credential|passphrase_file|passphrase_credential|hash) = .*$", "", server)
    loaded = load_server(written(tmp_path / "server.toml", server))
    shown = {name: getattr(loaded, name) for name in ServerConfig.__struct_fields__}
    for name in ("root", "clients", "arrays", "file", "io_class"):
        del shown[name]
    assert shown == {name: getattr(ServerConfig(root=loaded.root), name) for name in shown}
    array = loaded.arrays["mirror"]
    bare = ArrayConfig(members=array.members, mount_point=array.mount_point)
    for name in ("type", "offset_sectors", "mapping_prefix"):
        assert getattr(array, name) == getattr(bare, name)
    assert loaded.clients["workstation"].allow_fetch is ClientEntry().allow_fetch
    assert loaded.client_directory("workstation") == loaded.root / "workstation"


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_key_is_in_a_packaged_sample_and_has_a_description(struct: type[msgspec.Struct]) -> None:
    samples = read_sample("client") + read_sample("server")
    for field in fields(struct):
        if field.name not in ("file", "clients", "arrays"):
            assert re.search(rf"(?m)^(# )?{field.name} = ", samples), field.name
            assert describe(struct, field.name).endswith(".")


def test_a_missing_file_is_told_with_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file") as caught:
        load_client(tmp_path / "btrsync.toml")
    assert "btrsync config sample client" in (caught.value.hint or "")
    with pytest.raises(ConfigError) as caught:
        load_server(tmp_path / "server.toml")
    assert "btrsync config sample server" in (caught.value.hint or "")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_client(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        load_client(written(tmp_path / "file", CLIENT) / "btrsync.toml")


@pytest.mark.parametrize(
    ("mode", "is_refused"), [(0o644, False), (0o664, False), (0o602, True), (0o666, True)]
)
def test_a_file_that_every_user_may_write_is_refused(mode: int, is_refused: bool, tmp_path: Path) -> None:
    path = written(tmp_path / "btrsync.toml", CLIENT)
    path.chmod(mode)
    if not is_refused:
        assert load_client(path).file == path
        return
    with pytest.raises(ConfigError, match=f"has mode {mode:04o}") as caught:
        load_client(path)
    assert "chmod o-w" in (caught.value.hint or "")


def test_a_target_that_no_job_names_is_a_warning_and_no_error(tmp_path: Path) -> None:
    config = load_client(written(tmp_path / "c.toml", CLIENT + '[targets.spare]\npath = "/mnt"\n'))
    assert client_warnings(config) == [
        "targets.spare: no job names this target; add it to a job's targets, or remove it"
    ]


def test_a_key_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    key = written(tmp_path / "key", "private")
    config = load_client(written(tmp_path / "c.toml", CLIENT.replace("[jobs", f'key = "{key}"\n[jobs')))
    key.chmod(0o600)
    assert client_warnings(config) == []
    key.chmod(0o640)
    assert client_warnings(config) == [
        f"targets.daisy.key: {key} has mode 0640, and ssh refuses a key that others can read; chmod 600 {key}"
    ]
    assert stat.S_IMODE(key.stat().st_mode) == 0o640
    key.unlink()
    assert client_warnings(config) == [
        f"targets.daisy.key: {key}: No such file or directory; ssh-keygen(1) makes a key"
    ]


def test_a_server_that_lists_its_clients_lets_no_other_in() -> None:
    config = load_server(SAMPLES / "valid/server-everything.toml")
    assert config.client_directory("workstation") == Path("/MirrorRoot/btrsync/workstation")
    assert config.client_directory("laptop") == Path("/MirrorRoot/btrsync/old-laptop")
    with pytest.raises(RefusedError, match="may not connect"):
        config.client_directory("old-laptop")


@pytest.mark.parametrize("name", ["..", "", "a/b", "-x", ".hidden", "a\nb", "x" * 65])
def test_a_client_name_that_leaves_the_root_is_refused(name: str) -> None:
    with pytest.raises(RefusedError):
        ServerConfig(root=Path("/MirrorRoot")).client_directory(name)


MOMENTS = st.integers(0, 253_000_000_000).map(lambda second: datetime.fromtimestamp(second, UTC))
PIECES = st.sampled_from(["%Y", "%m", "%d", "%H", "%M", "%S", "%y", "%", "%%", "-", "a", "/", ".", " "])
PATTERNS = st.one_of(
    st.lists(PIECES, max_size=12).map("".join),
    st.lists(st.sampled_from(["", "-", "a", "_", ".", "T"]), min_size=7, max_size=7).map(
        lambda texts: "".join(
            text + directive
            for text, directive in zip(texts, ["%Y", "%m", "%d", "%H", "%M", "%S", ""], strict=True)
        )
    ),
)


@given(pattern=PATTERNS, one=MOMENTS, other=MOMENTS)
def test_names_of_an_accepted_pattern_are_allowed_on_a_server_and_sort_by_time(
    pattern: str, one: datetime, other: datetime
) -> None:
    if list(snapshot_name_problems("key", pattern)):
        return
    names = [moment.strftime(pattern) for moment in (one, other)]
    assert is_valid_name(names[0])
    assert (names[0] < names[1]) == (one < other)
    assert (names[0] == names[1]) == (one == other)


def test_the_usual_pattern_is_accepted() -> None:
    # Without this, the property above could hold because nothing is accepted.
    assert not list(snapshot_name_problems("key", "snapshot-%Y%m%d%H%M%S"))


KEYS = sorted({name for struct in STRUCTS for name in struct.__struct_fields__} | {"targets", "jobs", "x"})
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text("a/%-.Y\u3042", max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=20,
)


def inline(value: object) -> str:
    """A value as TOML writes it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


@settings(max_examples=30)
@given(
    table=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    which=st.sampled_from(["client", "server"]),
)
def test_whatever_a_file_holds_nothing_but_a_config_error_comes_of_it(
    table: dict[str, object], which: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{which}.toml"
    written(path, "\n".join(f"{key} = {inline(value)}" for key, value in table.items()))
    with contextlib.suppress(ConfigError):
        load(path)
