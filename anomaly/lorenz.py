"""The Lorenz system as a bearing with three axes, healthy, broken or in between.

python -m anomaly.lorenz --state broken --seconds 30 --csv broken.csv
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Step of the integration; one step is one sample of 10 ms.
STEP = 0.008
START = (2.0, 3.0, 4.0)

# Standard deviation of each healthy axis, the unit of noise.
SPREAD = (7.92, 8.99, 8.62)


class Constants(NamedTuple):
    """Constants of the Lorenz equations."""

    a: float
    b: float
    c: float


HEALTHY = Constants(10.0, 28.0, 8.0 / 3.0)
BROKEN = Constants(30.0, 128.0, 28.0 / 3.0)


def between(fraction: float) -> Constants:
    """Constants a given share of the way from healthy (0) to broken (1).

    Examples
    --------
    >>> from anomaly.lorenz import between
    >>> between(0.5)
    Constants(a=20.0, b=78.0, c=6.0)
    """
    if fraction in (0.0, 1.0):
        return BROKEN if fraction else HEALTHY
    return Constants(*(h + fraction * (b - h) for h, b in zip(HEALTHY, BROKEN, strict=True)))


def steps(
    schedule: Callable[[int], float], start: tuple[float, float, float] = START
) -> Iterator[tuple[float, float, float]]:
    """Samples without end; each step uses the axes already moved in it.

    Parameters
    ----------
    schedule : callable
        Takes the number of the sample, from 0, and returns the share of the way
        from healthy to broken. The position of the system is kept when it changes.
    start : tuple of 3 floats
        Position before the first sample.

    Yields
    ------
    tuple of 3 floats
        ``x, y, z`` after each step.
    """
    x, y, z = start
    h, number, fraction = STEP, 0, None
    while True:
        if schedule(number) != fraction:
            fraction = schedule(number)
            a, b, c = between(fraction)
        x += h * a * (y - x)
        y += h * (x * (b - z) - y)
        z += h * (x * y - c * z)
        yield x, y, z
        number += 1


def simulate(
    n_samples: int,
    fraction: float | Callable[[int], float] = 0.0,
    *,
    noise: float = 0.0,
    start: tuple[float, float, float] = START,
    random_state: int | np.random.Generator | None = None,
) -> NDArray[np.float64]:
    """Simulate a recording at 100 Hz.

    Parameters
    ----------
    n_samples : int
    fraction : float or callable, default 0.0
        Share of the way from healthy (0) to broken (1), or a schedule as in `steps`.
    noise : float, default 0.0
        Standard deviation of the added Gaussian noise, as a share of the healthy
        standard deviation of each axis.
    start : tuple of 3 floats
    random_state : int, Generator or None
        Seed of the noise.

    Returns
    -------
    ndarray of shape (n_samples, 3)

    References
    ----------
    E. N. Lorenz, "Deterministic Nonperiodic Flow", J. Atmos. Sci. 20, 1963.

    Examples
    --------
    >>> from anomaly.lorenz import simulate
    >>> simulate(2).round(4).tolist()
    [[2.08, 3.3754, 3.9708], [2.1836, 3.7681, 3.9519]]
    """
    schedule = fraction if callable(fraction) else lambda _number: fraction
    walk = steps(schedule, start)
    clean = np.array([next(walk) for _ in range(n_samples)]).reshape(n_samples, 3)
    if noise == 0.0:
        return clean
    rng = np.random.default_rng(random_state)
    return clean + rng.normal(size=clean.shape) * (noise * np.array(SPREAD))
