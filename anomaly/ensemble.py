"""A detector for tables without labels: several views of what is unusual, combined."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from hashlib import blake2b
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import ArrayLike, NDArray
from sklearn.covariance import MinCovDet, ledoit_wolf
from sklearn.ensemble import IsolationForest
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly.base import BaseDetector, Interval, StrOptions
from anomaly.errors import DataError

Floats = NDArray[np.float64]

WIDE = 200  # columns above which only neighbours and a Gaussian stay useful
LARGE = 100_000  # rows above which fewer of them represent the table
_BLOCK = 128  # rows per distance block; fixed, so a row's score never depends on its company
_FOLDS = 5
_ROUNDING = 1e-12  # squared distance, as a share of the row's length, that is none
_FLAT = 1e-6  # variance, as a share of that of all rows, below which half of them are in a plane


class EnsembleDetector(BaseDetector):
    """Unsupervised detector that combines neighbours, forest, histogram and covariances.

    Columns are centred on the median, divided by the span of the middle 90 %
    of their values and clipped to ±10. Each member scores a row in its own
    way:

    ==================  =======================================================
    member              score
    ==================  =======================================================
    neighbours_1        mean distance to the nearest 1 % of the reference rows
    neighbours_10       the same with 10 %
    forest              isolation forest of 200 trees on 1,024 rows each
    histogram           sum over columns of -log2(density), 10 bins a column
    robust_covariance   Mahalanobis distance, minimum covariance determinant
    covariance          Mahalanobis distance, shrunk covariance of all rows
    ==================  =======================================================

    The share of training rows that score at least as high is the row's tail
    probability for that member; beyond the highest training score it keeps
    falling with the distance, so that extreme rows stay in order. The mean of
    the negative logarithms (Fisher's method) is the row's score. No weight, no
    member and no parameter is fitted to labels.

    A table of more than 200 columns uses ``neighbours_1`` and ``covariance``
    only. A score depends on the row and the training table alone, never on
    the other rows of the call.

    Parameters
    ----------
    mode : {"full", "light"}, default="full"
        ``"light"`` keeps ``forest`` and ``robust_covariance``, which store no
        training rows: small files and fast scores. Wide tables use
        ``covariance`` alone then.
    contamination : float, default=0.05
        Share of the training rows that `predict` calls anomalous. It moves the
        threshold only, never the ranking; `anomaly.threshold` sets thresholds
        that keep a promise.
    max_reference : int, default=10_000
        Larger tables are represented by this many rows drawn at random; above
        100,000 rows by half as many, so that a million is scored in time.
    n_jobs : int, optional
        Threads for fitting and scoring. None means 1 unless a joblib
        context says otherwise, -1 all cores. Never changes a score.
    random_state : int, RandomState or None, default=None
        Seed of the drawn rows, the forest and the robust covariance.

    Attributes
    ----------
    members_ : list of str
        Names of the members in use, in the order of `member_scores`.
    kept_columns_ : ndarray of int
        Columns that vary; the others are dropped with a warning.
    threshold_ : float
        Combined score above which a row is called anomalous.
    classes_, n_features_in_, feature_names_in_
        As in every detector. Labels given to ``fit`` name the classes only.

    References
    ----------
    Han, Hu, Huang, Jiang, Zhao: ADBench, NeurIPS 2022, for the tables on
    which the members were compared. Fisher: Statistical Methods for Research
    Workers, 1932.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.ensemble import EnsembleDetector
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 3))
    >>> detector = EnsembleDetector(contamination=0.01, random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0], [9.0, -9.0, 0.0]])
    array([0, 1])
    >>> detector.explain([[0.0, 0.0, 9.0]]).round(1).abs().to_dict("records")
    [{'x0': 0.0, 'x1': 0.0, 'x2': 6.0}]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "mode": [StrOptions({"full", "light"})],
        "contamination": [Interval(Real, 0.0, 0.5, closed="right")],
        "max_reference": [Interval(Integral, 10, None, closed="left")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        mode: Literal["full", "light"] = "full",
        *,
        contamination: float = 0.05,
        max_reference: int = 10_000,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.mode = mode
        self.contamination = contamination
        self.max_reference = max_reference
        self.n_jobs = n_jobs
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # it does not learn from labels
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn what is usual from the rows of a table.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Finite numbers. A few per cent of anomalies do no harm.
        y : array-like of shape (n_samples,), optional
            Names the two classes; not learnt from.

        Returns
        -------
        self

        Raises
        ------
        DataError
            If no column varies.
        """
        self._validate_params()
        table = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        anomalous = self._encode_labels(y, len(table))
        if anomalous is not None and anomalous.all():
            raise DataError("y gives every row the class of anomalies, so nothing shows the usual")
        random = check_random_state(self.random_state)
        size = self.max_reference if len(table) <= LARGE else self.max_reference // 2
        reference = _draw(table, size, random)
        self._fit_scale(reference)
        rows = self._scale(reference)
        self._models = _make_members(self.mode, rows.shape[1], random)
        training = self._fit_members(rows)
        self.members_ = [name for model in self._models for name in model.names]
        self._tails = [Tail(column) for column in training.T]
        combined = self._combine(training)
        self.threshold_ = float(np.quantile(combined, 1.0 - self.contamination))
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Combined score minus ``threshold_``; above 0 is an anomaly.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
            In natural logarithms: one more is a tail probability e times
            smaller, averaged over the members.
        """
        check_is_fitted(self)
        return self._score(validate_data(self, X, dtype=np.float64, reset=False))

    def member_scores(self, X: ArrayLike) -> pd.DataFrame:
        """Negative logarithm of each member's tail probability.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        DataFrame of shape (n_samples, n_members)
            The mean of a row, minus ``threshold_``, is its `decision_function`.
        """
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, reset=False)
        return pd.DataFrame(self._surprise(self._raw(table)), columns=self.members_)

    def explain(self, X: ArrayLike) -> pd.DataFrame:
        """Which columns make a row unusual.

        Each value in turn is replaced by the median of its column; what the
        score loses is that column's share. Shares of columns that only
        together are unusual do not add up to the score.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        DataFrame of shape (n_samples, n_features)
            Loss of score per column, larger for more suspicious values; 0 for
            columns that were constant in training. Negative where the median
            would be stranger than the value.
        """
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, reset=False)
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(table.shape[1])])
        losses = np.zeros(table.shape)
        score = self._score(table)
        for column in self.kept_columns_:
            usual = table.copy()
            usual[:, column] = self._median[self.kept_columns_ == column]
            losses[:, column] = score - self._score(usual)
        return pd.DataFrame(losses, columns=list(names))

    def _fit_scale(self, reference: Floats) -> None:
        """Robust centre and span of the columns that vary."""
        low, median, high = np.quantile(reference, [0.05, 0.5, 0.95], axis=0)
        span = high - low
        largest = np.maximum(np.abs(reference).max(axis=0), np.finfo(float).tiny)
        span = np.where(span > 0, span, 3.29 * largest * (reference / largest).std(axis=0))
        varies = (reference.min(axis=0) < reference.max(axis=0)) & (span > 0) & np.isfinite(span)
        if not varies.any():
            raise DataError("no column of X varies, so no row can be unusual")
        if not varies.all():
            names = getattr(self, "feature_names_in_", np.arange(len(varies)))[~varies]
            shown = ", ".join(map(str, names[:5])) + (" …" if len(names) > 5 else "")
            columns = "constant column is" if len(names) == 1 else "constant columns are"
            warnings.warn(f"{len(names)} {columns} left out: {shown}", UserWarning, stacklevel=3)
        self.kept_columns_ = np.flatnonzero(varies)
        self._median, self._span = median[varies], span[varies]

    def _scale(self, table: Floats) -> Floats:
        with np.errstate(over="ignore"):  # clipped like any other large value
            scaled = (table[:, self.kept_columns_] - self._median) / self._span
        # Sums over a row run in the order of memory: the same for one row and for many.
        return np.ascontiguousarray(np.clip(scaled, -10.0, 10.0))

    def _fit_members(self, rows: Floats) -> Floats:
        """Fit all members on two threads and return their scores of the training rows.

        Scikit-learn changes the filters of warnings, which all threads share:
        the members that use its estimators stay on one thread.
        """
        theirs = [isinstance(model, _Forest | _RobustCovariance) for model in self._models]

        def fit(chosen: bool) -> dict[int, Floats]:
            return {i: self._models[i].fit(rows) for i, t in enumerate(theirs) if t == chosen}

        parts = Parallel(n_jobs=self.n_jobs, prefer="threads")(
            delayed(fit)(chosen) for chosen in (False, True)
        )
        scores = parts[0] | parts[1]
        return np.column_stack([scores[i] for i in range(len(self._models))])

    def _raw(self, table: Floats) -> Floats:
        """Every member's own score, by blocks of rows on the threads."""

        def score(part: slice) -> Floats:
            rows = self._scale(table[part])
            return np.column_stack([model.score(rows) for model in self._models])

        parts = Parallel(n_jobs=self.n_jobs, prefer="threads")(
            delayed(score)(part) for part in _blocks(len(table), 16 * _BLOCK)
        )
        return np.concatenate(parts)

    def _surprise(self, raw: Floats) -> Floats:
        return np.column_stack(
            [tail.surprise(column) for tail, column in zip(self._tails, raw.T, strict=True)]
        )

    def _combine(self, raw: Floats) -> Floats:
        return np.asarray(self._surprise(raw).mean(axis=1))

    def _score(self, table: Floats) -> Floats:
        return self._combine(self._raw(table)) - self.threshold_


