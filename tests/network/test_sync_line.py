"""What a run asks of the line and of the disks: compressed data, a rate, and room before the first byte."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from harness import faults
from tests.network import mirror

if TYPE_CHECKING:
    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")

TEXT_BYTES = 4_000_000


def add_text(both: TwoHosts) -> None:
    """Write data that lies on disk in less than half of its size."""
    directory = both.source() / "text"
    directory.mkdir()
    both.workstation.run(["btrfs", "property", "set", "/home/foo/share/text", "compression", "zstd"])
    words = [f"{number:x} " for number in range(2000)]
    chosen = random.Random(3).choices(words, k=TEXT_BYTES)
    (directory / "words").write_text("".join(chosen)[:TEXT_BYTES])


def test_data_goes_as_it_lies_on_disk_where_both_ends_can_and_it_is_wanted(both: TwoHosts) -> None:
    add_text(both)
    compressed = both.sync()
    mirror.assert_mirrored(both, compressed)
    assert compressed.outcome()["bytes_written"] > TEXT_BYTES
    assert compressed.bytes_sent < TEXT_BYTES * 0.7
    both.write_client_file(compressed="never")
    plain = both.sync("--full", "--always")
    mirror.assert_mirrored(both, plain)
    assert plain.bytes_sent > TEXT_BYTES


def test_an_old_server_gets_plain_data_or_is_named_where_that_is_not_wanted(both: TwoHosts) -> None:
    add_text(both)
    mirror.pretend_old_progs(both)
    both.write_client_file(compressed="always")
    refused = both.sync(ok=(10,))
    assert "daisy has btrfs-progs 5.10.1, and that takes 6.2" in mirror.words(refused)
    assert both.snapshots() == []
    assert mirror.visible_backups(both) == []
    both.write_client_file(compressed="auto")
    plain = both.sync()
    mirror.assert_mirrored(both, plain)
    assert plain.bytes_sent > TEXT_BYTES


def test_an_old_server_is_told_anew_how_much_it_will_write(both: TwoHosts) -> None:
    holed = both.source() / "holed"
    holed.write_bytes(random.Random(4).randbytes(24_000_000))
    mirror.assert_mirrored(both, both.sync())
    both.workstation.run(["fallocate", "--punch-hole", "-o", "4MiB", "-l", "12MiB", "/home/foo/share/holed"])
    mirror.pretend_old_progs(both)
    # Scarce, so that it is counted first: as the stream of today, whose holes are none of the data.
    with faults.FullFilesystem(both.daisy.path("/MirrorRoot"), free_bytes=20_000_000):
        synced = both.sync()
        assert "its total is another one" in both.daisy.read_text("/var/log/syslog")
    mirror.assert_mirrored(both, synced)
    assert synced.outcome()["bytes_written"] >= 12 << 20


def test_a_transfer_keeps_to_its_rate(both: TwoHosts) -> None:
    mirror.assert_mirrored(both, both.sync())
    mirror.add_bulk(both, size_bytes=3_000_000)
    both.write_client_file(rate_limit_bytes=1_000_000)
    limited = both.sync()
    mirror.assert_mirrored(both, limited)
    assert 2.2 < limited.outcome()["seconds"] < 10


def test_what_will_not_fit_is_refused_before_its_first_byte() -> None:
    # Without compression, what is to be written is what it takes; with it, there is a warning.
    with mirror.small(options="noatime") as both:
        first = mirror.assert_mirrored(both, both.sync())
        mirror.add_bulk(both, size_bytes=80_000_000)
        with faults.FullFilesystem(both.daisy.path("/MirrorRoot"), free_bytes=60_000_000):
            refused = both.sync(ok=(8,))
            assert "76.3 MiB are to be written, and " in mirror.words(refused)
            assert refused.bytes_sent == 0
            assert both.snapshots() == mirror.visible_backups(both) == [first]
        mirror.assert_mirrored(both, both.sync())
