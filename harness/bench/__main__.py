"""`python -m harness.bench`: measure the chosen rows, end with one line of JSON; or write their page."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

from harness import containment
from harness.bench import machine, page
from harness.bench.figures import FIGURES
from harness.bench.rows import ROWS, SMALL_ROWS
from harness.bench.stage import Stage

ALL = "all"


def options_of(argv: list[str]) -> argparse.Namespace:
    """Read the command line; ends with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m harness.bench", description=__doc__)
    parser.add_argument(
        "--rows",
        default=",".join(SMALL_ROWS),
        help=f"of {', '.join(ROWS)}; {ALL}: each promised figure (about 25 minutes); default: %(default)s",
    )
    parser.add_argument("--pairs", type=int, default=5, help="measured pairs of each row (default: 5)")
    parser.add_argument(
        "--scale", type=float, default=1, help="of what is mirrored, 0.05 to try the rows; not judged then"
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too, after each row")
    parser.add_argument("--page", type=Path, metavar="PAGE", help="write the figures into this page instead")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="result", help="of this JSON, with --page")
    chosen = parser.parse_args(argv)
    if bool(chosen.page) != bool(chosen.result):
        parser.error("--page and --from belong together")
    # In the order of ROWS, in which neighbours share what was prepared.
    wanted = list(FIGURES) if chosen.rows == ALL else [name for name in chosen.rows.split(",") if name]
    unknown = [name for name in wanted if name not in ROWS]
    chosen.names = [name for name in ROWS if name in wanted]
    if unknown or not wanted or chosen.pairs < 1 or not 0 < chosen.scale <= 1:
        parser.error(f"rows are of {', '.join(ROWS)}, pairs at least 1, scale at most 1; not {unknown}")
    return chosen


def measure(chosen: argparse.Namespace) -> int:
    """Measure, print a line for each row, then the JSON; 1 if a target was missed or a row failed."""
    result: dict[str, object] = {"scale": chosen.scale, "machine": machine.facts()}
    rows, failed, seconds = [], {}, {}
    with Stage(chosen.pairs, chosen.scale) as stage:
        for name in chosen.names:
            began = time.monotonic()
            try:
                row = ROWS[name](stage)
                if chosen.scale != 1:
                    row = replace(row, target=None)
                rows.append(row.as_json())
                words = str(row)
            except Exception as error:  # noqa: BLE001 - the other rows take minutes: they shall count
                # The hosts may be in any state.
                stage.clear()
                traceback.print_exception(error)
                failed[name] = str(error)
                words = f"{name}: FAILED: {error}"
            seconds[name] = round(time.monotonic() - began, 1)
            if not chosen.json:
                print(f"{words} ({seconds[name]:.0f} s)", flush=True)
            result |= {"rows": rows, "failed": failed, "seconds": seconds}
            if chosen.out:
                chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 1 if failed or not all(row["ok"] for row in rows) else 0


def main() -> int:
    """Do what the command line says."""
    chosen = options_of(sys.argv[1:])
    if chosen.page:
        text = page.written(chosen.page.read_text(), json.loads(chosen.result.read_text()))
        chosen.page.write_text(text)
        return 0
    if not containment.is_contained():
        return containment.run([sys.executable, "-m", "harness.bench", *sys.argv[1:]])
    return measure(chosen)


if __name__ == "__main__":
    raise SystemExit(main())
