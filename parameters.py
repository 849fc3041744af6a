"""Tune classifiers from the command line, on this machine or on a server.

    python parameters.py --data dimensions --classifier adaboost --classifier rbf_svc

Every finished fit is in the log of the run before the next one begins, so a
run that is stopped or killed continues where it was with ``--resume``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import detector
from anomaly.errors import AnomalyError, ParameterError
from anomaly.evaluation import INJECTED_NOTE
from anomaly.files import write_aside
from anomaly.tuning import RunFolder, TuningResult, estimate, family, fetch, status
from anomaly.tuning.backend import BACKENDS, Backend, Place
from anomaly.tuning.folds import fingerprint_rows
from anomaly.tuning.grids import Grids, grids_from_text, grids_to_text, load_grids
from anomaly.tuning.progress import clock
from anomaly.tuning.scores import SCORINGS
from anomaly.tuning.searches import SEARCHES
from anomaly.tuning.units import OVERSAMPLE
from anomaly.tuning.workers import interrupt_on_terminate
from anomaly.voting import mean_of_families

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GRIDS = Path(__file__).resolve().parent / "params"
FOLDER = "params"
CLASSIFIERS = ["adaboost", "rbf_svc", "random_forest", "xgboost", "kernel_density"]

# Options that the next command on a run needs again.
AGAIN = (
    "backend",
    "n_jobs",
    "scheduler",
    "hosts",
    "workers",
    "fit_timeout",
    "allow_version_skew",
    "worker_folder",
    "folder",
)
# Those of them that matter when all fits are in the log: no cluster has to live any more.
AGAIN_HERE = ("n_jobs", "fit_timeout", "folder")

EPILOG = """\
examples:
  python parameters.py
      tune five families on the bundled sizes of people, cars and motorcycles
  python parameters.py --classifier adaboost --grid original --dry-run
      how many fits, and how long, before starting
  python parameters.py --data table.csv --label faulty --classifier knn --n-jobs 4 --run faults
      a table of your own; the log is params/faults.out
  python parameters.py --resume faults
      continue after a stop or a crash; start it twice to work with two processes
  python parameters.py --classifier sklearn.naive_bayes.GaussianNB --grid mine.toml
      any classifier by its import path, with a table ["sklearn.naive_bayes.GaussianNB"]
  python parameters.py --data table.csv --label faulty --grid mine.toml --mean-of-best 3
      also judge the mean of the three best families (see docs/choosing.md)
  python parameters.py --data table.csv --label faulty --backend dask --scheduler tcp://host:8786
      fits on the workers of a Dask cluster; they may come and go (see docs/tuning.md)
  python parameters.py merge faults
      join the logs of all processes and hosts into params/faults.out
  python parameters.py evaluate faults --export anomaly_classifier.clf
      fit the winners on the training half, judge them on the held-out half, export the best
  python parameters.py status faults
      how far a run is, from any shell; also user@host:path/faults
  python parameters.py fetch user@host:path/faults
      copy a run back from a server, and check that every fit has come
