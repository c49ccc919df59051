"""The generated tree: of every kind, the same for the same seed, changed by every mutation."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from harness import command, ioctls, manifest, tree
from harness.filesystem import Array, mount
from harness.tree import attributes, drivers
from harness.tree.__main__ import main
from harness.tree.content import Content
from harness.tree.metadata import lift_flags
from harness.tree.root import Root
from harness.tree.survey import LONGEST_PATH_BYTES, survey

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

GIB = 1 << 30


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with Array(members=1, size_bytes=4 * GIB, label="tree") as array:
        point = tmp_path_factory.mktemp("tree") / "btrfs"
        with mount(array, point, options="noatime", subvolume=None) as path:
            yield path


@pytest.fixture
def subvolumes(btrfs: Path) -> Iterator[list[Path]]:
    """Three empty subvolumes, deleted afterwards."""
    number = len(list(btrfs.iterdir()))
    made = [subvolume(btrfs, f"test-{number}-{letter}") for letter in "abc"]
    yield made
    for path in made:
        with Root(path) as root:
            lift_flags(root)
        with open_directory(btrfs) as fd:
            for nested in [item.path for item in survey_of(path).subvolumes]:
                command.run(["btrfs", "subvolume", "delete", os.fsdecode(bytes(path) + b"/" + nested)])
            ioctls.delete_subvolume(fd, os.fsencode(path.name))


def subvolume(directory: Path, name: str) -> Path:
    with open_directory(directory) as fd:
        ioctls.create_subvolume(fd, name.encode())
    return directory / name


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def survey_of(path: Path) -> tree.survey.Survey:
    with Root(path) as root:
        return survey(root)


def snapshot(source: Path, name: str) -> Path:
    with open_directory(source) as source_fd, open_directory(source.parent) as directory:
        ioctls.create_snapshot(source_fd, directory, name.encode())
    return source.parent / name


def differences(a: Path, b: Path) -> list[str]:
    return manifest.difference(manifest.read(a, with_holes=True), manifest.read(b, with_holes=True))


# ------------------------------------------------------------------------------------- the generator


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_one_seed_gives_one_tree_and_another_seed_another(size: str, subvolumes: list[Path]) -> None:
    for path, seed in zip(subvolumes, (5, 5, 6), strict=True):
        tree.generate(path, seed, size)
    first, again, other = subvolumes
    assert differences(first, again) == []
    assert len(differences(first, other)) > 5


@pytest.mark.parametrize(
    ("size", "least", "most"), [("tiny", 25, 60), ("small", 200, 400), ("medium", 2500, 3500)]
)
def test_a_size_has_about_as_many_files_as_it_says(
    size: str, least: int, most: int, subvolumes: list[Path]
) -> None:
    tree.generate(subvolumes[0], 1, size)
    assert least <= len(survey_of(subvolumes[0]).files) <= most


def test_even_the_smallest_tree_has_every_kind_of_thing(subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    tree.generate(root, 1, "tiny")
    entries = manifest.read(root, with_holes=True).entries
    assert {entry.kind for entry in entries.values()} == {
        "file", "directory", "symlink", "fifo", "socket", "character device", "block device",
    }  # fmt: skip
    xattrs = {name for entry in entries.values() for name, _ in entry.xattrs}
    assert xattrs >= {
        attributes.ACCESS_ACL, attributes.DEFAULT_ACL, attributes.CAPABILITY, attributes.COMPRESSION,
    }  # fmt: skip
    assert entries[b"nodes/dangling"].xattrs == ((b"trusted.link", b"of the link itself"),)
    assert any(entry.linked_to for entry in entries.values())
    assert any(entry.holes for entry in entries.values())
    assert any(b"\n" in path for path in entries)
    assert any(not is_utf8(path) for path in entries)
    assert {0o4000, 0o2000, 0o1000} & {entry.mode & 0o7000 for entry in entries.values()}
    assert len({entry.uid for entry in entries.values()}) > 2
    assert min(entry.mtime_ns for entry in entries.values()) < 0
    assert sum(entry.mtime_ns % 1000 != 0 for entry in entries.values()) > len(entries) // 2
    assert os.stat(root / "reflinks" / "original").st_size == 150_001
    assert shared_bytes(root / "reflinks" / "original") > 100_000


def is_utf8(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def shared_bytes(path: Path) -> int:
    """How much of a file shares its extents, by `btrfs filesystem du`: total, exclusive, shared."""
    os.sync()
    line = command.run(["btrfs", "filesystem", "du", "--raw", path]).stdout.splitlines()[-1]
    total, exclusive, *_ = line.split()
    return int(total) - int(exclusive)


def test_an_ordinary_small_tree_has_names_of_255_bytes_and_the_longest_path(subvolumes: list[Path]) -> None:
    tree.generate(subvolumes[0], 1, "small")
    paths = list(manifest.read(subvolumes[0]).entries)
    assert max(len(path.rpartition(b"/")[2]) for path in paths) == 255
    assert LONGEST_PATH_BYTES - 210 < max(len(path) for path in paths) <= LONGEST_PATH_BYTES + 4


def test_a_fan_of_links_overflows_into_extended_references(subvolumes: list[Path], btrfs: Path) -> None:
    tree.generate(subvolumes[0], 1, "small")
    os.sync()
    source = next(
        line.split() for line in Path("/proc/self/mounts").read_text().splitlines() if str(btrfs) in line
    )
    said = command.run(["btrfs", "inspect-internal", "dump-tree", source[0]]).stdout
    assert " INODE_EXTREF " in said


def test_a_tree_is_made_only_where_nothing_is(subvolumes: list[Path]) -> None:
    (subvolumes[0] / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="empty directory only"):
        tree.generate(subvolumes[0], 1, "tiny")
    assert [path.name for path in subvolumes[0].iterdir()] == ["mine"]


@pytest.mark.parametrize("path", [b"/etc", b"/", b"..", b"../beside", b"a/../../beside"])
def test_no_operation_leaves_the_tree(path: bytes, subvolumes: list[Path]) -> None:
    (subvolumes[0] / "a").mkdir()
    with Root(subvolumes[0]) as root:
        for operation in (
            root.stat, root.names, root.read, root.make_directory, root.unlink, root.remove,
            root.remove_directory, root.create_subvolume, root.delete_subvolume, root.xattr_names,
        ):  # fmt: skip
            with pytest.raises(ValueError, match="leads out of the tree"):
                operation(path)
        for both in ((path, b"new"), (b"a", path)):
            with pytest.raises(ValueError, match="leads out of the tree"):
                root.rename(*both)
            with pytest.raises(ValueError, match="leads out of the tree"):
                root.link(*both)
        with pytest.raises(ValueError, match="leads out of the tree"):
            root.write(path, b"no")


def test_the_mode_of_what_a_symlink_points_to_is_never_changed(
    subvolumes: list[Path], tmp_path: Path
) -> None:
    (subvolumes[0] / "link").symlink_to(tmp_path)
    before = tmp_path.stat().st_mode
    with Root(subvolumes[0]) as root, pytest.raises(ValueError, match="is a symlink"):
        root.change_mode(b"link", 0o777)
    assert tmp_path.stat().st_mode == before


def test_another_filesystem_is_refused_in_one_sentence() -> None:
    with pytest.raises(tree.NotBtrfsError, match="on btrfs only"):
        tree.generate(Path("/proc"), 1)


def test_another_user_is_refused_in_one_sentence(subvolumes: list[Path]) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match="only root makes it"):
            tree.generate(subvolumes[0], 1)
    finally:
        os.seteuid(0)


# ------------------------------------------------------------------------------------- the mutations

WITHOUT_REMOUNT = [name for name, mutation in tree.MUTATIONS.items() if not mutation.needs_remount]


def test_the_numbers_are_those_of_the_scenarios() -> None:
    assert [mutation.number for mutation in tree.MUTATIONS.values()] == [*range(1, 17), 20]


@pytest.mark.parametrize("name", WITHOUT_REMOUNT)
def test_a_mutation_changes_the_tree_and_in_the_same_way_again(name: str, subvolumes: list[Path]) -> None:
    for path in subvolumes:
        tree.generate(path, 3, "small")
    untouched, one, two = subvolumes
    for path in (one, two):
        assert tree.mutate(path, 8, [name]) == [name]
    assert differences(one, two) == []
    changed = manifest.difference(manifest.read(untouched), manifest.read(one), limit=None)
    # Where only the extents differ and the bytes do not, a file is new at least.
    assert changed


@pytest.mark.parametrize("name", WITHOUT_REMOUNT)
def test_a_mutation_can_be_repeated(name: str, subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    tree.generate(root, 4, "tiny")
    assert tree.mutate(root, 8, [name] * 4) == [name] * 4


def test_all_mutations_in_an_order_from_the_seed_give_the_same_tree(subvolumes: list[Path]) -> None:
    one, two, other = subvolumes
    for path in subvolumes:
        tree.generate(path, 3, "tiny")
    applied = tree.mutate(one, 8)
    assert sorted(applied) == sorted(WITHOUT_REMOUNT)
    assert tree.mutate(two, 8) == applied
    assert differences(one, two) == []
    assert tree.mutate(other, 9) != applied


def test_a_replay_gives_the_same_tree(subvolumes: list[Path]) -> None:
    names = ["inversion", "xattrs", "churn", "holes", "churn"]
    text = tree.format_replay(77, names)
    assert text == "77:1,9,20,10,20"
    replay = tree.parse_replay(text)
    for path in subvolumes[:2]:
        tree.generate(path, replay.seed, "tiny")
        assert tree.mutate(path, replay.seed, replay.names) == names
    assert differences(*subvolumes[:2]) == []


def test_a_mutation_does_the_same_when_one_before_it_is_dropped(subvolumes: list[Path]) -> None:
    """What makes shrinking a list by hand worth while; these two do not touch the same things."""
    one, two, _ = subvolumes
    for path, names in ((one, ["flags", "odd-names"]), (two, ["odd-names"])):
        tree.generate(path, 7, "tiny")
        tree.mutate(path, 7, names)
    lines = manifest.difference(manifest.read(one), manifest.read(two), limit=None)
    assert all(line.startswith("guarded") for line in lines), lines


@pytest.mark.parametrize("text", ["", "7", "x:1", "7:99", "7:no-such", "7:1;2"])
def test_what_is_no_replay_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a replay is|no such mutation"):
        tree.parse_replay(text)


def test_names_stand_for_numbers_in_a_replay() -> None:
    assert tree.parse_replay("7:inversion, 5") == tree.Replay(7, ("inversion", "same-inode-again"))


def test_a_failing_mutation_says_how_to_replay_it(
    subvolumes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: Root, rng: Random) -> None:
        raise OSError(errno.EIO, "broken on purpose")

    from harness.tree import mutations

    broken = tree.Mutation(99, "broken", frozenset(), fail)
    monkeypatch.setattr(mutations, "MUTATIONS", {**tree.MUTATIONS, "broken": broken})
    tree.generate(subvolumes[0], 7, "tiny")
    with pytest.raises(OSError, match="broken on purpose") as failure:
        tree.mutate(subvolumes[0], 7, ["inversion", "broken"])
    assert failure.value.__notes__ == ["broken failed; replay: 7:1,99"]


def test_what_finds_nothing_to_work_on_is_not_called_applied(subvolumes: list[Path]) -> None:
    names = [name for name in WITHOUT_REMOUNT if name not in ("link-fan", "flags", "odd-names")]
    assert tree.mutate(subvolumes[0], 1, names) == []
    assert manifest.read(subvolumes[0]).entries.keys() == {manifest.ROOT}


def test_a_mutation_that_needs_a_remount_is_refused_without_one(subvolumes: list[Path]) -> None:
    with pytest.raises(ValueError, match="same-inode-again: this needs a way to remount"):
        tree.mutate(subvolumes[0], 1, ["inversion", "same-inode-again"])


def test_what_is_made_again_after_a_remount_has_the_same_inode_number(
    subvolumes: list[Path], btrfs: Path
) -> None:
    root = subvolumes[0]
    tree.generate(root, 1, "tiny")
    newest = max(survey_of(root).all, key=lambda item: item.inode)
    before = manifest.read(root).entries[newest.path]
    applied = tree.mutate(root, 1, ["same-inode-again"], remount=lambda: drivers.remount(btrfs))
    assert applied == ["same-inode-again"]
    path = os.fsencode(root) + b"/" + newest.path
    assert os.lstat(path).st_ino == newest.inode
    assert manifest.read(root).entries[newest.path] != before


def test_a_remount_that_did_not_take_place_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is mounted there"):
        drivers.remount(tmp_path)


# ------------------------------------------------------------- what each is for is seen to take place


def test_an_inversion_puts_the_deepest_on_top(subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    (root / "a/b/c").mkdir(parents=True)
    inodes = [(root / path).stat().st_ino for path in ("a", "a/b", "a/b/c")]
    tree.mutate(root, 1, ["inversion"])
    assert [(root / path).stat().st_ino for path in ("c", "c/b", "c/b/a")] == inodes[::-1]


def test_a_rotation_gives_names_to_others(subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    for name in ("a", "b", "c"):
        (root / name).mkdir()
        (root / f"file-{name}").write_text(name)
    before = {path.name: path.stat().st_ino for path in root.iterdir()}
    tree.mutate(root, 1, ["name-rotation"])
    after = {path.name: path.stat().st_ino for path in root.iterdir()}
    assert before.keys() == after.keys()
    assert sorted(before.values()) == sorted(after.values())
    assert all(before[name] != after[name] for name in ("a", "b", "c")) or any(
        (root / name).is_file() for name in ("a", "b", "c")
    )
    assert sum((root / name).is_file() for name in ("a", "b", "c")) == 1


def test_a_file_takes_the_name_of_its_directory(subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    (root / "directory").mkdir()
    (root / "directory" / "file").write_text("inside")
    tree.mutate(root, 1, ["directory-names-taken"])
    assert (root / "directory").read_text() == "inside"


def test_a_chown_after_a_capability_drops_it(subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    (root / "file").write_text("x")
    tree.mutate(root, 1, ["changed-and-moved"])
    has_capability = [
        "security.capability" in os.listxattr(root / "changed" / f"program-{number}") for number in range(3)
    ]
    assert has_capability == [False, True, True]


def test_the_flags_are_in_force(subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    tree.mutate(root, 1, ["flags"])
    guarded = root / "guarded"
    with pytest.raises(PermissionError):
        (guarded / "immutable").write_text("no")
    with pytest.raises(PermissionError):
        (guarded / "append-only").write_text("no")
    with (guarded / "append-only").open("a") as file:
        file.write("yes")
    with (guarded / "nocow" / "file").open() as file:
        assert ioctls.inode_flags(file.fileno()) & ioctls.NO_COW


def test_an_active_swap_file_makes_the_snapshot_fail_and_an_inactive_one_does_not(
    subvolumes: list[Path], btrfs: Path
) -> None:
    root = subvolumes[0]
    tree.mutate(root, 1, ["flags"])
    os.sync()
    with drivers.active_swap(root / "guarded" / "swap"):
        with pytest.raises(OSError, match="Text file busy"):
            snapshot(root, "no-snapshot")
    made = snapshot(root, f"{root.name}-snapshot")
    command.run(["btrfs", "subvolume", "delete", made])


def test_a_nested_subvolume_takes_the_place_of_a_directory_and_gives_it_back(subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    (root / "directory").mkdir()
    (root / "directory" / "file").write_text("kept")
    tree.mutate(root, 1, ["nested-subvolume"])
    assert (root / "directory").stat().st_ino == 256
    assert set(manifest.read(root).left_out) == {b"directory", b"nested"}
    tree.mutate(root, 2, ["nested-subvolume"])
    assert (root / "directory.replaced-by-a-subvolume" / "file").read_text() == "kept"


def test_deduped_files_share_their_extents(subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    data = bytes(Content(1).noise(Random(1), 400_000))
    (root / "one").write_bytes(data)
    os.sync()
    assert shared_bytes(root / "one") == 0
    tree.mutate(root, 1, ["dedupe"])
    assert shared_bytes(root / "one") > 390_000
    assert (root / "duplicate").read_bytes() == data


def test_files_are_deduped_against_a_snapshot(subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    data = bytes(Content(1).noise(Random(1), 400_000))
    (root / "one").write_bytes(data)
    (root / "changed").write_bytes(data)
    past = snapshot(root, f"{root.name}-past")
    try:
        (root / "one").unlink()
        (root / "one").write_bytes(data)
        (root / "changed").write_bytes(data[:-1] + b"x")
        assert drivers.dedupe_against(root, past) == 1
        assert shared_bytes(root / "one") > 390_000
    finally:
        command.run(["btrfs", "subvolume", "delete", past])


# --------------------------------------------------------------------------------------- the drivers


def test_live_writers_write_while_the_body_runs(subvolumes: list[Path]) -> None:
    root = subvolumes[0]
    with drivers.live_writers(root, 1) as writers:
        first = manifest_of_snapshot(root, "first")
        writers.wait_for_rounds(5)
        second = manifest_of_snapshot(root, "second")
    assert first != second
    # Neither the unlinked file nor the unnamed one has a name.
    assert {path for path in second.entries if path.startswith(b"live/")} <= {
        b"live/mapped", b"live/replaced", b"live/.aside", *(b"live/log-%d" % number for number in range(4)),
    }  # fmt: skip


def manifest_of_snapshot(root: Path, name: str) -> manifest.Manifest:
    made = snapshot(root, f"{root.name}-{name}")
    try:
        return manifest.read(made)
    finally:
        command.run(["btrfs", "subvolume", "delete", made])


def test_what_goes_on_meanwhile_reports_its_error_on_leaving() -> None:
    rounds = iter(range(1000))

    def fail_later() -> None:
        if next(rounds) == 3:
            raise OSError(errno.EIO, "in the background")

    with pytest.raises(OSError, match="in the background"):
        with drivers.Meanwhile({"fails": fail_later}) as meanwhile:
            meanwhile.wait_for_rounds(10)


def test_what_fails_at_once_meanwhile_lets_nothing_begin() -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "at once")

    with pytest.raises(OSError, match="at once"):
        with drivers.Meanwhile({"works": lambda: None, "fails": fail}):
            pytest.fail("the body ran although an action failed")


def test_a_relay_goes_round_and_comes_back() -> None:
    hops = list(drivers.relay(["A", "B", "C"], 8, seed=1))
    assert [(hop.source, hop.target) for hop in hops[:3]] == [("A", "B"), ("B", "C"), ("C", "A")]
    assert hops[2].is_changed
    assert all(one.target == two.source for one, two in pairwise(hops))
    assert hops == list(drivers.relay(["A", "B", "C"], 8, seed=1))


def test_a_soak_is_replayed_by_its_seed(subvolumes: list[Path]) -> None:
    said = []
    for path in subvolumes[:2]:
        tree.generate(path, 1, "tiny")
        said.append(drivers.soak(path, 1, lambda *_: None, steps=3))
    assert said[0] == said[1]
    assert differences(*subvolumes[:2]) == []


def test_a_failing_soak_says_what_was_done(subvolumes: list[Path]) -> None:
    tree.generate(subvolumes[0], 1, "tiny")

    def fail(step: int, applied: list[str]) -> None:
        assert step < 2, "on purpose"

    with pytest.raises(AssertionError, match="on purpose") as failure:
        drivers.soak(subvolumes[0], 1, fail, steps=3)
    note = failure.value.__notes__[-1]
    assert note.startswith("step 2 of the soak with seed 1; steps so far: ")
    steps = note.rpartition("far: ")[2].split()
    assert [
        tree.format_replay(replay.seed, replay.names) for replay in map(tree.parse_replay, steps)
    ] == steps
    assert len(steps) == 2


def test_a_messed_up_stream_is_shorter_or_differs_in_one_bit() -> None:
    stream = bytes(range(256)) * 10
    seen = set()
    for seed in range(20):
        messed, what = drivers.mess_up(stream, Random(seed))
        assert messed != stream
        seen.add(what.split()[0])
        if len(messed) == len(stream):
            changed = [a ^ b for a, b in zip(messed, stream, strict=True) if a != b]
            assert len(changed) == 1 and changed[0].bit_count() == 1
        else:
            assert stream.startswith(messed)
    assert seen == {"cut", "one"}


# ---------------------------------------------------------------------------------- the command line


def test_the_command_line_generates_mutates_and_compares(
    subvolumes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, _ = map(str, subvolumes)
    assert main(["generate", one, "--seed", "7", "--size", "tiny"]) == 0
    assert main(["mutate", "--seed", "7", one, "20", "inversion"]) == 0
    assert capsys.readouterr().out == "7:20,1\n"
    assert main(["replay", two, "7:20,1", "--size", "tiny"]) == 0
    assert capsys.readouterr().out == "1 churn\n2 inversion\n"
    assert main(["manifest", one]) == 0
    (tmp_path / "written").write_text(capsys.readouterr().out)
    assert main(["diff", str(tmp_path / "written"), two]) == 0
    assert capsys.readouterr().out.startswith("equal: ")
    (subvolumes[1] / "more").write_text("x")
    assert main(["diff", one, two]) == 1
    assert "more: only in b (file)" in capsys.readouterr().out


def test_the_command_line_snapshots_each_step_of_a_replay(subvolumes: list[Path], btrfs: Path) -> None:
    place = btrfs / f"{subvolumes[0].name}-steps"
    place.mkdir()
    arguments = ["replay", str(subvolumes[0]), "7:1,20", "--size", "tiny", "--snapshots", str(place)]
    assert main(arguments) == 0
    made = sorted(place.iterdir())
    assert [path.name for path in made] == ["000", "001", "002"]
    assert differences(made[2], subvolumes[0]) == []
    assert differences(made[0], made[1])
    for path in made:
        command.run(["btrfs", "subvolume", "delete", path])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "/proc"], "on btrfs only"),
        (["generate", "/no/such/place"], "No such file"),
        (["mutate", "/proc", "no-such"], "no such mutation"),
    ],
)
def test_the_command_line_says_in_one_line_what_cannot_be_done(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
