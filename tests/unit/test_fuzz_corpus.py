"""The kept inputs of the fuzzer, tried without it; and that its oracles see a fault."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from btrsync.stream.inspector import Inspector
from btrsync.stream.prefix import Prefix
from btrsync.stream.totals import TotalsCounter
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
MAX_CORPUS_BYTES = 500_000


def inputs(target: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((CORPUS / target).iterdir())}


@pytest.mark.parametrize("target", TARGETS)
def test_no_kept_input_finds_a_fault(target: str) -> None:
    assert inputs(target)
    for name, data in inputs(target).items():
        try:
            TARGETS[target](data)
        except Exception as error:
            error.add_note(f"input {target}/{name}")
            raise


def test_the_corpus_is_small_and_of_targets_that_there_are() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(len(data) for target in TARGETS for data in inputs(target).values()) < MAX_CORPUS_BYTES


def faults_found(target: str) -> list[str]:
    found = []
    for name, data in inputs(target).items():
        try:
            TARGETS[target](data)
        except AssertionError:
            found.append(name)
    return found


PLANTED: dict[str, tuple[str, type, str, Callable[..., object]]] = {
    "links are not followed": ("inspector", Inspector, "_check_doors", lambda *_: None),
    "paths may lead anywhere": ("inspector", Inspector, "_check_path", lambda *_: None),
    "sizes are not limited": ("inspector", Inspector, "_count", lambda *_: None),
    "END ends nothing": ("inspector", Inspector, "_turn", lambda *_: None),
    "a proof proves anything": ("prefix", Prefix, "_prove", lambda _, offset_bytes: offset_bytes + 1),
    "data is not counted": ("totals", TotalsCounter, "_follow", lambda *_: None),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_fault_is_found_by_the_kept_inputs(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, subject, method, instead = PLANTED[what]
    assert faults_found(target) == []
    monkeypatch.setattr(subject, method, instead)
    assert faults_found(target)
