"""The page on changing over, done to the letter: real btrbk or the original sends two, btrsync the third."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from harness import sshd
from harness.scenario import Job
from tests.network import mirror
from tests.network.original.reenactment import Original

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.command import Completed
    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")

PAGE = Path(__file__).parents[2] / "docs/change-over.md"
BLOCK = re.compile(r"^(?:<!-- run: (\w+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONFIGURATION = Path("/etc/btrbk/btrbk.conf")
FILTER = "/usr/share/btrbk/scripts/ssh_filter_btrbk.sh --target --delete --info"
KEY_FILE = Path("/root/.ssh/btrbk")
BULK_BYTES = 3_000_000


class Block(NamedTuple):
    """One block of code: on which host it is to be run, if it is; its language; its lines."""

    host: str
    language: str
    text: str


def section(heading: str) -> list[Block]:
    """Return the blocks of code below a heading of the page, up to the next one."""
    (_, _, rest) = PAGE.read_text().partition(f" {heading}\n")
    assert rest, heading
    return [Block(*found) for found in BLOCK.findall(re.split(r"(?m)^##+ ", rest)[0])]


def play(both: TwoHosts, block: Block) -> Completed:
    """Run what the page says on the host that it names; a line that fails, fails it."""
    host = {"daisy": both.daisy, "workstation": both.workstation}[block.host]
    path = f"{both.btrsync_path.parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    return host.run(["sh", "-euc", block.text], env={"PATH": path})


def job_of(blocks: Sequence[Block]) -> Job:
    """Return the job that the page has the user write."""
    (text,) = [block.text for block in blocks if block.language == "toml"]
    ((name, table),) = tomllib.loads(text)["jobs"].items()
    return Job(name, Path(table["subvolume"]), Path(table["snapshots"]), tuple(table["targets"]))


def explained(both: TwoHosts) -> str:
    return both.btrsync("sync", "--explain", ok=None).stdout


def assert_changed_over(both: TwoHosts, adopted: str) -> None:
    """Do the first run as the page says: it is incremental from what the other tool made, and equal."""
    held, bytes_before = set(both.snapshots()), both.bytes_on_link()
    mirror.change(both, seed=3)
    assert f"{adopted}: SEND PARENT" in explained(both)
    told = play(both, *section("The first run")).stdout
    assert f"incremental from {adopted}" in told
    assert both.bytes_on_link() - bytes_before < BULK_BYTES / 2, "the bulk was not sent again"
    (third,) = set(both.snapshots()) - held
    assert both.differences(third) == []
    again = both.sync()
    assert again.outcome()["result"] == "nothing_changed"


@pytest.fixture
def btrbk() -> Iterator[TwoHosts]:
    """Two hosts on which btrbk, as the page configures it, has made and sent two snapshots."""
    blocks = section("From btrbk")
    with mirror.small(jobs=[job_of(blocks)]) as both:
        key = sshd.Key("ed25519", "root@btrbk")
        key.install(both.workstation, KEY_FILE)
        sshd.authorize(both.daisy, key, command=FILTER)
        both.daisy.path("/MirrorRoot/btrbk/workstation").mkdir(parents=True)
        (text,) = [block.text for block in blocks if block.language == "text"]
        both.workstation.write_text(CONFIGURATION, text)
        mirror.add_bulk(both, size_bytes=BULK_BYTES)
        both.workstation.run(["btrbk", "run"])
        mirror.change(both, seed=2)
        both.workstation.run(["btrbk", "run"])
        assert len(backups_of_btrbk(both)) == 2
        yield both


def backups_of_btrbk(both: TwoHosts) -> list[str]:
    directory = both.daisy.path("/MirrorRoot/btrbk/workstation")
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def test_after_btrbk_its_latest_backup_is_taken_along_and_the_third_is_incremental(btrbk: TwoHosts) -> None:
    first, second = backups_of_btrbk(btrbk)
    (step,) = section("Where btrbk's directory holds several subvolumes' backups")
    install, latest, snapshot, delete = step.text.splitlines()
    play(btrbk, step._replace(text=f"{install}\n{latest}\n{snapshot}"))
    mirror.change(btrbk, seed=4)
    shown = explained(btrbk)
    assert "CONFLICT" in shown
    assert f"{second}: UNFIT: 2 subvolumes on daisy carry the received UUID" in shown
    play(btrbk, step._replace(text=f"{latest}\n{delete}"))
    assert (backups_of_btrbk(btrbk), btrbk.backups()) == ([first], [second])
    assert_changed_over(btrbk, second)


def test_after_btrbk_its_whole_directory_is_taken_along_and_the_third_is_incremental(btrbk: TwoHosts) -> None:
    both_names = backups_of_btrbk(btrbk)
    play(btrbk, *section("Where it holds the backups of one subvolume only"))
    assert (backups_of_btrbk(btrbk), btrbk.backups()) == ([], both_names)
    assert_changed_over(btrbk, both_names[-1])


def test_after_the_original_its_latest_backup_is_taken_along_and_the_third_is_incremental() -> None:
    blocks = section("From the original's scripts")
    with mirror.small(jobs=[job_of(blocks)]) as both:
        mirror.add_bulk(both, size_bytes=BULK_BYTES)
        original = Original(both)
        original.run()
        mirror.change(both, seed=2)
        original.run()
        first, second = original.on_daisy()
        play(both, blocks[-1])
        assert (original.on_daisy(), both.backups()) == ([first], [second])
        assert_changed_over(both, "snapshot-old")
