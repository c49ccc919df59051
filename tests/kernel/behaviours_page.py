"""The page docs/behaviours.md: `python -m tests.kernel.behaviours_page` tries everything and writes it.

With `--json FILE` it also writes what was seen as data, of which an atlas over several kernels is made.

Host commands used: `pytest`, as `python -m pytest`.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import command
from tests.kernel import behaviour as records
from tests.kernel.trial import JSON_VARIABLE, PAGE, versions

HERE = Path(__file__).parent
# In the order of the page: from one snapshot to going back to it.
MODULES = (
    "snapshots",
    "moving",
    "generations",
    "sending",
    "receiving",
    "parents",
    "cut_streams",
    "checkpoints",
    "losses",
    "rollback",
    "space",
)
TIMEOUT_S = 600
HEAD = """\
# What btrfs does

The first author of this mirror tried snapshots, send and receive one by one before trusting them, and left
some questions open. Here each is tried again, on a real filesystem, whenever the tests run. This page is
written by those tests and compared with what they see: **do not edit it**, run
`python -m tests.kernel.behaviours_page` as root.

Written on {key}.

`/source` and `/target` are directories on two btrfs filesystems, mounted with relatime and with noatime;
`/work` is on neither. The usual `/source/share` is a subvolume with a letter, a photo of 3,000,000 bytes that
do not compress, and a symbolic link. UUIDs and device numbers are left out. A `console` block holds what was
typed and every word that was answered; the points below it were read from the filesystem itself.
"""


def described() -> list[records.Behaviour]:
    """Return every behaviour that has a test, in the order of the page, without running any."""
    found = []
    for name in MODULES:
        module = importlib.import_module(f"tests.kernel.test_behaviours_{name}")
        tests = (each for each in vars(module).values() if getattr(each, "is_behaviour", False))
        found += [records.behaviour_of(test) for test in tests]
    return found


def format_page(seen: list[records.Record], key: str) -> str:
    """Render the whole page from the records of one run; key: the versions it was seen on."""
    parts = [HEAD.format(key=key)]
    for group, members in itertools.groupby(seen, key=lambda record: record.behaviour.group):
        parts.append(f"## {group}\n")
        parts += [records.format_record(record) + "\n" for record in members]
    return "\n".join(parts)


def tried() -> dict[str, Any]:
    """Run every behaviour and return the records as data; CommandFailed if one does not hold."""
    with tempfile.TemporaryDirectory(prefix="btrsync-behaviours-") as directory:
        file = Path(directory) / "behaviours.json"
        argv = [
            sys.executable, "-m", "pytest", "-q",
            "--rootdir", str(HERE.parents[1]),
            *(str(HERE / f"test_behaviours_{name}.py") for name in MODULES),
        ]  # fmt: skip
        command.run(argv, env={JSON_VARIABLE: str(file)}, timeout_s=TIMEOUT_S, cwd=HERE.parents[1])
        document: dict[str, Any] = json.loads(file.read_text())
        return document


def main() -> None:
    """Write the page, and the data where wanted."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.behaviours_page", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was seen as data, too")
    options = parser.parse_args()
    document = tried()
    key = versions().key
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(format_page(records.records_of(document, key), key))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{PAGE}: {len(document['behaviours'])} behaviours on {key}")


if __name__ == "__main__":
    main()