class _Member(Protocol):
    """One view: ``fit`` returns the training rows' scores as if they were new."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def fit(self, rows: Floats) -> Floats: ...

    def score(self, rows: Floats) -> Floats: ...


def _make_members(mode: str, n_columns: int, random: np.random.RandomState) -> list[_Member]:
    forest_seed, covariance_seed = random.randint(2**31 - 1, size=2)
    wide = n_columns > WIDE
    if mode == "light":
        return (
            [_Covariance()] if wide else [_Forest(forest_seed), _RobustCovariance(covariance_seed)]
        )
    if wide:
        return [_Neighbours({"neighbours_1": 0.01}), _Covariance()]
    return [
        _Neighbours({"neighbours_1": 0.01, "neighbours_10": 0.1}),
        _Forest(forest_seed),
        _Histogram(),
        _RobustCovariance(covariance_seed),
        _Covariance(),
    ]


def _draw(table: Floats, size: int, random: np.random.RandomState) -> Floats:
    if len(table) <= size:
        return table
    return table[np.sort(random.choice(len(table), size, replace=False))]


def _blocks(n_rows: int, size: int) -> Iterator[slice]:
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


class Tail:
    """Mid-rank tail probability against training scores, as its negative logarithm."""

    def __init__(self, training: Floats) -> None:
        self._sorted = np.sort(training)
        spread = self._sorted[-1] - np.median(training)
        self._spread = spread if spread > 0 else 1.0

    def surprise(self, scores: Floats) -> Floats:
        n = len(self._sorted)
        below = np.searchsorted(self._sorted, scores, side="left")
        until = np.searchsorted(self._sorted, scores, side="right")
        tail = (n - 0.5 * (below + until) + 0.5) / (n + 1)
        beyond = np.maximum(scores - self._sorted[-1], 0.0) / self._spread
        return np.log1p(beyond) - np.log(tail)


class _Neighbours:
    """Mean distance to the nearest shares of the reference rows.

    A row equal to a reference row is taken to be that row and is not its own
    neighbour. Distances come from one matrix product per block of fixed
    height, padded if need be: the same operations for every row. In double
    precision, because some libraries round single precision by the row's place
    in the block.
    """

    def __init__(self, shares: dict[str, float]) -> None:
        self.names = tuple(shares)
        self._shares = tuple(shares.values())

    def fit(self, rows: Floats) -> Floats:
        n = len(rows)
        self._counts = [min(max(round(share * n), 5), n - 1) for share in self._shares]
        squares = np.square(rows).sum(axis=1)
        self._right = np.column_stack([-2.0 * rows, squares, np.ones(n)]).T.copy()
        return self.score(rows)

    def score(self, rows: Floats) -> Floats:
        squares = np.square(rows).sum(axis=1)
        left = np.column_stack([rows, np.ones(len(rows)), squares])
        result = np.empty((len(rows), len(self._counts)))
        padded = np.zeros((_BLOCK, left.shape[1]))
        product = np.empty((_BLOCK, self._right.shape[1]))
        single = np.empty(product.shape, np.float32)
        most = max(self._counts)
        for part in _blocks(len(rows), _BLOCK):
            size = part.stop - part.start
            padded[:size] = left[part]
            np.matmul(padded, self._right, out=product)
            single[:] = product
            nearest = single[:size]
            if most + 1 < nearest.shape[1]:
                nearest.partition(most, axis=1)
            near = nearest[:, : most + 1]
            near[near <= _ROUNDING * squares[part, None]] = 0.0
            np.sqrt(near, out=near)
            result[part] = self._means(near)
        return result

    def _means(self, near: NDArray[np.float32]) -> Floats:
        """Mean of the smallest distances, largest count first; a row itself adds 0 to its sum."""
        itself = near.min(axis=1) == 0
        means = np.empty((len(near), len(self._counts)))
        for i in np.argsort(self._counts)[::-1]:
            count = self._counts[i]
            if count + 1 < near.shape[1]:
                near = np.partition(near, count, axis=1)[:, : count + 1]
            farthest = np.where(itself, 0.0, near.max(axis=1))
            means[:, i] = (near.sum(axis=1, dtype=np.float64) - farthest) / count
        return means


class _Forest:
    """Isolation forest, scored tree by tree: no state that threads could share."""

    names = ("forest",)

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fit(self, rows: Floats) -> Floats:
        n_samples = min(1024, len(rows))
        forest = IsolationForest(
            n_estimators=200, max_samples=n_samples, random_state=self._seed
        ).fit(rows)
        self._trees = [tree.tree_ for tree in forest.estimators_]
        self._lengths = [_path_lengths(tree) for tree in self._trees]
        self._usual = len(self._trees) * float(_expected_length(np.array([n_samples]))[0])
        return self.score(rows)

    def score(self, rows: Floats) -> Floats:
        narrow = rows.astype(np.float32)
        total = np.zeros(len(rows))
        for tree, lengths in zip(self._trees, self._lengths, strict=True):
            total += lengths[tree.apply(narrow)]
        return np.exp2(-total / self._usual)[:, None]


def _path_lengths(tree: Any) -> Floats:
    """Steps from the root to each node, and those its rows would still need."""
    return tree.compute_node_depths() - 1.0 + _expected_length(tree.n_node_samples)


def _expected_length(n: NDArray[np.int64]) -> Floats:
    """Mean path length of an unsuccessful search in a binary search tree of n keys."""
    many = np.maximum(n, 3).astype(float)
    length = 2.0 * (np.log(many - 1.0) + np.euler_gamma) - 2.0 * (many - 1.0) / many
    return np.where(n > 2, length, np.where(n == 2, 1.0, 0.0))


class _Histogram:
    names = ("histogram",)
    _bins = 10

    def fit(self, rows: Floats) -> Floats:
        self._low, high = rows.min(axis=0), rows.max(axis=0)
        self._width = (high - self._low) / self._bins
        self._width[self._width <= 0] = 1.0
        counts = [np.bincount(column, minlength=self._bins + 2) for column in self._place(rows).T]
        density = np.array(counts) / (len(rows) * self._width[:, None])
        density[:, [0, -1]] = 0.0  # the bins outside
        self._surprise = -np.log2(density + 0.1)
        return self.score(rows)

    def score(self, rows: Floats) -> Floats:
        place = self._place(rows)
        return self._surprise[np.arange(rows.shape[1]), place].sum(axis=1)[:, None]

    def _place(self, rows: Floats) -> NDArray[np.int64]:
        """Bin of each value from 1; 0 and one past the last lie outside."""
        position = (rows - self._low) / self._width
        inside = np.clip(position.astype(np.int64), 0, self._bins - 1) + 1
        inside[position < 0] = 0
        inside[position > self._bins * (1 + 1e-9)] = self._bins + 1
        return inside


class _Gaussian:
    """Mahalanobis distance under a covariance shrunk towards a sphere (Ledoit and Wolf)."""

    def __init__(self, rows: Floats) -> None:
        covariance, _ = ledoit_wolf(rows)
        self._centre = rows.mean(axis=0)
        try:
            lower = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:  # two or three rows
            variance = float(np.trace(covariance)) / len(covariance) or 1.0
            lower = np.linalg.cholesky(covariance + 1e-6 * variance * np.eye(len(covariance)))
        self._turn = np.linalg.inv(lower).T.copy()

    def distance(self, rows: Floats) -> Floats:
        return np.asarray(
            np.sqrt(np.square(_product(rows - self._centre, self._turn)).sum(axis=1))
        )


class _Covariance:
    """Distance to all rows as one Gaussian; training rows are scored by folds without them.

    Where rows are few for the columns, a Gaussian finds its own rows closer than
    new ones: a row equal to a training row then keeps the score it was given without.
    """

    names = ("covariance",)
    _few = 10  # rows for each column

    def fit(self, rows: Floats) -> Floats:
        self._model = _Gaussian(rows)
        self._own: dict[bytes, float] = {}
        if len(rows) < 4:
            return self.score(rows)
        n_folds = min(_FOLDS, len(rows))
        scores = np.empty((len(rows), 1))
        for fold in range(n_folds):
            held_out = np.arange(len(rows)) % n_folds == fold
            scores[held_out, 0] = _Gaussian(rows[~held_out]).distance(rows[held_out])
        if len(rows) < self._few * rows.shape[1]:
            self._own = dict(zip(_digests(rows), scores[:, 0].tolist(), strict=True))
        return scores

    def score(self, rows: Floats) -> Floats:
        distance = self._model.distance(rows)
        if self._own:
            keys = _digests(rows)
            distance = np.array([self._own.get(k, d) for k, d in zip(keys, distance, strict=True)])
        return distance[:, None]


def _digests(rows: Floats) -> list[bytes]:
    return [blake2b(row.tobytes(), digest_size=8).digest() for row in rows + 0.0]


class _RobustCovariance:
    """Mahalanobis distance by the minimum covariance determinant.

    Many columns, or few rows for them, are first turned into at most 30
    whitened principal components.
    """

    names = ("robust_covariance",)
    _rows = 2_000  # enough for 60 columns; more only cost time

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fit(self, rows: Floats) -> Floats:
        n, d = rows.shape
        centre, turn = np.zeros(d), np.eye(d)
        if d > 60 or n < 5 * d:
            centre = rows.mean(axis=0)
            turn = _whitening(rows - centre, min(30, d, max(n // 5, 1)))
        random = check_random_state(self._seed)
        sample = (_draw(rows, self._rows, random) - centre) @ turn
        location, precision = _robust_estimate(sample, random)
        values, directions = np.linalg.eigh(precision)
        self._centre = centre
        self._shift = location
        self._turn = turn
        self._root = directions * np.sqrt(np.maximum(values, 0.0))
        return self.score(rows)

    def score(self, rows: Floats) -> Floats:
        turned = _product(rows - self._centre, self._turn) - self._shift
        return np.sqrt(np.square(_product(turned, self._root)).sum(axis=1))[:, None]


def _robust_estimate(sample: Floats, random: np.random.RandomState) -> tuple[Floats, Floats]:
    """Location and inverse covariance of the tightest half of the rows.

    Where columns are mostly one value, the tightest half lies in a plane: its
    determinant is 0 whichever half it is, and its inverse would count a step
    off the plane for nothing. All rows, shrunk, tell more then.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it reports rank and convergence in passing
            half = MinCovDet(random_state=random).fit(sample)
        if not _is_flat(half.covariance_, sample):
            return half.location_, half.precision_
    except ValueError:  # more than half of the rows are equal
        pass
    return sample.mean(axis=0), np.linalg.inv(ledoit_wolf(sample)[0])


def _is_flat(covariance: Floats, sample: Floats) -> bool:
    """Whether a covariance has next to no extent in a direction in which the rows have some."""
    centred = sample - sample.mean(axis=0)
    turn = _whitening(centred, centred.shape[1])
    return bool(np.linalg.eigvalsh(turn.T @ covariance @ turn)[0] < _FLAT)


def _whitening(centred: Floats, n_components: int) -> Floats:
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    real = singular[:n_components] > 1e-8 * singular[0]
    scale = np.sqrt(len(centred)) / singular[:n_components][real]
    return directions[:n_components][real].T * scale


def _product(rows: Floats, matrix: Floats) -> Floats:
    """Matrix product in blocks of fixed height, so that a row's result ignores the others."""
    result = np.empty((len(rows), matrix.shape[1]))
    padded = np.zeros((_BLOCK, rows.shape[1]))
    for part in _blocks(len(rows), _BLOCK):
        size = part.stop - part.start
        padded[:size] = rows[part]
        result[part] = (padded @ matrix)[:size]
    return result
