"""Power cuts at random moments: `python -m tests.vmimages.power_cuts --seed 1 --count 200 --out FILE`.

One guest of User Mode Linux is workstation and daisy at once: a system disk with the subvolume, and an
array of two disks on plain dm-crypt. Its power is cut during a sync, `array open` or `array create`; then
the next runs must put all right. One line of JSON for each cut is appended to FILE; cuts that are in it
with a verdict are not made again. A seed says what is done and when; how far the guest was is told by
what was found after it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from harness import manifest
from tests.vmimages import mirror_machines as mirror
from vmimages.build import build_image
from vmimages.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.manifest import Manifest
    from vmimages.image import Image

    Kind = Literal["sync", "open", "create"]

TREE = Path(__file__).parents[2]
DISK_BYTES = 320 << 20
BULK_BYTES = 3 << 19
CHECKPOINT_BYTES = 1 << 20
PER_INSTALLATION = 10
OPEN = "btrsync array open mirror"
ETC = ("etc", "var/lib/btrsync")
"""What create and configuration are written to: on the system disk, for a root in memory forgets."""
BOOT = f"""
set -e
mkdir -p /source /MirrorRoot /var/lib/btrsync
[ -z "$1" ] || mount "$1" /source
for one in {" ".join(ETC)}; do
    [ -d /source/system/$one ] || {{ mkdir -p /source/system/$one; cp -a /$one/. /source/system/$one; }}
    mount --bind /source/system/$one /$one
