"""Guests for the tests of machines: one image, and one machine that tests may share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmimages.build import build_image
from vmimages.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmimages.image import BackendName, Image


@pytest.fixture(scope="session")
def image() -> Image:
    """The image whose kernel boots fastest."""
    return build_image("trixie", backends=["uml"])


@pytest.fixture(scope="module")
def backend() -> BackendName:
    """What the machine is made of; a module that tries both has a fixture of this name of its own."""
    return "uml"


@pytest.fixture(scope="module")
def machine(image: Image, backend: BackendName) -> Iterator[Machine]:
    """A machine that is up; who takes its power starts it again."""
    with Machine(image, backend=backend, disks=[256 << 20]) as one:
        one.start()
        yield one
