"""Synthetic KPI windows: families of normal behaviour, and anomalies injected into them.

The shipped value model is trained on what this module makes, so that it can be
made again from a seed by anyone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Factors on the tested point, and shifts of it in robust sigmas of the steps of A.
MULTIPLES = (0.0, 0.25, 0.5, 0.75, 1.25, 1.5, 1.75, 2.0, 2.75, 5.0, 10.0)
SHIFTS = (-40.0, -20.0, -12.0, -8.0, -5.0, -3.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0)

DAY = 1440.0
WEEK = 7 * DAY


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform between two positive bounds."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def make_windows(
    n: int, window: int = 180, *, random_state: int | np.random.Generator = 0
) -> tuple[Array, NDArray[np.str_]]:
    """Make normal windows of many kinds of metric.

    Parameters
    ----------
    n : int
        How many.
    window : int, default=180
        Points before the tested one.
    random_state : int or Generator, default=0

    Returns
    -------
    X : ndarray of shape (n, 5 * window + 3)
        In the order data_c, data_b, data_a.
    families : ndarray of str of shape (n,)
        The name of each window's shape and noise.

    Examples
    --------
    >>> from anomaly.kpi_families import make_windows
    >>> X, families = make_windows(3, window=20, random_state=1)
    >>> X.shape
    (3, 103)
    """
    rng = np.random.default_rng(random_state)
    rows, names = [], []
    for _ in range(n):
        row, name = make_window(rng, window)
        rows.append(row)
        names.append(name)
    return np.array(rows).reshape(n, 5 * window + 3), np.array(names, dtype=str)


def step_sigma(X: Array, window: int) -> Array:
    """Robust standard deviation of the steps of A before the tested point, one per window."""
    steps = np.diff(X[:, 4 * window + 2 : -1], axis=1)
    centre = np.nanmedian(steps, axis=1, keepdims=True)
    return np.asarray(1.4826 * np.nanmedian(np.abs(steps - centre), axis=1))


def grid_injections(X: Array, window: int) -> dict[str, Array]:
    """Every factor of `MULTIPLES` and every shift of `SHIFTS` on the tested point.

    Returns
    -------
    dict of str to ndarray of shape (n,)
        Names such as ``"×0.25"`` and ``"+8σ"``, and the values of the tested
        points that they make.
    """
    last, sigma = X[:, -1], step_sigma(X, window)
    found = {f"×{factor:g}": last * factor for factor in MULTIPLES}
    return found | {f"{shift:+g}σ": last + shift * sigma for shift in SHIFTS}


def inject_windows(
    X: Array, window: int, *, random_state: int | np.random.Generator = 0
) -> tuple[Array, NDArray[np.int64]]:
    """Make one anomaly of a random kind in each window.

    Most change the tested point only; one in four is a level shift that began
    up to 20 points earlier. The change is a factor of 0 to 12 or 3 to 40 robust
    sigmas of the steps.

    Returns
    -------
    changed : ndarray of shape (m, 5 * window + 3)
        Without the windows that the change left as they were.
    sources : ndarray of int of shape (m,)
        Row of ``X`` that each was made from.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.kpi_families import inject_windows
    >>> from anomaly.kpi_families import make_windows
    >>> X, _ = make_windows(100, 20, random_state=1)
    >>> changed, sources = inject_windows(X, 20, random_state=1)
    >>> len(changed) > 80, bool(np.all(changed[:, -1] != X[sources, -1]))
    (True, True)
    """
    rng = np.random.default_rng(random_state)
    changed, sigma = X.copy(), step_sigma(X, window)
    known = X[:, :-1][:, -window:]
    whole = np.all(np.isnan(known) | (known == np.round(known)), axis=1)
    for i, row in enumerate(changed):
        length = 1 if rng.random() < 0.75 else int(rng.integers(2, min(21, window)))
        part = row[-length:]
        if rng.random() < 0.45:
            part *= _random_factor(rng)
        else:
            part += _random_shift(rng) * sigma[i]
        if whole[i] and rng.random() < 0.7:
            part[:] = np.round(part)
    kept = np.flatnonzero(np.abs(changed[:, -1] - X[:, -1]) > 1e-12)
    return changed[kept], kept


def _random_factor(rng: np.random.Generator) -> float:
    if rng.random() < 0.6:
        return float(rng.choice(MULTIPLES))
    return rng.uniform(0, 0.8) if rng.random() < 0.5 else log_uniform(rng, 1.2, 12)


def _random_shift(rng: np.random.Generator) -> float:
    if rng.random() < 0.6:
        return float(rng.choice(SHIFTS))
    return log_uniform(rng, 3, 40) * float(rng.choice([-1, 1]))


def make_window(rng: np.random.Generator, window: int) -> tuple[Array, str]:
    """Make one normal window and name its family."""
    step = float(rng.choice([1, 1, 1, 5, 5, 15]))
    now = rng.uniform(0, WEEK)
    full = np.arange(-window, window + 1) * step
    times = np.concatenate([now - WEEK + full, now - DAY + full, now + full[: window + 1]])
    day = np.repeat([0, 1, 2], [2 * window + 1, 2 * window + 1, window + 1])
    return _metric(rng, times, day, lambda: _days_differ(rng)[day], window)


def make_series(
    days: float = 10, step: float = 5, *, random_state: int | np.random.Generator = 0
) -> tuple[Array, str]:
    """Make one normal series of the same families as `make_windows`.

    Parameters
    ----------
    days : float, default=10
        Length.
    step : float, default=5
        Minutes between points.
    random_state : int or Generator, default=0

    Returns
    -------
    values : ndarray of shape (round(days * 1440 / step),)
        Days differ as a whole, as those of a window do, without a jump between them.
    family : str
        Name of the shape and noise.

    Examples
    --------
    >>> from anomaly.kpi_families import make_series
    >>> values, family = make_series(9, step=15, random_state=1)
    >>> values.shape
    (864,)
    """
    rng = np.random.default_rng(random_state)
    since = step * np.arange(round(days * DAY / step), dtype=np.float64)
    times: Array = rng.uniform(0, WEEK) - WEEK + since
    noons = np.arange(0.5, days + 1.5)

    def differ() -> Array:
        spread = 0.04 if rng.random() < 0.85 else 0.3
        return np.exp(np.interp(since / DAY, noons, rng.normal(0, spread, len(noons))))

    return _metric(rng, times, (since // DAY).astype(int), differ, len(since) // 20)


def _metric(
    rng: np.random.Generator,
    times: Array,
    day: NDArray[np.int64],
    days_differ: Callable[[], Array],
    window: int,
) -> tuple[Array, str]:
    """Normal values at the given minutes, and the name of their family."""
    shape_name = str(rng.choice(list(SHAPES), p=_weights(SHAPE_WEIGHTS)))
    noise_name = str(rng.choice(list(NOISES), p=_weights(NOISE_WEIGHTS)))
    level = _level(rng)
    signal = level * SHAPES[shape_name](rng, times)
    signal = signal * days_differ()
    if rng.random() < 0.06:
        signal = _regime(rng, signal, window)
    if rng.random() < 0.2:
        signal = signal + level * _schedule(rng, times)
    row = NOISES[noise_name](rng, signal, day)
    if rng.random() < 0.07:
        row = row + level * _bursts(rng, len(row))
    return _finish(rng, row, level), f"{shape_name}-{noise_name}"


def _weights(weights: tuple[float, ...]) -> Array:
    total = np.array(weights)
    return np.asarray(total / total.sum())


def _level(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.12:
        return log_uniform(rng, 0.2, 30)
    return log_uniform(rng, 30, 1e4) if kind < 0.6 else log_uniform(rng, 1e4, 1e9)


def _days_differ(rng: np.random.Generator) -> Array:
    """How much last week, yesterday and today differ as a whole."""
    if rng.random() < 0.85:
        return np.exp(rng.normal(0, 0.04, 3))
    return np.exp(rng.normal(0, 0.3, 3))


def _regime(rng: np.random.Generator, signal: Array, window: int) -> Array:
    """A change of level that is old news by the tested point."""
    factor = log_uniform(rng, 0.3, 3)
    last = len(signal) - max(8, window // 6)
    changed = signal.copy()
    changed[int(rng.integers(1, last)) :] *= factor
    return changed


def _schedule(rng: np.random.Generator, times: Array) -> Array:
    """Jobs that run every so many minutes, alike every day, some a little off the minute."""
    period = float(rng.choice([10, 15, 30, 60, 60, 120, DAY]))
    width = float(rng.choice([1, 2, 5])) if period < 30 else float(rng.choice([1, 3, 10, 20]))
    phase = (times - rng.uniform(0, period)) % period
    jitter = rng.uniform(0, width / 2) if rng.random() < 0.3 else 0.0
    height = log_uniform(rng, 0.05, 3) * np.exp(rng.normal(0, rng.uniform(0, 0.15), len(times)))
    return np.where((phase >= jitter) & (phase < jitter + width), height, 0.0)


def _bursts(rng: np.random.Generator, n: int) -> Array:
    """Unannounced bursts that belong to the metric's everyday life."""
    share = log_uniform(rng, 0.001, 0.03)
    heights = log_uniform(rng, 0.1, 2) * np.exp(rng.normal(0, 0.6, n))
    hit = rng.random(n) < share
    fade = rng.choice([0.0, 0.0, 0.5, 0.8])
    bursts = np.where(hit, heights, 0.0)
    if fade > 0:
        for i in range(1, n):
            bursts[i] += fade * bursts[i - 1]
    return bursts