done
"""
SUPERBLOCKS_MIB = (0, 64)
"""Where btrfs keeps its superblock and the first copy of it; the next copy lies at 256 GiB."""
MAX_FRACTION = 1.05
"""Of the time that the same takes uncut: some cuts come when all has just been done."""


class Wrong(AssertionError):
    """What a power cut must never leave."""


class Installation:
    """A machine with a tree to be mirrored and an array: `with Installation(image, seed=1) as one`.

    below: what a member is in the guest, by its number; by default the disk itself.
    """

    def __init__(
        self, image: Image, *, seed: int, below: Callable[[Machine, int], str] | None = None
    ) -> None:
        self._stack = contextlib.ExitStack()
        disks = [DISK_BYTES] * 3
        self.machine = Machine(image, name="daisy", backend="uml", disks=disks, tree=TREE)
        self.members = [(below or Machine.device)(self.machine, number) for number in (2, 3)]
        self.committed: dict[str, Manifest] = {}
        self.seconds: dict[str, float] = {}
        self._seed = seed

    def __enter__(self) -> Self:
        self._stack.enter_context(self.machine)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ------------------------------------------------------------------------------ as it is used

    @property
    def create(self) -> str:
        return f"btrsync array create mirror --yes --wipe {' '.join(self.members)}"

    def install(self) -> None:
        """Make the system disk, with tree and configuration; no array yet."""
        self.machine.start()
        mirror.make_source(self.machine, self.machine.device(1), seed=self._seed)
        self.machine.succeed(["sh", "-c", BOOT, "boot", ""])
        mirror.configure_client(self.machine, "127.0.0.1", "daisy")
        self.configure_array()
        mirror.write(self.machine, "/etc/btrsync/array-key", "k" * 64)
        self.machine.succeed("sync", "/usr/sbin/sshd")

    def configure_array(self) -> None:
        """Write the configuration of an array that was never made."""
        members = ", ".join(json.dumps(member) for member in self.members)
        mirror.configure_server(
            self.machine,
            f"checkpoint_bytes = {CHECKPOINT_BYTES}\n[arrays.mirror]\nmembers = [{members}]\n"
            'cipher = "twofish-xts-plain"\nkey_size_bits = 512\nkey_file = "/etc/btrsync/array-key"\n'
            'mount_point = "/MirrorRoot"\noptions = "noatime,compress-force=lzo,subvol=mirror"\n',
        )

    def power_on(self) -> None:
        """Start again, up to where a person would open the array."""
        self.machine.start()
        self.machine.succeed(["sh", "-c", BOOT, "boot", self.machine.device(1)], "/usr/sbin/sshd")

    def make_array(self) -> None:
        """Make the array and open it."""
        self.timed("create", lambda: self.machine.succeed(self.create))
        self.timed("open", lambda: self.machine.succeed(OPEN))
        self.machine.succeed(f"mkdir -p {mirror.ROOT}")

    def timed(self, name: str, act: Callable[[], object]) -> None:
        """Do something, and remember how long it took at most."""
        began = time.monotonic()
        act()
        self.seconds[name] = max(self.seconds.get(name, 0.0), time.monotonic() - began)

    # --------------------------------------------------------------------------------- what must be

    def sync(self) -> None:
        """Sync to the end, and see that the mirror is whole; remember the backups as they are now."""
        self.timed("sync", lambda: mirror.outcome(mirror.sync(self.machine)))
        found = mirror.names(self.machine, mirror.BACKUPS)
        snapshots = mirror.names(self.machine, mirror.SNAPSHOTS)
        if hidden := [name for name in found if name.startswith(".")]:
            raise Wrong(f"left behind after a whole sync: {hidden}")
        if max(found) != max(snapshots):
            raise Wrong(f"the last snapshot is {max(snapshots)}, the last backup {max(found)}")
        new = [name for name in found if name not in self.committed]
        live, *backups = mirror.manifests(
            self.machine, [mirror.LIVE, *(f"{mirror.BACKUPS}/{name}" for name in new)]
        )
        self.committed |= dict(zip(new, backups, strict=True))
        _compare(live, self.committed[max(found)], ("the live tree", f"backup {max(found)}"))

    def assert_committed_unchanged(self) -> list[str]:
        """See every backup that was committed as it was; return the names of all that lies there."""
        found = mirror.names(self.machine, mirror.BACKUPS)
        if missing := sorted(set(self.committed) - set(found)):
            raise Wrong(f"committed backups are gone: {missing}")
        wanted = sorted(self.committed)
        seen = mirror.manifests(self.machine, [f"{mirror.BACKUPS}/{name}" for name in wanted])
        for name, now in zip(wanted, seen, strict=True):
            _compare(self.committed[name], now, (f"{name} before the cut", "after"))
        return found

    def assert_sound(self) -> None:
        """See that a scrub finds nothing on either filesystem."""
        for point in ("/MirrorRoot", "/source"):
            said = self.machine.succeed(f"btrfs scrub start -B {point} && btrfs device stats -c {point}")
            if "no errors found" not in said:
                raise Wrong(f"scrub of {point}: {said}")

    # --------------------------------------------------------------------------------------- cuts

    def cut(self, kind: Kind, seed: int) -> dict[str, Any]:
        """Cut the power once, put all right, and return what was seen. Raises Wrong, CommandFailed."""
        fraction = Random(seed).uniform(0, MAX_FRACTION)
        after_s = fraction * self.seconds[kind]
        found = getattr(self, f"_cut_{kind}")(seed, after_s)
        self.sync()
        self.assert_sound()
        return {"fraction": round(fraction, 3), "after_s": round(after_s, 3), "found": found}

    def _cut_now(self, command: str | list[str], after_s: float) -> None:
        self.machine.background(command)
        time.sleep(after_s)
        self.machine.crash()

    def _cut_sync(self, seed: int, after_s: float) -> str:
        mirror.change(self.machine, seed=seed, bulk_bytes=BULK_BYTES)
        # A partial whose deletion is not on disk would come back, and be taken for this sync's.
        self.machine.succeed("btrfs filesystem sync /MirrorRoot")
        self._cut_now(mirror.SYNC, after_s)
        self.power_on()
        self.machine.succeed(OPEN)
        return _phase(self.assert_committed_unchanged(), self.committed)

    def _cut_open(self, _seed: int, after_s: float) -> str:
        self.machine.crash()
        self.power_on()
        self._cut_now(OPEN, after_s)
        self.power_on()
        self.machine.succeed(OPEN)
        return _phase(self.assert_committed_unchanged(), self.committed)

    def _cut_create(self, _seed: int, after_s: float) -> str:
        """A new array on disks that hold noise; nothing of the one before is known any more."""
        self.machine.succeed("btrsync array close mirror")
        self.configure_array()
        for member in self.members:
            for at_mib in SUPERBLOCKS_MIB:
                noise = f"dd if=/dev/urandom of={member} bs=1M seek={at_mib} count=1 conv=notrunc status=none"
                self.machine.succeed(noise)
        self.machine.succeed("rm -rf /var/lib/btrsync/* /etc/fstab; : > /etc/fstab; sync")
        self.committed.clear()
        self._cut_now(self.create, after_s)
        self.power_on()
        said = self.machine.succeed(self.create)
        self.machine.succeed(OPEN, f"mkdir -p {mirror.ROOT}", f"rm -f {mirror.LIVE}/bulk-*")
        return next(word for word in ("completed", "unchanged", "made") if word in said)


def _compare(before: Manifest, after: Manifest, called: tuple[str, str]) -> None:
    if lines := manifest.difference(before, after, names=called):
        raise Wrong("\n".join(lines))


def _phase(found: list[str], committed: dict[str, Manifest]) -> str:
    """Say how far a sync had come, from what lies beside the backups."""
    visible = {name for name in found if not name.startswith(".")}
    if visible - set(committed):
        return "committed"
    hidden = sorted({name[1:].partition("-")[0] for name in found if name.startswith(".")})
    return " and ".join(hidden) or "nothing yet"


# ------------------------------------------------------------------------------------------ command


@contextlib.contextmanager
def installed(image: Image, seed: int) -> Iterator[Installation]:
    """An installation with its array, mirrored once: so long each cut's sync will take at most."""
    with Installation(image, seed=seed) as one:
        one.install()
        one.make_array()
        mirror.change(one.machine, seed=seed, bulk_bytes=BULK_BYTES)
        one.sync()
        yield one


