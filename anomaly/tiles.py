"""Context-tile novelty: a stream detector of constant cost and memory."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.utils.validation import check_is_fitted

from anomaly import _core
from anomaly.base import Interval
from anomaly.errors import ParameterError
from anomaly.streaming import StreamDetector

__all__ = ["TileDetector"]


class TileDetector(StreamDetector):
    """Find the unusual in a stream by whether its place was ever visited.

    A value is seen in seven contexts: alone, with the value before, with the
    hour, with a short and a long mean, its spread, and spread with mean. Each
    context is cut into tiles by several shifted tilings, and one set of bits
    remembers every tile that was entered. The share of new tiles, averaged over
    a few records, is compared with its own past; a value outside the range of
    all before counts as well. After an alarm the detector rests.

    With several fields each has its contexts, and pairs of fields have one
    each; the strongest field or the pairs decide.

    Parameters
    ----------
    learning_period : int, default=600
        Records that are only learnt: centre, scale and first tiles come from them.
    settling_period : int, default=300
        A learning period that is much shorter (less than 80 %) only makes scores begin
        earlier: with this many records all is learnt anew, as if the learning period
        had been that long. 0 turns this off.
    n_tilings : int, default=12
        Shifted tilings per context.
    tile_size : float, default=0.2
        Width of a tile in units of the squashed value.
    n_bits : int, default=262144
        Size of the set of tiles per field, a power of two; a tile is two bits of
        one of its words.
    window_size : int, default=10
        Records whose novelty is averaged.
    likelihood_lag : int, default=50
        Records after which novelty becomes part of the past.
    likelihood_period : int, default=4000
        Records after which the past fades.
    skip : float, default=0.8
        Share of the learning period whose novelty is not part of the past.
    mean_floor, variance_floor : float, default=0.01, 0.0003
        Least mean and variance of novelty that are assumed.
    power : int, default=8
        Exponent of the mean over contexts; 1 is the plain mean.
    deviation_scale : float, default=4.25
        Deviation of novelty from its past that is an alarm.
    range_scale : float, default=0.05
        Distance outside the range, as a share of it, that is an alarm.
    range_period : int or None, default=None
        Records after which the range is forgotten, at the latest after twice as
        many; None remembers it for ever.
    rest_period : int or None, default=None
        Records of half volume after an alarm; None means
        ``int(60 + 0.2 * learning_period)``, of the prolonged one where it is.
    fatigue : float, default=0.05
        How much each recent alarm lowers the next score.
    fatigue_period : float, default=3000
        Records in which an alarm is forgotten.
    max_pairs : int, default=100
        Pairs of fields that are watched, neighbours first.
    threshold : float, default=0.5
        Likelihood from which a record is an anomaly.
    learning : bool, default=True
        False freezes what was learnt.
    random_state : int, RandomState instance or None, default=0
        Seed of the hash that maps tiles to bits.

    Attributes
    ----------
    counts_ : StreamCounts
        Records so far, and how many were missing, infinite or out of order.
    memory_bytes_ : int
        Memory of the state, constant after the learning period.

    Notes
    -----
    It does not forecast: the value expected next is the last one.

    Examples
    --------
    >>> from anomaly.tiles import TileDetector
    >>> detector = TileDetector(learning_period=200)
    >>> for t in range(1000):
    ...     _ = detector.process_one([0.0, 1.0, 4.0, 1.0][t % 4], timestamp=60.0 * t)
    >>> answer = detector.process_one(9.0, timestamp=60_000.0)
    >>> answer.predicted, answer.likelihood, answer.is_anomaly
    (1.0, 0.8, True)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **StreamDetector._parameter_constraints,
        "learning_period": [Interval(Integral, 1, 10**7, closed="both")],
        "settling_period": [Interval(Integral, 0, 10**7, closed="both")],
        "n_tilings": [Interval(Integral, 1, 255, closed="both")],
        "tile_size": [Interval(Real, 1e-6, 1e6, closed="both")],
        "n_bits": [Interval(Integral, 64, 2**30, closed="both")],
        "window_size": [Interval(Integral, 1, 64, closed="both")],
        "likelihood_lag": [Interval(Integral, 0, 10**4, closed="both")],
        "likelihood_period": [Interval(Real, 1, None, closed="left")],
        "skip": [Interval(Real, 0, 10**6, closed="both")],
        "mean_floor": [Interval(Real, 0, None, closed="left")],
        "variance_floor": [Interval(Real, 0, None, closed="neither")],
        "power": [Interval(Integral, 1, 64, closed="both")],
        "deviation_scale": [Interval(Real, 0, None, closed="neither")],
        "range_scale": [Interval(Real, 0, None, closed="neither")],
        "range_period": [Interval(Integral, 1, 10**12, closed="both"), None],
        "rest_period": [Interval(Integral, 0, 10**12, closed="both"), None],
        "fatigue": [Interval(Real, 0, None, closed="left")],
        "fatigue_period": [Interval(Real, 0, None, closed="neither")],
        "max_pairs": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        learning_period: int = 600,
        *,
        settling_period: int = 300,
        n_tilings: int = 12,
        tile_size: float = 0.2,
        n_bits: int = 2**18,
        window_size: int = 10,
        likelihood_lag: int = 50,
        likelihood_period: float = 4000,
        skip: float = 0.8,
        mean_floor: float = 0.01,
        variance_floor: float = 0.0003,
        power: int = 8,
        deviation_scale: float = 4.25,
        range_scale: float = 0.05,
        range_period: int | None = None,
        rest_period: int | None = None,
        fatigue: float = 0.05,
        fatigue_period: float = 3000,
        max_pairs: int = 100,
        threshold: float = 0.5,
        learning: bool = True,
        random_state: Any = 0,
    ) -> None:
        self.learning_period = learning_period
        self.settling_period = settling_period
        self.n_tilings = n_tilings
        self.tile_size = tile_size
        self.n_bits = n_bits
        self.window_size = window_size
        self.likelihood_lag = likelihood_lag
        self.likelihood_period = likelihood_period
        self.skip = skip
        self.mean_floor = mean_floor
        self.variance_floor = variance_floor
        self.power = power
        self.deviation_scale = deviation_scale
        self.range_scale = range_scale
        self.range_period = range_period
        self.rest_period = rest_period
        self.fatigue = fatigue
        self.fatigue_period = fatigue_period
        self.max_pairs = max_pairs
        self.threshold = threshold
        self.learning = learning
        self.random_state = random_state

    def predict_one(self, steps: int = 1) -> Any:
        """The value expected so many records ahead: the last one, whatever ``steps`` is."""
        check_is_fitted(self)
        record = self._one([float("nan")] * self.n_features_in_, None, 0)
        return record.predicted

    def _new_stream(self, n_fields: int) -> Any:
        if n_fields > 4096:
            raise ParameterError(f"at most 4096 fields fit one detector, got {n_fields}")
        rest = self.rest_period
        return _core.new_tiles(
            n_fields=n_fields,
            n_pairs=min(n_fields * (n_fields - 1) // 2, self.max_pairs),
            n_tilings=self.n_tilings,
            log2_bits=min((self.n_bits * n_fields - 1).bit_length(), 30),
            window=self.window_size,
            lag=self.likelihood_lag,
            power=self.power,
            learning=self.learning_period,
            settling=self.settling_period,
            skip=self.skip,
            range_block=self.range_period or 0,
            width=self.tile_size,
            mean_floor=self.mean_floor,
            variance_floor=self.variance_floor,
            horizon=self.likelihood_period,
            deviation_scale=self.deviation_scale,
            range_scale=self.range_scale,
            fatigue=self.fatigue,
            fatigue_period=self.fatigue_period,
            rest=60 if rest is None else rest,
            rest_share=0.2 if rest is None else 0.0,
            seed=self._seed(),
        )