def _finish(rng: np.random.Generator, row: Array, level: float) -> Array:
    """What meters do to numbers: whole counts, decimals, limits."""
    kind = rng.random()
    if kind < 0.6 and level >= 5:
        row = np.round(row)
    elif kind < 0.75:
        unit = level * log_uniform(rng, 1e-4, 3e-2)
        row = np.round(row / unit) * unit
    if rng.random() < 0.9:
        row = np.maximum(row, 0.0)
    return np.asarray(row)


# --- shapes: the expected value over the week, about 1 ---


def _daily(rng: np.random.Generator, times: Array) -> Array:
    angle = 2 * np.pi * times / DAY
    strength, total = log_uniform(rng, 0.05, 1.6), np.zeros(len(times))
    for k in range(1, 5):
        total += rng.normal(0, strength / k**1.3) * np.sin(k * angle + rng.uniform(0, 2 * np.pi))
    weekly = rng.normal(0, 0.15) * np.sin(2 * np.pi * times / WEEK + rng.uniform(0, 2 * np.pi))
    return np.asarray(np.exp(total + weekly))


def _flat(rng: np.random.Generator, times: Array) -> Array:
    return np.ones(len(times))


def _trend(rng: np.random.Generator, times: Array) -> Array:
    return np.asarray(1 + rng.normal(0, 0.4) * (times + WEEK) / (2 * WEEK))


