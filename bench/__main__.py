"""Runs every benchmark, each in a process of its own, and says which targets are met: `make bench`.

`--quick` takes minutes and shows that they work, all but `peers`, `scale`, `stages` and `scaling` where none is named.
`--keep` writes the tables into bench/README.md, docs/capacity.md and docs/operations.md, and the figures and plots into
bench/results.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from bench.report import Report, markdown
from headrace.cli.console import out

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PLACES = {"capacity": DOCS / "capacity.md", "scaling": DOCS / "operations.md"}
"""Of the tables that don't stand in the README here."""
NOT_QUICK = {"peers", "scale", "stages", "scaling"}
"""They take their time however little they measure: environments to install, workers to start one after the other."""
NAMES = ("ingest", "limit", "peers", "freshness", "query", "scale", "stages", "scaling", "gpu", "capacity")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all of them if none is named: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="minutes, to see that they work; quote nothing of it")
    parser.add_argument("--keep", action="store_true", help="write the tables into the documents, and bench/results")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if options.keep and options.quick:
        parser.error("figures of a quick run are not kept")
    names = options.names or [name for name in NAMES if not (options.quick and name in NOT_QUICK)]
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        folder = HERE / "results" if options.keep else Path(scratch)
        failed = [name for name in names if not _run(name, folder, quick=options.quick)]
        if options.keep:
            _keep([name for name in names if name not in failed], folder)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _run(name: str, folder: Path, *, quick: bool) -> bool:
    console = out()
    console.rule(name)
    started = time.perf_counter()
    command = [sys.executable, "-m", f"bench.{name}", "--out", str(folder), *(["--quick"] if quick else [])]
    ended = subprocess.run(command, cwd=HERE.parent, check=False)
    console.print(f"{name}: {time.perf_counter() - started:.0f} s")
    return ended.returncode == 0


def _keep(names: list[str], folder: Path) -> None:
    for name in names:
        file = folder / f"{name}.json"
        if not file.is_file():  # One that found nothing to measure here, and has said so.
            continue
        page = PLACES.get(name, HERE / "README.md")
        plots = os.path.relpath(folder, page.parent)
        tables = markdown(msgspec.json.decode(file.read_bytes(), type=Report), plots)
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text = page.read_text()
        if not between.search(text):
            sys.exit(f"{page.name} has no place for {name}: <!-- {name} --> and <!-- end of {name} -->")
        page.write_text(between.sub(lambda found, tables=tables: f"{found[1]}{tables}{found[2]}", text))


if __name__ == "__main__":
    main()
