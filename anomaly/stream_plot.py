"""Pictures of a stream: value, prediction, scores and alarms."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomaly.errors import DataError
from anomaly.files import write_aside
from anomaly.streaming import StreamRecord, StreamResult, moment_of

__all__ = ["LivePlot", "plot_stream"]

_BLUE, _ORANGE, _GREY, _RED = "#1f5fa8", "#d98c1f", "#8a8f98", "#c0392b"


def plot_stream(
    result: StreamResult | pd.DataFrame,
    path: str | os.PathLike[str] | None = None,
    *,
    threshold: float | None = None,
    title: str = "",
) -> Figure:
    """Draw value and prediction above, scores, threshold and shaded alarms below.

    Parameters
    ----------
    result : StreamResult or DataFrame
        What ``process_many`` returned, or its ``to_frame()``. Of several fields
        each gets its own panel.
    path : str or PathLike, optional
        Where to write the picture, as PNG.
    threshold : float, optional
        Likelihood drawn as a line; by default that of the result, or 0.5.
    title : str, default=""

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> from anomaly.stream_plot import plot_stream
    >>> from anomaly.tiles import TileDetector
    >>> result = TileDetector(50).process_many([0.0, 1.0] * 100 + [7.0])
    >>> len(plot_stream(result).axes)
    2
    """
    if isinstance(result, StreamResult):
        threshold = result.threshold if threshold is None else threshold
        result = result.to_frame()
    if not len(result):
        raise DataError("there is nothing to draw: no records")
    figure = Figure(figsize=(12, 2.6 * (1 + len(_panels(result)))), layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure, result, 0.5 if threshold is None else threshold, title)
    if path is not None:
        _write(figure, path)
    return figure


def _panels(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of value and prediction columns."""
    if "value" in frame:
        return [("value", "predicted")]
    columns = [str(name) for name in frame.columns]
    names = [name.removeprefix("predicted_") for name in columns if name.startswith("predicted_")]
    return [(name, f"predicted_{name}") for name in names]


def _draw(figure: Figure, frame: pd.DataFrame, threshold: float, title: str) -> None:
    panels = _panels(frame)
    axes = np.atleast_1d(figure.subplots(len(panels) + 1, 1, sharex=True))
    x = _clock(frame)
    for axis, (value, predicted) in zip(axes[:-1], panels, strict=True):
        axis.plot(x, _drawable(frame[predicted]), color=_ORANGE, linewidth=0.8, label="predicted")
        axis.plot(x, _drawable(frame[value]), color=_BLUE, linewidth=0.9, label=value)
        axis.legend(loc="upper left", frameon=False, ncols=2)
    scores = axes[-1]
    scores.plot(x, frame["raw_score"], color=_GREY, linewidth=0.5, alpha=0.7, label="raw score")
    scores.plot(x, frame["likelihood"], color=_BLUE, linewidth=0.9, label="likelihood")
    scores.axhline(threshold, color=_RED, linewidth=0.8, linestyle="--", label="threshold")
    scores.set_ylim(-0.02, 1.02)
    scores.legend(loc="upper left", frameon=False, ncols=3)
    _shade(axes, x, frame["is_anomaly"].to_numpy(dtype=bool))
    axes[0].set_title(title)


def _clock(frame: pd.DataFrame) -> NDArray[Any]:
    """When to draw each record: by its stamp, else the one before, else its number."""
    if "timestamp" not in frame or frame["timestamp"].isna().all():
        return np.arange(len(frame))
    return frame["timestamp"].ffill().bfill().to_numpy()


def _drawable(values: pd.Series[float]) -> NDArray[np.float64]:
    """Values that the arithmetic of axes can bear; none where they are infinite."""
    finite = values.where(np.isfinite(values)).to_numpy(dtype=np.float64)
    return np.clip(finite, -1e150, 1e150)


def _moment(seconds: float) -> Any:
    try:
        return moment_of(seconds)
    except (OverflowError, ValueError, OSError):  # no calendar reaches that far
        return pd.NaT


def _shade(axes: Any, x: Any, alarms: Any) -> None:
    edges = np.flatnonzero(np.diff(np.r_[False, alarms, False].astype(int)))
    for first, last in zip(edges[::2], edges[1::2] - 1, strict=True):
        for axis in axes:
            axis.axvspan(
                x[max(first - 1, 0)], x[min(last + 1, len(x) - 1)], color=_RED, alpha=0.3, lw=1
            )


def _write(figure: Figure, path: str | os.PathLike[str]) -> None:
    with write_aside(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)


class LivePlot:
    """A picture that follows a running stream.

    With a path the picture is written anew, whole or not at all, so a browser
    or viewer can reload it; without one a window is opened.

    Parameters
    ----------
    path : str, PathLike or None, default=None
        PNG to keep up to date; None opens a window.
    last : int, default=1000
        Records shown.
    every_s : float, default=1.0
        Least time between two pictures in seconds.
    threshold : float, default=0.5
    title : str, default=""

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from anomaly.stream_plot import LivePlot
    >>> from anomaly.tiles import TileDetector
    >>> detector = TileDetector(50)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with LivePlot(f"{folder}/live.png") as plot:
    ...         for t in range(100):
    ...             plot.add(detector.process_one(t % 3))
    ...     pathlib.Path(folder, "live.png").stat().st_size > 1000
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        last: int = 1000,
        every_s: float = 1.0,
        threshold: float = 0.5,
        title: str = "",
    ) -> None:
        self.path = path
        self.every_s = every_s
        self.threshold = threshold
        self.title = title
        self._rows: deque[dict[str, Any]] = deque(maxlen=last)
        self._drawn_at = time.monotonic()
        self._stale = False
        self._figure: Any = None

    def __enter__(self) -> LivePlot:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stale:
            self.draw()

    def add(self, record: StreamRecord, seconds: float | None = None) -> None:
        """Take in a record, and draw if it is time to.

        Parameters
        ----------
        record : StreamRecord
        seconds : float, optional
            Wall clock of the record in seconds since 1970-01-01.
        """
        row: dict[str, Any] = {} if seconds is None else {"timestamp": _moment(seconds)}
        if isinstance(record.value, tuple):
            for i, (value, due) in enumerate(zip(record.value, record.predicted, strict=True)):
                row |= {f"x{i}": value, f"predicted_x{i}": due}
        else:
            row |= {"value": record.value, "predicted": record.predicted}
        row |= {"raw_score": record.raw_score, "likelihood": record.likelihood}
        self._rows.append(row | {"is_anomaly": record.is_anomaly})
        self._stale = True
        self.refresh()

    def refresh(self) -> None:
        """Draw what was added since the last picture, if it is time to.

        Call it while a stream pauses: the last records are then not left out.
        """
        if self._stale and time.monotonic() - self._drawn_at >= self.every_s:
            self.draw()

    def draw(self) -> None:
        """Draw what was taken in so far."""
        if not self._rows:
            return
        frame = pd.DataFrame(list(self._rows))
        if self.path is not None:
            plot_stream(frame, self.path, threshold=self.threshold, title=self.title)
        else:
            self._draw_window(frame)
        self._drawn_at = time.monotonic()
        self._stale = False

    def _draw_window(self, frame: pd.DataFrame) -> None:
        import matplotlib.pyplot as plt

        if self._figure is None:
            plt.ion()
            self._figure = plt.figure(figsize=(12, 5), layout="constrained")
        self._figure.clear()
        _draw(self._figure, frame, self.threshold, self.title)
        self._figure.canvas.draw_idle()
        self._figure.canvas.flush_events()