"""

# What defines a run. --resume takes all of it from the run itself.
DEFAULTS: dict[str, Any] = {
    "data": "dimensions",
    "catalogue": None,
    "label": None,
    "unlabelled": "error",
    "separator": None,
    "decimal": ".",
    "scaling": "standard",
    "thousands": None,
    "anomalies": None,
    "inject": None,
    "strategy": "uniform",
    "classifier": None,
    "grid": "small",
    "cv": 5,
    "order": "random",
    "seed": 0,
    "scoring": "f1",
    "search": "grid",
    "trials": None,
    "train_scores": False,
    "mean_of_best": None,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``python parameters.py``."""
    parser = argparse.ArgumentParser(
        prog="parameters.py",
        description="Search the best parameters of classifiers by cross-validation, with a log "
        "that survives any crash.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="NAME|FILE", help="catalogue entry, CSV file, or -")
    data.add_argument("--catalogue", metavar="FILE", help="catalogue of data sets (TOML)")
    data.add_argument("--label", help="column of a CSV file that holds the labels")
    data.add_argument(
        "--unlabelled",
        choices=["error", "normal"],
        help="normal keeps rows with an empty label, as normal ones",
    )
    data.add_argument("--separator", help="of a CSV file; found by itself when not given")
    data.add_argument("--decimal", help="decimal mark of a CSV file (default .)")
    detector.add_reading_options(data)
    data.add_argument(
        "--scaling", choices=["standard", "none"], help="of columns; none for windows of a series"
    )
    data.add_argument(
        "--inject", type=int, metavar="N", help="anomalies to inject (1000 if there are none)"
    )
    data.add_argument("--strategy", help="of the injection (default uniform)")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--classifier", action="append", metavar="NAME", help="family or import path; repeat"
    )
    search.add_argument(
        "--grid", metavar="NAME|FILE", help="small (default), original, or a TOML file"
    )
    search.add_argument("--search", choices=list(SEARCHES), help="way through the grid")
    search.add_argument("--trials", type=int, metavar="N", help="of --search optuna")
    search.add_argument("--cv", type=int, metavar="K", help="folds (default 5)")
    search.add_argument(
        "--order",
        choices=["random", "time"],
        help="time: rows are a series; every fold trains on the past of what it is tried on",
    )
    search.add_argument("--scoring", choices=list(SCORINGS), help="what to maximise (default f1)")
    search.add_argument(
        "--mean-of-best",
        type=int,
        metavar="N",
        help="also judge the mean of the N best classifiers, each with its best parameters",
    )
    search.add_argument("--seed", type=int, help="of injection, split and fits (default 0)")
    search.add_argument("--train-scores", action="store_true", help="log the training halves, too")
    run = parser.add_argument_group("run")
    run.add_argument("--run", metavar="NAME", help="name of the run (default: data and time)")
    run.add_argument("--resume", metavar="RUN", help="continue a run")
    run.add_argument("--folder", default=FOLDER, help=f"folder of runs (default {FOLDER})")
    run.add_argument("--dry-run", action="store_true", default=False, help="only count and time")
    add_backend_options(parser)
    return parser


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where the fits run; they are no part of the run itself."""
    where = parser.add_argument_group("where the fits run")
    where.add_argument("--n-jobs", type=int, default=1, metavar="N", help="processes; -1 for all")
    where.add_argument(
        "--backend",
        choices=BACKENDS,
        default="loky",
        help="loky: this machine (default); dask: a cluster, named by one of the next three",
    )
    where.add_argument(
        "--scheduler", metavar="ADDRESS", default=None, help="Dask scheduler, as tcp://host:8786"
    )
    where.add_argument(
        "--hosts", metavar="FILE", default=None, help="hosts to start a Dask cluster on, over SSH"
    )
    where.add_argument(
        "--workers", type=int, metavar="N", default=None, help="Dask workers on this machine"
    )
    where.add_argument(
        "--fit-timeout",
        type=float,
        metavar="SECONDS",
        default=None,
        help="stop a fit that takes longer, and log it as failed",
    )
    where.add_argument(
        "--allow-version-skew",
        action="store_true",
        default=False,
        help="let hosts with other library versions work, and record them",
    )
    where.add_argument(
        "--worker-folder",
        metavar="FOLDER",
        default=None,
        help="where workers keep their lines until the run has ended "
        "(default ~/.local/state/anomaly)",
    )


def backend(arguments: argparse.Namespace) -> Backend:
    """What the options say about where fits run."""
    return Backend(
        arguments.backend,
        n_jobs=arguments.n_jobs,
        scheduler=arguments.scheduler,
        workers=arguments.workers,
        hosts=arguments.hosts,
        fit_timeout_s=arguments.fit_timeout,
        allow_version_skew=arguments.allow_version_skew,
        worker_folder=arguments.worker_folder,
    )


@contextmanager
def open_backend(arguments: argparse.Namespace) -> Iterator[Place]:
    """Open the back end once for all classifiers, and say where to watch a cluster."""
    with backend(arguments).open() as place:
        if arguments.backend != "loky":
            print(place.describe(), file=sys.stderr)
        yield place


def build_merge_parser() -> argparse.ArgumentParser:
    """The command line of ``python parameters.py merge``."""
    parser = argparse.ArgumentParser(
        prog="parameters.py merge",
        description="Join the logs that the processes and hosts of a run have written.",
        epilog="example: python parameters.py merge faults",
    )
    parser.add_argument("run", nargs="?", help="name of the run (default: every run)")
    parser.add_argument("--folder", default=FOLDER, help=f"folder of runs (default {FOLDER})")
    return parser


def build_evaluate_parser() -> argparse.ArgumentParser:
    """The command line of ``python parameters.py evaluate``."""
    parser = argparse.ArgumentParser(
        prog="parameters.py evaluate",
        description="Fit the best candidate of every classifier of a run on the training half and "
        "judge it on the held-out half. Fits that the log lacks are made first.",
        epilog="example: python parameters.py evaluate faults --export anomaly_classifier.clf",
    )
    parser.add_argument("run", help="name of the run")
    parser.add_argument("--folder", default=FOLDER, help=f"folder of runs (default {FOLDER})")
    add_backend_options(parser)
    parser.add_argument("--export", metavar="FILE", help="classify function of the best to write")
    parser.add_argument("--plot", metavar="FILE", help="picture of records and boundaries")
    return parser


def tune(arguments: argparse.Namespace) -> int:
    """Load, inject, split, and tune every classifier of the run."""
    job, folder = plan(arguments)
    rows = load(job)
    if folder is None and (rows.frame["origin"] == "label").any():
        job["grids"] = grids_to_text(grids_for_labels(job["grid"], grids_from_text(job["grids"])))
    grids = grids_from_text(job["grids"])
    if arguments.dry_run:
        show_estimates(job, rows, grids, arguments.n_jobs)
        return 0
    begun = folder is None
    folder = folder or begin_run(arguments, job)
    odd = rows.frame["odd"].to_numpy()
    folder.agree("rows", {"data": fingerprint_rows(rows.frame[rows.features], odd)})
    with write_aside(folder.path / "manifest.json") as file:
        file.write(rows.manifest.to_json())
    before = interrupt_on_terminate()
    try:
        with open_backend(arguments) as place:
            results = [
                (name, tune_one(name, grids[name], job, rows, folder, place))
                for name in job["classifier"]
            ]
    except KeyboardInterrupt:
        say_how_to_continue(arguments, folder)
        return 130
    except ConnectionError as error:
        again = f"python parameters.py --resume {folder.name}{options_again(arguments)}"
        raise ParameterError(f"{error}; continue, on this or any --backend: {again}") from None
    except (ValueError, ImportError, OSError):
        if begun:
            folder.forget()
        raise
    finally:
        restore_terminate(before)
    if job["mean_of_best"]:
        results.append(mean_of_best(dict(results), job, rows))
    finish(folder, results, job, options_again(arguments, AGAIN_HERE))
    if rows.manifest.entries:
        print(INJECTED_NOTE)
    return 0


def plan(arguments: argparse.Namespace) -> tuple[dict[str, Any], RunFolder | None]:
    """What to do: from the command line, or from the run that is continued."""
    given = {name: getattr(arguments, name) for name in DEFAULTS if hasattr(arguments, name)}
    if not hasattr(arguments, "resume"):
        job = DEFAULTS | given
        job["classifier"] = list(dict.fromkeys(job["classifier"] or CLASSIFIERS))
        job["grids"] = grids_to_text(choose_grids(job["grid"], job["classifier"]))
        return job, None
    if given or hasattr(arguments, "run"):
        options = ", ".join("--" + name.replace("_", "-") for name in given) or "--run"
        raise ParameterError(f"--resume takes everything from the run; leave out {options}")
    folder = existing_run(arguments.folder, arguments.resume)
    return stored_job(folder), folder


def stored_job(folder: RunFolder) -> dict[str, Any]:
    """What the run was told to do when it began."""
    stored = folder.plan().get("job")
    if not isinstance(stored, dict):
        raise ParameterError(f"run {folder.name!r} has no plan in {folder.path / 'run.json'}")
    return DEFAULTS | stored


def choose_grids(named: str, classifiers: Sequence[str]) -> Grids:
    """Grids of the chosen classifiers from a bundled or a user's file."""
    grids = load_grids(bundled_grid(named) or named)
    for name in classifiers:
        family(name)
        if name not in grids:
            raise ParameterError(
                f"grid {named!r} has no table [{name}]; it has {', '.join(grids)}"
            )
    return {name: grids[name] for name in classifiers}


