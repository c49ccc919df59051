"""The house's own settings: every exception has its reason, every environment its seconds."""

from __future__ import annotations

import configparser
import re
import stat
import tomllib
from pathlib import Path

import pytest

from btrsync.errors import BtrsyncError

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = {
    "unit", "process", "kernel", "network", "lint", "machines", "harness", "type", "layers", "docs", "bench",
    "checkpoints", "fuzz", "vmimages", "vm-bookworm", "vm-trixie", "vm-forky",
    "compatibility",
}  # fmt: skip
NAMED_ONLY = {"bench", "checkpoints", "compatibility", "vmimages", "vm-bookworm", "vm-forky"}
"""Run only when they are asked for by name."""
DOORS = {"btrsync/system/{process,pipeline}.py", "harness/command.py", "btrsync/cli.py"}
WHOLE_CHECK_S = 70 * 60
"""If every environment used up its seconds: about twice what two cores need, which is less than 40 minutes."""


def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text()


# ------------------------------------------------------------------------------------- exceptions


def rules_without_reason(text: str) -> list[str]:
    """Return the lines of ruff's ignore lists that name a rule and have no reason beside it."""
    section = text.partition("[tool.ruff.lint]")[2].partition("[tool.ruff.lint.flake8-tidy-imports")[0]
    return [
        line.strip()
        for line in section.splitlines()
        if re.search(r'"[A-Z]+\d*",', line) and "  # " not in line
    ]


def test_every_lint_rule_is_on_and_every_exception_has_its_reason() -> None:
    settings = tomllib.loads(pyproject())["tool"]["ruff"]
    assert settings["lint"]["select"] == ["ALL"]
    assert settings["line-length"] == 110
    assert rules_without_reason(pyproject()) == []


def test_an_exception_without_a_reason_is_seen() -> None:
    planted = pyproject().replace("[tool.ruff.lint]\n", '[tool.ruff.lint]\nignore = [\n    "E999",\n]\n')
    assert '"E999",' in rules_without_reason(planted)


def test_only_the_doors_may_start_a_process_or_exit() -> None:
    ignores = tomllib.loads(pyproject())["tool"]["ruff"]["lint"]["per-file-ignores"]
    assert {files for files, rules in ignores.items() if "TID251" in rules} == DOORS


def noqa_without_reason(text: str) -> list[str]:
    """Return the lines that switch a check off without saying which, or why."""
    marks = re.findall(r"(?m)^.*# (?:noqa|type: ignore).*$", text)
    return [
        line.strip() for line in marks if not re.search(r"# noqa: [A-Z]+\d+|# type: ignore\[[\w-]+\]", line)
    ]


def test_no_check_is_switched_off_wholesale() -> None:
    found = {
        str(file.relative_to(ROOT)): lines
        for folder in ("btrsync", "harness", "tests", "vmimages")
        for file in (ROOT / folder).rglob("*.py")
        if file != Path(__file__) and (lines := noqa_without_reason(file.read_text()))
    }
    assert found == {}


def test_a_check_that_is_switched_off_wholesale_is_seen() -> None:
    planted = (
        "x = 1  # no" + "qa\ny: int = ''  # type: " + "ignore\nz = 1  # no" + "qa: E501  long on purpose\n"
    )
    assert len(noqa_without_reason(planted)) == 2


# ---------------------------------------------------------------------------------------- budgets


def tox_settings() -> configparser.ConfigParser:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string((ROOT / "tox.ini").read_text())
    return settings


def budgets(settings: configparser.ConfigParser) -> dict[str, int]:
    """Return the seconds that each environment may take; a command without a budget counts as none."""
    found = {}
    for section in settings.sections():
        if not section.startswith("testenv:"):
            continue
        commands = [line for line in settings[section]["commands"].splitlines() if line]
        seconds = [re.match(r"tools/budget (\d+) ", line) for line in commands]
        found[section.removeprefix("testenv:")] = (
            sum(int(match[1]) for match in seconds if match) if all(seconds) else 0
        )
    return found


def test_every_environment_is_there_and_ends_in_time() -> None:
    settings = tox_settings()
    default = set(settings["tox"]["env_list"].replace(",", " ").split())
    seconds = budgets(settings)
    assert set(seconds) == ENVIRONMENTS
    assert default == ENVIRONMENTS - NAMED_ONLY
    assert min(seconds.values()) > 0
    assert sum(seconds[name] for name in default) <= WHOLE_CHECK_S


def test_the_budgets_are_those_that_contributing_names() -> None:
    rows = re.findall(r"(?m)^\| ([\w-]+) \| .* \| (\d+) \|$", (ROOT / "CONTRIBUTING.md").read_text())
    assert {name: int(seconds) for name, seconds in rows} == budgets(tox_settings())


def test_a_command_without_a_budget_is_seen() -> None:
    settings = tox_settings()
    settings["testenv:unit"]["commands"] = "\ntools/budget 5 true\npytest tests/unit"
    assert budgets(settings)["unit"] == 0


def test_every_folder_of_tests_belongs_to_an_environment() -> None:
    commands = " ".join(section.get("commands", "") for section in tox_settings().values())
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if "data" not in file.parts]
    unclaimed = [
        str(file.relative_to(ROOT))
        for file in files
        if not any(
            f"tests/{part}" in commands for part in (file.parent.name, f"{file.parent.name}/{file.name}")
        )
        and not any(f"tests/{parent.name} " in f"{commands} " for parent in file.parents)
    ]
    assert unclaimed == []


# ------------------------------------------------------------------------------------ the commands


@pytest.mark.parametrize("script", ["check", "rehearse", ".ci/run", "tools/budget", "tools/bare"])
def test_a_command_can_be_executed(script: str) -> None:
    assert (ROOT / script).stat().st_mode & stat.S_IXUSR


def test_every_error_has_an_exit_status_that_the_readme_lists() -> None:
    listed = set(re.findall(r"(?m)^\| (\d+) \|", (ROOT / "README.md").read_text()))
    classes, waiting = set(), [BtrsyncError]
    while waiting:
        error = waiting.pop()
        classes.add(error)
        waiting += error.__subclasses__()
    assert len(classes) > 5
    assert {str(error.exit_status) for error in classes} <= listed