def _counter(rng: np.random.Generator, times: Array) -> Array:
    """A total that grows and starts again now and then."""
    period = log_uniform(rng, 600, 40000)
    return np.asarray(((times + rng.uniform(0, period)) % period) / period + 0.2)


def _office(rng: np.random.Generator, times: Array) -> Array:
    """Nothing outside working hours."""
    return np.maximum(_daily(rng, times) - rng.uniform(0.4, 1.0), 0.0)


def _wandering(rng: np.random.Generator, times: Array) -> Array:
    """A slow random walk, each day its own."""
    pace = log_uniform(rng, 0.001, 0.01)
    return np.asarray(np.exp(np.cumsum(rng.normal(0, pace, len(times)))))


def _stairs(rng: np.random.Generator, times: Array) -> Array:
    """Constant stretches, a new level every few hours."""
    length = log_uniform(rng, 200, 4000)
    steps = np.floor((times + WEEK + 3000 + rng.uniform(0, length)) / length).astype(int)
    heights = np.exp(rng.normal(0, 0.3, steps.max() + 1))
    return np.asarray(heights[steps])


def _switching(rng: np.random.Generator, times: Array) -> Array:
    """Two levels by the clock, alike every day."""
    period = float(rng.choice([20, 60, 120, 720]))
    high = ((times - rng.uniform(0, period)) % period) < period * rng.uniform(0.2, 0.8)
    return np.where(high, 1.0 + log_uniform(rng, 0.05, 3), 1.0)


