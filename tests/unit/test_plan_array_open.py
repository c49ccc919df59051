"""What the members of an array may show, and the one verdict on it."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.plan.array_open import MemberView, Verdict, judge, judge_degraded, mount_options
from btrsync.plan.superblock import FREE_SPACE_TREE, Superblock

if TYPE_CHECKING:
    from btrsync.plan.superblock import Absence

OURS = UUID("7ebc7d8d-35c6-4d98-8457-3323c242e9fe")
THEIRS = UUID("11111111-2222-4333-8444-555555555555")


def member(
    devid: int, *, of: UUID = OURS, generation: int = 100, members: int = 4, flags: int = 0
) -> Superblock:
    return Superblock(
        fsid=of,
        metadata_uuid=of,
        generation=generation,
        num_devices=members,
        devid=devid,
        device_uuid=UUID(int=devid),
        device_bytes=1 << 40,
        total_bytes=members << 40,
        label="MirrorBtr" if of == OURS else "",
        nodesize=16384,
        csum_type="crc32c",
        compat_ro_flags=flags,
        incompat_flags=0,
    )


def views(*shows: Superblock | Absence | None) -> list[MemberView]:
    return [MemberView(f"disk-{number}", one) for number, one in enumerate(shows, 1)]


def verdict(*shows: Superblock | Absence | None, uuid: UUID | None = OURS) -> Verdict:
    found = judge(views(*shows), uuid)
    assert (found.remedy is None) == found.is_whole
    return found


ALL = [member(1), member(2), member(3), member(4)]


def test_a_complete_set_of_one_generation_is_whole() -> None:
    found = verdict(*ALL)
    assert found.is_whole
    assert found.sentence == "all 4 members, generation 100"
    assert found.usable == ("disk-1", "disk-2", "disk-3", "disk-4")
    assert (found.notes, found.needs_scrub) == ((), False)


def test_one_disk_is_an_array_too() -> None:
    assert verdict(member(1, members=1)).sentence == "its one member, generation 100"


def test_another_order_is_harmless_and_told() -> None:
    found = verdict(member(3), member(1), member(4), member(2))
    assert found.is_whole
    assert "another order than in the array (devid 3, 1, 4, 2): harmless" in found.notes[0]


def test_numbers_with_gaps_are_no_matter() -> None:
    found = verdict(member(2, members=2), member(7, members=2))
    assert found.is_whole and found.notes == ()


@pytest.mark.parametrize("noise", ["no_magic", "too_short"])
def test_noise_everywhere_is_the_key_and_noise_somewhere_the_disk(noise: Absence) -> None:
    everywhere = verdict(noise, noise, noise, noise)
    assert everywhere.kind == "wrong_key"
    assert "never mkfs" in (everywhere.remedy or "")
    assert verdict(noise, noise, None, noise).kind == "wrong_key"
    somewhere = verdict(ALL[0], noise, ALL[2], ALL[3])
    assert (somewhere.kind, somewhere.culprits) == ("wrong_disk", ("disk-2",))
    assert "disk-2 and disk-4" in verdict(ALL[0], noise, ALL[2], noise).sentence


def test_a_disk_that_is_no_member_is_left_out_and_told_as_that() -> None:
    # btrfs device remove takes the magic away; and a disk that is about to be added shows none yet.
    found = verdict(member(1, members=2), member(2, members=2), "no_magic")
    assert found.is_whole
    assert found.usable == ("disk-1", "disk-2")
    assert "disk-3 left out: no btrfs there, and the filesystem is complete without" in found.notes[0]
    gone = verdict(member(1, members=2), member(2, members=2), None)
    assert gone.is_whole
    assert "disk-3 not there, and the filesystem is complete without" in gone.notes[0]


def test_a_damaged_superblock_is_no_wrong_key() -> None:
    found = verdict(ALL[0], "damaged", ALL[2], ALL[3])
    assert (found.kind, found.culprits) == ("damaged", ("disk-2",))
    assert verdict("damaged", "damaged", "damaged", "damaged").kind == "damaged"


def test_another_filesystem_is_foreign_wholly_or_by_a_disk() -> None:
    strangers = [member(number, of=THEIRS) for number in (1, 2, 3, 4)]
    wholly = verdict(*strangers)
    assert wholly.kind == "foreign"
    assert f"not {OURS}" in wholly.sentence and str(THEIRS) in wholly.sentence
    one = verdict(*ALL[:3], strangers[3])
    assert (one.kind, one.culprits) == ("foreign", ("disk-4",))


def test_without_a_configured_uuid_the_found_one_is_told_and_nothing_is_mounted() -> None:
    found = verdict(*ALL, uuid=None)
    assert found.kind == "unnamed"
    assert f'uuid = "{OURS}"' in (found.remedy or "")
    assert verdict(*ALL[:3], member(4, of=THEIRS), uuid=None).kind == "foreign"


def test_a_member_that_is_there_twice_is_a_copy() -> None:
    found = verdict(ALL[0], ALL[0], ALL[2], ALL[3])
    assert (found.kind, found.culprits) == ("doubled", ("disk-1", "disk-2"))


def test_a_missing_disk_is_told_and_what_is_left_is_usable() -> None:
    found = verdict(ALL[0], None, ALL[2], ALL[3])
    assert (found.kind, found.culprits, found.missing) == ("missing", ("disk-2",), 1)
    assert found.usable == ("disk-1", "disk-3", "disk-4")
    assert found.sentence == "1 of 4 members missing: disk-2 not there"


def test_a_disk_that_the_configuration_does_not_name_is_missing() -> None:
    found = verdict(*ALL[:3])
    assert (found.kind, found.missing) == ("missing", 1)
    assert "members names no more disks" in found.sentence


def test_no_disk_at_all_is_no_degraded_array() -> None:
    found = verdict(None, None)
    assert (found.kind, found.usable) == ("missing", ())
    assert judge_degraded(views(None, None), OURS).usable == ()


@pytest.mark.parametrize("behind", range(6))
def test_one_generation_behind_is_a_power_cut_and_more_is_a_stale_disk(behind: int) -> None:
    found = verdict(*ALL[:3], member(4, generation=100 - behind))
    if behind <= 1:
        assert found.is_whole
        assert found.needs_scrub == (behind == 1)
        return
    assert (found.kind, found.culprits) == ("stale", ("disk-4",))
    assert found.sentence.startswith(f"disk-4 is {behind} generations behind")
    accepted = judge(views(*ALL[:3], member(4, generation=100 - behind)), OURS, accepts_stale=True)
    assert accepted.is_whole and accepted.needs_scrub
    assert "scrub the array before anything else" in accepted.notes[0]


def test_the_size_of_the_set_is_what_its_newest_member_says() -> None:
    # A disk was removed while the stale one was away.
    found = judge_degraded(views(member(1, members=1), member(2, members=2, generation=50)), OURS)
    assert found.is_whole and found.usable == ("disk-1",)


def test_the_target_of_a_replacement_is_in_nobodys_count() -> None:
    found = verdict(*ALL, member(0))
    assert found.is_whole
    assert "a replacement of a disk has not ended" in " ".join(found.notes)
    assert verdict(*ALL[:3], member(0)).kind == "missing"


@pytest.mark.parametrize(
    "bad", ["no_magic", "damaged", None, member(2, of=THEIRS), member(2, generation=50)], ids=repr
)
def test_degraded_is_what_is_left_without_the_bad_disk(bad: Superblock | Absence | None) -> None:
    found = judge_degraded(views(ALL[0], bad, ALL[2], ALL[3]), OURS)
    assert (found.kind, found.usable, found.missing) == ("missing", ("disk-1", "disk-3", "disk-4"), 1)


@pytest.mark.parametrize(
    ("shows", "kind"),
    [
        (["no_magic"] * 4, "wrong_key"),
        ([member(number, of=THEIRS) for number in (1, 2)], "foreign"),
        ([ALL[0], ALL[0], ALL[2]], "doubled"),
    ],
)
def test_degraded_forgives_no_wrong_key_no_other_array_and_no_copy(
    shows: list[Superblock | Absence | None], kind: str
) -> None:
    found = judge_degraded(views(*shows), OURS)
    assert (found.kind, found.usable) == (kind, ())


def everything() -> list[Superblock | Absence | None]:
    """Each thing that a disk may show, for every member of three."""
    blocks = [
        member(devid, of=of, generation=generation, members=3)
        for devid, of, generation in product((1, 2, 3), (OURS, THEIRS), (100, 99, 90))
    ]
    return [*blocks, "no_magic", "damaged", "too_short", None]


@given(shows=st.lists(st.sampled_from(everything()), min_size=1, max_size=4))
def test_what_is_mounted_is_complete_ours_unique_and_of_one_time(
    shows: list[Superblock | Absence | None],
) -> None:
    for is_degraded, found in (
        (False, judge(views(*shows), OURS)),
        (True, judge_degraded(views(*shows), OURS)),
    ):
        if found.kind not in ("whole", "missing") or (found.kind == "missing" and not is_degraded):
            assert found.remedy
            continue
        used = [one for view, one in zip(views(*shows), shows, strict=True) if view.device in found.usable]
        blocks = [one for one in used if isinstance(one, Superblock)]
        assert len(blocks) == len(used)
        assert {block.fsid for block in blocks} <= {OURS}
        assert len({block.devid for block in blocks}) == len(blocks)
        assert (
            max((block.generation for block in blocks), default=0)
            - min((block.generation for block in blocks), default=0)
            <= 1
        )
        if found.is_whole:
            assert {block.devid for block in blocks} == {1, 2, 3}


@given(
    order=st.permutations(range(4)), generations=st.lists(st.sampled_from([99, 100]), min_size=4, max_size=4)
)
def test_a_whole_array_is_whole_in_any_order(order: list[int], generations: list[int]) -> None:
    shows = [member(place + 1, generation=generations[place]) for place in order]
    assert verdict(*shows).is_whole


# Options.

TREE = member(1, flags=FREE_SPACE_TREE)
ORIGINAL = "noauto,noatime,autodefrag,compress-force=lzo,space_cache,subvol=mirror"


def test_the_originals_options_lose_the_first_space_cache_where_there_is_a_tree() -> None:
    options, notes = mount_options(ORIGINAL, TREE)
    assert ",".join(options) == ORIGINAL.replace("space_cache,", "")
    assert len(notes) == 1 and notes[0].startswith("space_cache was left out")


@pytest.mark.parametrize("word", ["space_cache=v2", "clear_cache"])
def test_other_words_about_the_cache_are_kept(word: str) -> None:
    assert mount_options(word, TREE) == ((word,), ())


def test_an_old_filesystem_keeps_its_options() -> None:
    assert mount_options(ORIGINAL, member(1)) == (tuple(ORIGINAL.split(",")), ())


def test_no_options_are_none() -> None:
    assert mount_options("", TREE) == ((), ())
