"""Two releases mirror to each other; the page tells of all of them."""

from __future__ import annotations

import itertools

from tests.vmimages import version_pairs
from vmimages.build import build_image


def test_the_oldest_and_the_newest_release_mirror_to_each_other() -> None:
    names = (version_pairs.IMAGES[0], version_pairs.IMAGES[-1])
    seen = version_pairs.try_both(*(build_image(name, backends=["uml"]) for name in names))
    assert [(one.sender.image, one.receiver.image) for one in seen] == [names, names[::-1]]
    assert seen[0].sender.kernel != seen[0].receiver.kernel
    assert seen[0].sender.progs != seen[0].receiver.progs


def test_the_page_tells_of_every_pair_in_both_directions() -> None:
    page = version_pairs.PAGE.read_text()
    assert page.startswith(version_pairs.HEAD)
    rows = [
        tuple(cell.strip() for cell in line.split("|")[1:3]) for line in page.splitlines() if "equal" in line
    ]
    told = [row for row in rows if row[0] in version_pairs.IMAGES]
    assert sorted(told) == sorted(itertools.permutations(version_pairs.IMAGES, 2))
