"""`python -m harness.bench`: measure the chosen rows and end with one line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys

from harness import containment
from harness.bench.rows import ROWS, SMALL_ROWS


def main() -> int:
    """Measure, print a line for each row, then the JSON; 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m harness.bench", description=__doc__)
    parser.add_argument(
        "--rows", default=",".join(SMALL_ROWS), help=f"of {', '.join(ROWS)}; default: %(default)s"
    )
    parser.add_argument("--pairs", type=int, default=5, help="measured pairs of each row (default: 5)")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON")
    chosen = parser.parse_args()
    names = [name for name in chosen.rows.split(",") if name]
    unknown = [name for name in names if name not in ROWS]
    if unknown or not names or chosen.pairs < 1:
        parser.error(f"rows are of {', '.join(ROWS)}, pairs at least 1; not {', '.join(unknown) or 'none'}")
    rows = []
    for name in names:
        row = ROWS[name](chosen.pairs)
        rows.append(row)
        if not chosen.json:
            against = (
                f" against {row.theirs:.3f} {row.unit} of {row.baseline}" if row.theirs is not None else ""
            )
            target = f"; target {row.target}" if row.target is not None else ""
            print(f"{name}: {row.ours:.3f} {row.unit}{against}: {row.ratio:.3f}{target}", flush=True)
    machine = {"kernel": platform.release(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"rows": [row.as_json() for row in rows], "machine": machine}))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    if containment.is_contained():
        raise SystemExit(main())
    raise SystemExit(containment.run([sys.executable, "-m", "harness.bench", *sys.argv[1:]]))
