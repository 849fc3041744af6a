"""The main job on bundled data: tune, tabulate, plot, evaluate, export, classify.

    python examples/run.py                  sizes of people, cars and motorcycles
    python examples/run.py --data shuttle   a table with labels of its own

Runs the commands a user would type, and prints each before it runs. What it
writes is listed at the end.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from anomaly.errors import AnomalyError  # noqa: E402
from anomaly.loading import Catalogue, Loaded  # noqa: E402

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

# Families whose small grids take minutes, not hours, on tens of thousands of labelled rows.
LABELLED = ["adaboost", "random_forest", "xgboost", "knn", "logistic_regression"]


def main() -> int:
    """Run every step; stop at the first that fails."""
    arguments = build_parser().parse_args()
    try:
        loaded = Catalogue().load(arguments.data)
    except AnomalyError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    run, pictures = arguments.run, f"results/{arguments.run}"
    (ROOT / pictures).mkdir(parents=True, exist_ok=True)
    records = f"{pictures}/records.csv"
    (ROOT / records).write_text(choose_records(arguments.data, loaded), encoding="utf-8")
    start = time.time() - 1
    search = ["--data", arguments.data, *options(loaded), "--run", run]
    step("parameters.py", *search, "--n-jobs", arguments.n_jobs)
    step("beautify.py", f"params/{run}.out")
    tables = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob(f"params/{run}.params.*.csv"))]
    step("process_output.py", f"params/{run}.scores.csv", *tables, "--out", pictures)
    export = ("--export", "anomaly_classifier.clf", "--plot", f"{pictures}/records.png")
    step("parameters.py", "evaluate", run, *export)
    step("production/classify.py", "anomaly_classifier.clf", "--csv", records)
    list_files(start)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``python examples/run.py``."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/run.py --data breast_cancer --n-jobs 2",
    )
    parser.add_argument("--data", default="dimensions", help="entry of datasets/catalogue.toml")
    parser.add_argument("--run", default=time.strftime("demo-%Y%m%d-%H%M%S"), help="name of it")
    parser.add_argument("--n-jobs", default="-1", help="processes of the search (default: all)")
    return parser


def options(loaded: Loaded) -> list[str]:
    """Anomalies to inject where the table has none, and families to tune where it has."""
    if loaded.label is None:
        return ["--inject", "1000"]
    return [word for name in LABELLED for word in ("--classifier", name)]


def choose_records(data: str, loaded: Loaded) -> str:
    """The records to classify in the end, as CSV; of a labelled table six of its rows."""
    if data.startswith("dimensions"):
        return RECORDS
    rows = loaded.frame.drop(columns="duplicate")
    if loaded.label is None:
        return rows.head(6).to_csv(index=False)
    ends = rows.groupby(loaded.label).tail(3).sort_values(loaded.label)
    return ends.drop(columns=loaded.label).to_csv(index=False)


def step(*arguments: str) -> None:
    """Print one command and run it from the root of the project."""
    print(f"\n$ python {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def list_files(since: float) -> None:
    """Print the files written since a moment; the pictures of a folder are counted."""
    print("\nFiles written:")
    found = {*ROOT.glob("params/**/*"), *ROOT.glob("results/**/*"), *ROOT.glob("*.clf")}
    files = ((path, path.stat()) for path in sorted(found) if path.is_file())
    written = [path for path, stat in files if stat.st_size and stat.st_mtime >= since]
    for path in written:
        if path.suffix != ".png":
            print(f"  {path.relative_to(ROOT)}  ({path.stat().st_size:,} bytes)")
    for folder, n in Counter(p.parent for p in written if p.suffix == ".png").items():
        print(f"  {folder.relative_to(ROOT)}/*.png  ({n} pictures)")


if __name__ == "__main__":
    sys.exit(main())
