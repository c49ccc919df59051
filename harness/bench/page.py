"""The figures of docs/performance.md: written between two marks, from the JSON of one run."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from harness.bench.figures import FIGURES

if TYPE_CHECKING:
    from collections.abc import Mapping

BEGIN = "<!-- figures: written by python -m harness.bench --page -->"
END = "<!-- end of the figures -->"


class PageError(ValueError):
    """A result that the page cannot show, or a page without the marks."""


def written(page: str, result: Mapping[str, Any]) -> str:
    """Return the text of the page with the figures of `result`, a document as `--out` writes it.

    Raises PageError for a page without the two marks, and for a run at another scale than 1.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise PageError(f"the page needs the two lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{format_figures(result)}\n{END}{after}"


def format_figures(result: Mapping[str, Any]) -> str:
    """Return the tables: the promised figures, what they were measured on, and the samples."""
    if result["scale"] != 1:
        raise PageError(f"measured at scale {result['scale']}: only whole rows count")
    rows = {row["name"]: row for row in result["rows"]}
    lines = ["| name | row | target | figure | |", "|---|---|---|---|---|"]
    lines += [_format_figure(name, rows.get(name)) for name in FIGURES]
    lines += ["", _format_machine(result["machine"]), "", "### Medians", ""]
    lines += ["| name | btrsync | baseline | the ratio, pair by pair |", "|---|---|---|---|"]
    lines += [_format_medians(rows[name]) for name in FIGURES if name in rows]
    lines += ["", "Each against:", ""]
    lines += [f"- `{name}`: `{rows[name]['baseline']}`" for name in FIGURES if _has_baseline(rows.get(name))]
    details = [line for name in FIGURES if name in rows for line in _format_details(rows[name])]
    if details:
        lines += ["", "### Beside them", "", "| name | what | median |", "|---|---|---|", *details]
    return "\n".join([*lines, ""])


def missed(page: str) -> list[str]:
    """Return the names of the rows that the figures of a page call missed."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    return [line.split("`")[1] for line in lines if line.endswith("| **missed** |")]


def _format_figure(name: str, row: Mapping[str, Any] | None) -> str:
    figure = FIGURES[name]
    if row is None:
        seen, verdict = "", "not measured"
    else:
        seen, verdict = f"{row['ratio']:.2f}", "met" if row["ratio"] <= figure.target else "**missed**"
    return f"| `{name}` | {figure.text} | ≤ {figure.target:g} | {seen} | {verdict} |"


def _format_machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    aes = "with" if machine["has_aes"] else "without"
    return (
        f"Measured on {machine['time'][:10]} at commit {machine['commit']}: {machine['cores']} cores of "
        f"{machine['processor']} ({aes} AES),\n{machine['memory_gib']:g} GiB of memory, kernel "
        f"{machine['kernel']}, Python {machine['python']}, {versions}."
    )


def _has_baseline(row: Mapping[str, Any] | None) -> bool:
    return row is not None and row["theirs"] is not None


def _format_medians(row: Mapping[str, Any]) -> str:
    unit = row["unit"]
    ours = f"{row['ours']:.2f} {unit}"
    if row["theirs"] is None:
        ratios = ", ".join(f"{mine:.2f}" for mine, _ in row["pairs"])
        return f"| `{row['name']}` | {ours} | | {ratios} |"
    ratios = ", ".join(f"{mine / other:.2f}" for mine, other in row["pairs"])
    return f"| `{row['name']}` | {ours} | {row['theirs']:.2f} {unit} | {ratios} |"


def _format_details(row: Mapping[str, Any]) -> list[str]:
    medians = {what: statistics.median(samples) for what, samples in row["details"].items() if samples}
    return [f"| `{row['name']}` | {what} | {median:.2f} |" for what, median in medians.items()]
