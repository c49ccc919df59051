"""How the words of a rehearsal get into a guest, and what cannot get there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from harness.rehearsal import arguments, in_guest
from harness.rehearsal.problems import UNFIT, CannotRehearse
from vmimages.guest_commands import parse_put

RESULTS = Path("/tmp/results")


def argv_of(*words: str) -> list[str]:
    return in_guest.vm_argv(arguments.parse([*words]), RESULTS)


def test_without_an_image_the_guest_is_debian_12() -> None:
    assert arguments.parse(["--vm"]).vm == "bookworm"
    assert arguments.parse(["--vm", "trixie", "--json"]).vm == "trixie"
    assert arguments.parse([]).vm is None


def test_vmimages_is_run_as_a_command_and_the_words_go_along() -> None:
    argv = argv_of(
        "--vm", "trixie", "--size", "small", "--seed", "7", "--steps", "cut link,wrong key", "--json"
    )
    assert argv[:5] == [sys.executable, "-m", "vmimages", "run", "trixie"]
    ours, words = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    assert ours[-2:] == ["--results", str(RESULTS)]
    assert words[:2] == ["sh", "harness/rehearsal/guest.sh"]
    assert words[2:] == ["--size", "small", "--seed", "7", "--steps", "cut link,wrong key"]


def test_a_configuration_goes_in_as_a_file_of_the_guest() -> None:
    argv = argv_of("--vm", "--config", "/etc/btrsync/btrsync.toml")
    put = argv[argv.index("--put") + 1]
    name, file = parse_put(put)
    assert file == Path("/etc/btrsync/btrsync.toml")
    assert argv[argv.index("--config") + 1] == f"/work/{name}"


@pytest.mark.parametrize("text", ["name", "=file", "name=", "/etc/passwd=file", "../name=file"])
def test_a_file_for_a_guest_lies_below_work(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_put(text)


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--source", "/home"], 2, "--source: this machine's own files do not get into a guest"),
        (["--keep"], 2, "--keep: a guest has no other terminal"),
        (["--config", "/no/such.toml"], UNFIT, "--config: /no/such.toml cannot be read"),
    ],
)
def test_what_a_guest_cannot_have_is_refused_before_one_is_booted(
    words: list[str], status: int, sentence: str
) -> None:
    with pytest.raises(CannotRehearse) as caught:
        in_guest.rehearse_in_guest(arguments.parse(["--vm", *words]))
    assert caught.value.exit_status == status
    assert sentence in caught.value.problems[0]


def test_a_report_that_was_cut_off_is_none(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert in_guest.read_report(file) is None
    file.write_text("")
    assert in_guest.read_report(file) is None
    file.write_text('{"ok": tr')
    assert in_guest.read_report(file) is None
    file.write_text('{"ok": true}\n')
    assert in_guest.read_report(file) == '{"ok": true}'
