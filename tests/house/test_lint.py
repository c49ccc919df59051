"""Processes start behind the doors only: each way around them is planted once, and seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.house.conftest import Checkout

OFFENCES = [
    "import subprocess\n",
    "from subprocess import run\n",
    'import os\n\nos.system("true")\n',
    'import os\n\nos.popen("true")\n',
    'import os\n\nos.posix_spawn("/bin/true", [], {})\n',
    "import multiprocessing\n",
    "import sys\n\nsys.exit(1)\n",
    "import asyncio\n\nasyncio.create_subprocess_shell\n",
]
ROOMS = [
    "btrsync/target.py",
    "btrsync/system/btrfs.py",
    "btrsync/commands/sync.py",
    "harness/sshd.py",
    "tests/unit/test_x.py",
]
DOORS = ["btrsync/system/process.py", "btrsync/system/pipeline.py", "harness/command.py", "btrsync/cli.py"]


def banned(checkout: Checkout, text: str, path: str) -> bool:
    done = checkout.run("ruff", "check", "--no-cache", "--stdin-filename", path, "-", stdin=text)
    return "TID251" in done.stdout


@pytest.mark.parametrize("path", ROOMS)
@pytest.mark.parametrize("text", OFFENCES, ids=[text.splitlines()[-1] for text in OFFENCES])
def test_a_process_or_an_exit_outside_the_doors_is_seen(checkout: Checkout, text: str, path: str) -> None:
    assert banned(checkout, text, path)


@pytest.mark.parametrize("path", DOORS)
def test_the_doors_are_open(checkout: Checkout, path: str) -> None:
    assert not banned(checkout, "import subprocess\nimport sys\n\nsys.exit(1)\n", path)


def test_a_shell_is_seen_even_at_the_doors(checkout: Checkout) -> None:
    text = 'import subprocess\n\nsubprocess.run("true", shell=True, check=True)\n'
    done = checkout.run("ruff", "check", "--no-cache", "--stdin-filename", DOORS[0], "-", stdin=text)
    assert "S602" in done.stdout