def run(image: Image, kind: Kind, seeds: list[int], report: Callable[[dict[str, Any]], None]) -> None:
    """Cut once for each seed; what goes wrong is reported too, and the next begins on new disks."""
    waiting = list(seeds)
    while waiting:
        with installed(image, waiting[0]) as one:
            for _ in range(min(PER_INSTALLATION, len(waiting))):
                seed = waiting.pop(0)
                began = time.monotonic()
                entry: dict[str, Any] = {"seed": seed, "kind": kind, "image": image.name}
                try:
                    entry |= {"verdict": "right", **one.cut(kind, seed)}
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this cut's verdict
                    entry |= {"verdict": "wrong", "why": f"{type(error).__name__}: {error}"}
                report({**entry, "seconds": round(time.monotonic() - began, 1)})
                if entry["verdict"] != "right":
                    break


def done_seeds(file: Path, kind: str, image: str) -> set[int]:
    """Return the seeds that a file has a verdict of."""
    if not file.exists():
        return set()
    entries = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    return {entry["seed"] for entry in entries if (entry["kind"], entry["image"]) == (kind, image)}


def main() -> int:
    """Make the cuts that are not in the file yet; return 1 if any went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.vmimages.power_cuts", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--kind", choices=("sync", "open", "create"), default="sync")
    parser.add_argument("--image", default="trixie")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cut later than that")
    options = parser.parse_args()
    image = build_image(options.image, backends=["uml"])
    deadline = time.monotonic() + options.seconds
    done = done_seeds(options.out, options.kind, image.name)
    verdicts: list[str] = []

    class Over(Exception):
        """The time is over."""

    def report(entry: dict[str, Any]) -> None:
        with options.out.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        verdicts.append(entry["verdict"])
        if time.monotonic() > deadline:
            raise Over

    seeds = [seed for seed in range(options.seed, options.seed + options.count) if seed not in done]
    with contextlib.suppress(Over):
        run(image, cast("Kind", options.kind), seeds, report)
    print(f"{len(verdicts)} cuts, {verdicts.count('wrong')} wrong; {len(done)} were there before")
    return 1 if "wrong" in verdicts else 0


if __name__ == "__main__":
    raise SystemExit(main())
