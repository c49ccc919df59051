"""The figures that are promised: what each row measures, and the ratio that it must not exceed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One promised figure: what is measured, in words for docs/performance.md, and its target."""

    text: str
    target: float


FIGURES = {
    "full-mixed": Figure("full sync of a mixed tree, 52,000 files, 1 GiB: btrsync / raw pipe", 1.05),
    "many-small-files": Figure("full sync of 50,000 small files: btrsync / raw pipe", 1.10),
    "one-large-file": Figure("full sync of one file of 2 GiB: btrsync / raw pipe", 1.03),
    "lzo-defaults": Figure("full sync of an lzo tree, each by its defaults: btrsync / btrbk", 0.7),
    "lzo-defaults-200mbit": Figure("the same over a line of 200 Mbit/s: btrsync / btrbk", 0.65),
    "small-change-btrbk": Figure("one small change: btrsync / btrbk", 0.35),
    "small-change-rsync": Figure("one small change in 50,000 files: btrsync / rsync", 0.5),
    "nothing-changed": Figure("nothing changed: btrsync / btrbk", 0.35),
    "resume-half": Figure("cut at half, over 100 Mbit/s: time for the rest / time for all", 0.6),
    "checkpointing": Figure("full sync of the mixed tree: a checkpoint every 256 MiB / none", 1.05),
    "cpu-per-gib": Figure("CPU seconds of btrsync's own processes, both ends, per GiB moved", 1.0),
}