def bundled_grid(named: str) -> Path | None:
    """The bundled file of grids of this name."""
    path = GRIDS / f"{named}.toml"
    return path if path.exists() and os.sep not in named else None


def grids_for_labels(named: str, grids: Grids) -> Grids:
    """Bundled grids without ``oversample``: nobody asked to add made anomalies to real ones."""
    if bundled_grid(named) is None:
        return grids
    return {
        name: [{key: values for key, values in part.items() if key != OVERSAMPLE} for part in grid]
        for name, grid in grids.items()
    }


def load(job: Mapping[str, Any]) -> detector.Detector:
    """The rows of a job: loaded, injected, split."""
    rows = detector.load(argparse.Namespace(**job))
    wanted = job["inject"]
    if wanted is None and not rows.frame["odd"].any():
        wanted = 1000
    if wanted:
        rows.inject(wanted, job["strategy"])
    return rows.format(job["seed"], order=job["order"])


def folds(job: Mapping[str, Any]) -> Any:
    """The folds of a job: their number, or a splitter that keeps the order of time."""
    from sklearn.model_selection import TimeSeriesSplit

    return TimeSeriesSplit(job["cv"]) if job["order"] == "time" else job["cv"]


def begin_run(arguments: argparse.Namespace, job: dict[str, Any]) -> RunFolder:
    """Make the folder of a new run and store its plan."""
    stem = Path(job["data"]).name.partition(".")[0].strip("-") or "stdin"
    name = getattr(arguments, "run", f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    path = run_path(arguments.folder, name)
    if (path / "run.json").exists() or path.with_name(f"{name}.out").exists():
        raise ParameterError(
            f"run {name!r} exists; continue it with --resume {name} or choose another --run"
        )
    folder = RunFolder(path)
    folder.note(job=job)
    print(f"run {folder.name}: {folder.path}", file=sys.stderr)
    return folder


def existing_run(folder: str, name: str) -> RunFolder:
    """The folder of a run that was begun before."""
    path = run_path(folder, name)
    if not (path / "run.json").exists():
        known = sorted(p.parent.name for p in Path(folder).glob("*/run.json"))
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it holds {', '.join(known) or 'none'}"
        raise ParameterError(f"there is no run {name!r} in {folder}; {hint}")
    return RunFolder(path)


def run_path(folder: str, name: str) -> Path:
    """Folder of a run; a name never leads elsewhere."""
    if not name or Path(name).name != name:
        raise ParameterError(f"a run has a plain name, its folder goes to --folder; got {name!r}")
    return Path(folder) / name


def tune_one(
    name: str,
    grid: list[dict[str, list[Any]]],
    job: Mapping[str, Any],
    rows: detector.Detector,
    folder: RunFolder,
    place: Place,
    refit: bool = False,
) -> TuningResult:
    """Tune one classifier of the run."""
    rows.tune_parameters(
        family(name).make(),
        grid,
        cv=folds(job),
        backend=place,
        scoring=job["scoring"],
        search=job["search"],
        search_options={} if job["trials"] is None else {"n_trials": job["trials"]},
        train_scores=job["train_scores"],
        random_state=job["seed"],
        log=folder,
        progress=not refit,
        refit=refit,
    )
    return rows.tuning


def mean_of_best(
    results: Mapping[str, TuningResult], job: Mapping[str, Any], rows: detector.Detector
) -> tuple[str, TuningResult]:
    """The mean of the best classifiers of the run, over the same folds."""
    return f"mean of best {job['mean_of_best']}", mean_of_families(
        results,
        rows.xtrain,
        rows.ytrain.to_numpy().astype(int),
        n_best=job["mean_of_best"],
        prepare=rows.encoder(),
        cv=folds(job),
        scoring=job["scoring"],
        random_state=job["seed"],
        refit=False,
    )


def finish(
    folder: RunFolder,
    results: Sequence[tuple[str, TuningResult]],
    job: Mapping[str, Any],
    again: str,
) -> None:
    """Merge, and say what was found and what comes next."""
    report = folder.merge()
    answer = {
        name: {"params": repr(result.best_params_), "score": result.best_score_}
        for name, result in results
    }
    folder.note(answer=answer)
    show_results(results, job["scoring"])
    stem = report.path.with_suffix("")
    print(report)
    print("next:")
    print(f"  python beautify.py {report.path}")
    for estimator in dict.fromkeys(estimator_names(job["classifier"])):
        print(f"  python process_output.py {stem}.scores.csv {stem}.params.{estimator}.csv")
    print(f"  python parameters.py evaluate {folder.name}{again} --export anomaly_classifier.clf")


def estimator_names(classifiers: Sequence[str]) -> list[str]:
    """Class names under which the tables of a run are filed."""
    return [type(family(name).make()).__name__ for name in classifiers]


def show_results(results: Sequence[tuple[str, TuningResult]], scoring: str) -> None:
    """Print the best of every classifier, best first."""
    table = folded_table("classifier", scoring, "fits", "from the log", "best parameters")
    for name, result in sorted(results, key=lambda pair: -pair[1].best_score_):
        counts = str(result.n_fits_), str(result.n_resumed_)
        table.add_row(name, f"{result.best_score_:.4f}", *counts, in_words(result.best_params_))
    console().print(table)


def in_words(params: Mapping[str, Any]) -> str:
    """Parameters for a reader, as they stand in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in params.items())


def folded_table(*names: str, title: str | None = None) -> Table:
    """A table whose cells are folded, never cut."""
    from rich.table import Column, Table

    texts = {"estimator", "classifier", "best parameters"}
    columns = (Column(name, overflow="fold", no_wrap=name not in texts) for name in names)
    return Table(*columns, title=title)


def console() -> Console:
    """Standard output; wide enough for a table where it is a file or a pipe."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=max(found.width, 120))


def show_estimates(
    job: Mapping[str, Any], rows: detector.Detector, grids: Grids, n_jobs: int
) -> None:
    """Print candidates, fits and expected time of a grid search."""
    names = ("classifier", "candidates", "distinct", "fits", "staged fits", "time, 1 process")
    table, total = folded_table(*names), 0.0
    for name, grid in grids.items():
        cost = estimate(
            family(name).make(),
            grid,
            rows.xtrain,
            rows.ytrain.to_numpy().astype(int),
            prepare=rows.encoder(),
            cv=folds(job),
            random_state=job["seed"],
        )
        counts = cost.n_candidates, cost.n_distinct, cost.n_fits, cost.n_units
        table.add_row(name, *(f"{n:,}" for n in counts), clock(cost.seconds))
        total += cost.seconds
    console().print(table)
    processes = os.cpu_count() or 1 if n_jobs == -1 else n_jobs
    print(
        f"about {clock(total / processes)} with {processes} process(es), by a sample of the fits"
    )


def say_how_to_continue(arguments: argparse.Namespace, folder: RunFolder) -> None:
    """After Ctrl-C: where the fits are, and the command to go on."""
    print(
        f"\ninterrupted; every finished fit is in {folder.path}. To continue:\n"
        f"  python parameters.py --resume {folder.name}{options_again(arguments)}",
        file=sys.stderr,
    )


def options_again(arguments: argparse.Namespace, names: Sequence[str] = AGAIN) -> str:
    """Options that the next command on this run needs, too."""
    standard = vars(build_evaluate_parser().parse_args([""]))
    again = ""
    for name in names:
        value = getattr(arguments, name)
        if value != standard[name]:
            again += f" --{name.replace('_', '-')}"
            again += "" if value is True else f" {shlex.quote(str(value))}"
    return again


def restore_terminate(handler: Any) -> None:
    """Set back what SIGTERM did before."""
    import signal

    signal.signal(signal.SIGTERM, handler)


def evaluate(arguments: argparse.Namespace) -> int:
    """Refit the winners of a run, judge them on the held-out half, export the best."""
    detector.check_outputs(arguments.export, arguments.plot)
    detector.check_picture(arguments.plot)
    folder = existing_run(arguments.folder, arguments.run)
    job = stored_job(folder)
    rows = load(job)
    grids = grids_from_text(job["grids"])
    judged = []
    with open_backend(arguments) as place:
        for name in job["classifier"]:
            result = tune_one(name, grids[name], job, rows, folder, place, refit=True)
            judged.append((name, result, rows.evaluate()))
    judged.sort(key=lambda entry: -entry[1].best_score_)
    show_evaluations(judged, job["scoring"], injected=len(rows.manifest) > 0)
    store_evaluations(folder, judged)
    rows.use(judged[0][1])
    if arguments.plot:
        print(f"wrote {rows.save_plot(arguments.plot)}")
    if arguments.export:
        print(f"wrote {rows.export(arguments.export)} ({judged[0][0]})")
    return 0


Judged = Sequence[tuple[str, TuningResult, detector.Evaluation]]


def show_evaluations(judged: Judged, scoring: str, injected: bool) -> None:
    """Print how the winners do on the held-out half, best by cross-validation first."""
    scored = f"cross-validated\n{scoring.upper() if scoring == 'f1' else scoring}"
    names = ("estimator", "best parameters", scored, "held-out\nF1", "TPR", "FPR", "µs per\nrow")
    table = folded_table(*names, title="winners, judged on rows the search has not seen")
    for name, result, evaluation in judged:
        ratios = evaluation.ratios
        figures = (result.best_score_, ratios.F1, ratios.TPR, ratios.FPR)
        texts = [f"{figure:.4f}" for figure in figures]
        micros = f"{1e6 * evaluation.seconds_per_row:.1f}"
        table.add_row(name, in_words(result.best_params_), *texts, micros)
    screen = console()
    screen.print(table)
    by_type = folded_table(
        "origin", "rows", "flagged", "share", title=f"{judged[0][0]}, by origin"
    )
    for row in judged[0][2].by_type.itertuples():
        by_type.add_row(str(row.Index), str(row.rows), str(row.flagged), f"{row.share:.3f}")
    screen.print(by_type)
    if injected:
        screen.print(
            "A score on injected anomalies says how well points made this way are told apart "
            "from the records, and little about anomalies that occur by themselves."
        )


def store_evaluations(folder: RunFolder, judged: Judged) -> None:
    """Keep the table of `show_evaluations` beside the run, for programs to read."""
    answer = [
        {
            "classifier": name,
            "params": repr(result.best_params_),
            "cross_validated": result.best_score_,
            "held_out": evaluation.ratios._asdict(),
            "matrix": evaluation.matrix.tolist(),
            "by_type": evaluation.by_type.reset_index().to_dict("records"),
            "seconds_per_row": evaluation.seconds_per_row,
        }
        for name, result, evaluation in judged
    ]
    with write_aside(folder.path / "evaluation.json") as file:
        json.dump(answer, file, indent=1)
        file.write("\n")


def merge(arguments: argparse.Namespace) -> int:
    """Merge one run, or all of a folder."""
    names = [arguments.run] if arguments.run else []
    names = names or sorted(p.parent.name for p in Path(arguments.folder).glob("*/run.json"))
    if not names:
        raise ParameterError(f"there are no runs in {arguments.folder}")
    for name in names:
        print(existing_run(arguments.folder, name).merge())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; user errors are one sentence and exit code 2."""
    given = list(sys.argv[1:] if argv is None else argv)
    name = "parameters.py"
    try:
        if given[:1] == ["merge"]:
            return merge(build_merge_parser().parse_args(given[1:]))
        if given[:1] == ["evaluate"]:
            return evaluate(build_evaluate_parser().parse_args(given[1:]))
        if given[:1] == ["status"]:
            return status.main(given[1:])
        if given[:1] == ["fetch"]:
            return fetch.main(given[1:])
        return tune(build_parser().parse_args(given))
    except (AnomalyError, OSError, ValueError) as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    sys.exit(main())
