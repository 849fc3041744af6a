"""The main job on bundled data: tune, tabulate, plot, evaluate, export, classify.

    python examples/run.py [--run NAME]

Runs the commands a user would type, and prints each before it runs. Everything
it writes is listed at the end.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A car, a person and a motorcycle as they are; a person the size of a car, a
# motorcycle six metres long, and a car as wide as it is long.
RECORDS = """\
class,length,width
car,4500,1800
human,980,1090
motorcycle,2200,850
human,4500,1800
motorcycle,5700,900
car,1800,1800
"""


def main() -> int:
    """Run every step; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default=time.strftime("demo-%Y%m%d-%H%M%S"), help="name of it")
    parser.add_argument("--n-jobs", default="-1", help="processes of the search (default: all)")
    arguments = parser.parse_args()
    run, pictures = arguments.run, f"results/{arguments.run}"
    (ROOT / pictures).mkdir(parents=True, exist_ok=True)
    records = f"{pictures}/records.csv"
    (ROOT / records).write_text(RECORDS, encoding="utf-8")
    start = time.time() - 1
    data = ("dimensions", "--inject", "1000")
    step("parameters.py", "--data", *data, "--run", run, "--n-jobs", arguments.n_jobs)
    step("beautify.py", f"params/{run}.out")
    tables = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob(f"params/{run}.params.*.csv"))]
    step("process_output.py", f"params/{run}.scores.csv", *tables, "--out", pictures)
    export = ("--export", "anomaly_classifier.clf", "--plot", f"{pictures}/records.png")
    step("parameters.py", "evaluate", run, *export)
    step("production/classify.py", "anomaly_classifier.clf", "--csv", records)
    list_files(start)
    return 0


def step(*arguments: str) -> None:
    """Print one command and run it from the root of the project."""
    print(f"\n$ python {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def list_files(since: float) -> None:
    """Print the files written since a moment."""
    print("\nFiles written:")
    found = {*ROOT.glob("params/**/*"), *ROOT.glob("results/**/*"), *ROOT.glob("*.clf")}
    for path in sorted(found):
        if path.is_file() and path.stat().st_mtime >= since:
            print(f"  {path.relative_to(ROOT)}  ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    sys.exit(main())
