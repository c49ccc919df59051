"""Which jobs are served at which targets in one run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from btrsync.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

    from btrsync.config import ClientConfig


class Pair(NamedTuple):
    """A job at one of its targets."""

    job: str
    target: str


def choose_pairs(config: ClientConfig, jobs: tuple[str, ...], targets: tuple[str, ...]) -> list[Pair]:
    """Return the pairs of job and target that are asked for, in the configuration's order."""
    problems = [
        f"there is no job {name!r}; it has {', '.join(config.jobs)}"
        for name in jobs
        if name not in config.jobs
    ]
    problems += [
        f"there is no target {name!r}; it has {', '.join(config.targets)}"
        for name in targets
        if name not in config.targets
    ]
    if problems:
        raise ConfigError(config.file, problems)
    pairs = [
        Pair(name, target)
        for name, job in config.jobs.items()
        if not jobs or name in jobs
        for target in job.targets
        if not targets or target in targets
    ]
    if not pairs:
        raise ConfigError(config.file, [f"no chosen job has {', '.join(targets)} among its targets"])
    return pairs


def sessions_at(config: ClientConfig, pairs: Collection[Pair]) -> dict[str, int]:
    """Return how many jobs may be at each target at once: as many as `parallel` says, and as there are."""
    jobs = Counter(pair.target for pair in pairs)
    return {target: min(config.targets[target].parallel, count) for target, count in jobs.items()}