SHAPES: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "daily": _daily,
    "flat": _flat,
    "trend": _trend,
    "counter": _counter,
    "office": _office,
    "wandering": _wandering,
    "stairs": _stairs,
    "switching": _switching,
}
SHAPE_WEIGHTS = (10, 3, 1, 1, 1, 2, 1, 1)


# --- noises: what is measured around the expected value ---


def _smoothed(rng: np.random.Generator, values: Array) -> Array:
    """The same noise with a memory, standard deviation kept."""
    memory = float(rng.choice([0.0, 0.0, 0.3, 0.6, 0.9]))
    if memory == 0:
        return values
    out = values.copy()
    fresh = float(np.sqrt(1 - memory**2))
    for i in range(1, len(out)):
        out[i] = memory * out[i - 1] + fresh * values[i]
    return out


def _relative(rng: np.random.Generator, signal: Array, day: NDArray[np.int64]) -> Array:
    noise = _smoothed(rng, rng.normal(size=len(signal)))
    return np.asarray(signal * np.exp(log_uniform(rng, 0.002, 0.13) * noise))


def _additive(rng: np.random.Generator, signal: Array, day: NDArray[np.int64]) -> Array:
    noise = _smoothed(rng, rng.normal(size=len(signal)))
    return np.asarray(signal + log_uniform(rng, 0.002, 0.1) * (signal.mean() + 1e-9) * noise)


def _poisson(rng: np.random.Generator, signal: Array, day: NDArray[np.int64]) -> Array:
    return rng.poisson(np.clip(signal, 0, 1e12)).astype(float)


def _crowded(rng: np.random.Generator, signal: Array, day: NDArray[np.int64]) -> Array:
    """Counts that vary more than chance alone (negative binomial)."""
    size = log_uniform(rng, 1, 100)
    return rng.poisson(np.clip(signal, 0, 1e12) * rng.gamma(size, 1 / size, len(signal))).astype(
        float
    )


def _heavy(rng: np.random.Generator, signal: Array, day: NDArray[np.int64]) -> Array:
    noise = np.clip(rng.standard_t(rng.uniform(1.7, 5), len(signal)), -60, 60)
    return np.asarray(signal + log_uniform(rng, 0.002, 0.05) * (signal.mean() + 1e-9) * noise)


def _skewed(rng: np.random.Generator, signal: Array, day: NDArray[np.int64]) -> Array:
    """Latencies: a long tail upwards."""
    width = log_uniform(rng, 0.03, 0.5)
    return np.asarray(signal * np.exp(_smoothed(rng, rng.normal(0, width, len(signal)))))


def _silent(rng: np.random.Generator, signal: Array, day: NDArray[np.int64]) -> Array:
    return np.asarray(signal * np.exp(rng.normal(0, log_uniform(rng, 1e-6, 1e-3), len(signal))))


NOISES: dict[str, Callable[[np.random.Generator, Array, NDArray[np.int64]], Array]] = {
    "relative": _relative,
    "additive": _additive,
    "poisson": _poisson,
    "crowded": _crowded,
    "heavy": _heavy,
    "skewed": _skewed,
    "silent": _silent,
}
NOISE_WEIGHTS = (8, 4, 4, 0.6, 0.6, 0.6, 0.8)
