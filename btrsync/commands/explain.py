"""The words of `btrsync sync --explain`: what would be sent from which send parent, and all the evidence."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import msgspec

from btrsync.report import format_pair
from btrsync.survey import Unseen, explanations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from btrsync.config import ClientConfig
    from btrsync.plan.explain import Candidate, Explanation, HereEvidence, ThereEvidence

VERDICTS = {
    "send_parent": "SEND PARENT",
    "clone_source": "CLONE SOURCE",
    "latest_common": "LATEST ON BOTH SIDES",
    "not_needed": "not needed",
    "unfit": "UNFIT",
    "source_only": "only here",
    "target_only": "only there",
}


def explain(
    config: ClientConfig,
    jobs: tuple[str, ...],
    targets: tuple[str, ...],
    *,
    is_full: bool,
    is_forced: bool,
    as_json: bool,
) -> int:
    """Show what a run would do and why, and return the exit status: 1 where it would not be done."""
    found = explanations(config, jobs, targets, is_full=is_full, is_forced=is_forced)
    if as_json:
        told = [_unseen(one) if isinstance(one, Unseen) else msgspec.to_builtins(one) for one in found]
        click.echo(msgspec.json.encode({"explanations": told}))
    else:
        _show(found)
    return 1 if any(isinstance(one, Unseen) or one.decision == "conflict" for one in found) else 0


def _show(found: Sequence[Explanation | Unseen]) -> None:
    is_first = True
    for one in found:
        if isinstance(one, Unseen):
            words = " ".join(str(one.error).split())
            print(f"btrsync: {format_pair(one.job, one.target)}: {words}", file=sys.stderr)
            continue
        if not is_first:
            click.echo()
        click.echo("\n".join(format_explanation(one)))
        is_first = False


def _unseen(one: Unseen) -> dict[str, str]:
    return {"job": one.job, "target": one.target, "decision": "failed", "why": str(one.error)}


def format_explanation(one: Explanation) -> Iterator[str]:
    """Return the lines for one job at one target: the decision, then each candidate, the nearest first."""
    how = {
        "nothing_changed": "nothing to send",
        "incremental": f"incremental from {one.send_parent}",
        "full": "full",
        "conflict": "CONFLICT",
    }[one.decision]
    yield f"{format_pair(one.job, one.target)}: {how}"
    yield f"  {one.why}"
    if one.goes_on_from_bytes is not None:
        yield f"  from byte {one.goes_on_from_bytes} of its stream, if that is made the same as before"
    for why in one.unused_partials:
        yield f"  a cut transfer does not go on: {why}"
    if one.clone_sources:
        yield f"  clone sources: {', '.join(one.clone_sources)}"
    if one.remedy:
        yield f"  hint: {one.remedy}"
    for candidate in one.candidates:
        yield from _format_candidate(candidate, one.target)


def _format_candidate(candidate: Candidate, target: str) -> Iterator[str]:
    here, there = candidate.here, candidate.there
    name = here.name if here else there.name if there else ""
    yield ""
    yield f"  {name}: {VERDICTS[candidate.verdict]}: {candidate.why}"
    if here:
        yield f"    here:  {_format_here(here)}"
    if there:
        yield f"    {target}: {_format_there(there)}"


def _format_here(here: HereEvidence) -> str:
    received = f", received UUID {here.announced_uuid}" if here.announced_uuid != here.uuid else ""
    relation = {
        "own": "a snapshot of the subvolume",
        "ancestor": "an ancestor: a state it has been through",
        "relative": "a relative: not known to be an ancestor",
    }[here.relation]
    edited = f", edited up to {here.ctransid}" if here.was_edited else ""
    return f"UUID {here.uuid}{received}; {relation}, made in transaction {here.otransid}{edited}"


def _format_there(there: ThereEvidence) -> str:
    words = [f"UUID {there.uuid}", f"received UUID {there.received_uuid or '-'}"]
    if there.received_uuid:
        words.append(f"carried by {there.copies}")
    words += ["read-only" if there.is_readonly else "WRITABLE", f"generation {there.generation}"]
    words += ["EDITED"] if there.was_edited else []
    return f"{there.name}; {', '.join(words)}"
