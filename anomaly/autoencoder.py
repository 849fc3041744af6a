"""Neural detectors of vibration: windows that a network of healthy ones cannot redraw."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from anomaly.base import Interval, StrOptions
from anomaly.errors import DataError, ParameterError, require
from anomaly.waveform import OVERLAP, WindowDetector, Windows, cut

__all__ = ["ConvAutoencoder", "LSTMAutoencoder", "OnnxAutoencoder"]

# Share of the healthy samples, the last ones, that train nothing: they stop the
# training and set the threshold.
HELD_OUT = 0.3

# Largest norm of a gradient.
CLIP = 1.0


class _Autoencoder(WindowDetector):
    """What both networks share: training, scoring, continuing and export."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **WindowDetector._parameter_constraints,
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "patience": [Interval(Integral, 1, None, closed="left"), None],
        "loss": [StrOptions({"mse", "mae"})],
        "shuffle": ["boolean"],
        "device": [str],
        "random_state": ["random_state"],
    }
    _confidence: ClassVar[float] = 0.9

    network_: Any
    _optimizer: Any

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int | None
    loss: str
    shuffle: bool
    device: str
    random_state: int | np.random.RandomState | None

    def learn_window(self, X: ArrayLike) -> list[float]:
        """Go on training on healthy samples, whatever they are; thresholds stay.

        Whoever calls it sees to it that no fault is learnt:
        `production.mqtt` stops at the first alarm.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_channels)

        Returns
        -------
        list of float
            Loss of each batch.
        """
        return self._train(self._windows([self._scale(np.asarray(X, dtype=float))]), None)

    def export_onnx(self, path: str | Path) -> Path:
        """Write the network, scaling and threshold for `OnnxAutoencoder`.

        Parameters
        ----------
        path : path-like
            By custom ``NAME.onnx``.
        """
        torch = require("torch", extra="torch")
        onnx = require("onnx", extra="onnx")
        require("onnxscript", extra="onnx")
        example = torch.zeros(2, self.window_size, self.n_features_in_)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what its own LSTM does inside
            program = torch.onnx.export(
                self.network_,
                (example,),
                input_names=["windows"],
                output_names=["redrawn"],
                dynamic_shapes=({0: torch.export.Dim("n_windows")},),
                dynamo=True,
                verbose=False,
            )
        model = program.model_proto
        facts = {
            "window_size": self.window_size,
            "mean": self.mean_.tolist(),
            "scale": self.scale_.tolist(),
            "unit": self.unit_,
            "threshold": self.thresholds_["reconstruction"],
            "loss": self.loss,
            "scaling": getattr(self, "scaling", "healthy"),
        }
        entry = model.metadata_props.add()
        entry.key, entry.value = "anomaly", json.dumps(facts)
        onnx.save(model, str(path))
        return Path(path)

    def __getstate__(self) -> dict[str, Any]:
        """Weights as arrays; the training of a loaded detector begins with fresh momenta."""
        state = dict(super().__getstate__())
        if "network_" in state:
            weights = state["network_"].state_dict()
            state["network_"] = {name: value.cpu().numpy() for name, value in weights.items()}
            state["_optimizer"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "network_" in state:
            torch = require("torch", extra="torch")
            weights = {name: torch.tensor(value) for name, value in state["network_"].items()}
            self.network_ = self._build(torch)
            self.network_.load_state_dict(weights)

    # -- what a subclass writes ----------------------------------------------------

    def _build(self, torch: Any) -> Any:
        raise NotImplementedError

    # -- private ---------------------------------------------------------------------

    def _learn_and_calibrate(self, segments: list[NDArray[np.float64]]) -> None:
        learnt, held_out = _split(segments)
        torch = require("torch", extra="torch")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._optimizer = None
            self.network_ = self._build(torch)
            self.losses_ = self._train(self._windows(learnt), self._windows(held_out))
        self.unit_ = 1.0
        self.unit_ = max(float(np.mean(self._errors(self._windows(learnt)))), self.noise_floor**2)
        scores: dict[str, list[NDArray[np.float64]]] = {}
        self._collect(held_out, scores)
        self._calibrate(scores)

    def _windows(self, segments: Sequence[NDArray[np.float64]]) -> Windows:
        """Windows to train on; shorter segments are repeated to fill one."""
        hop = max(1, self.window_size // OVERLAP)
        cuts = [cut(_filled(s, self.window_size), self.window_size, hop) for s in segments]
        return np.concatenate(cuts)

    def _train(self, windows: Windows, held_out: Windows | None) -> list[float]:
        """Losses of all batches; the best epoch on held-out windows is kept."""
        torch = require("torch", extra="torch")
        place = _place(torch, self.device)
        network = self.network_.to(place)
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        data = torch.as_tensor(windows, dtype=torch.float32, device=place)
        losses: list[float] = []
        best, best_state, since = np.inf, None, 0
        for _ in range(self.epochs):
            losses += self._train_epoch(torch, network, data)
            if held_out is None or self.patience is None:
                continue
            error = float(np.mean(self._errors(held_out, unit=1.0)))
            since += 1
            if error < best:
                best, since = error, 0
                best_state = {k: v.detach().clone() for k, v in network.state_dict().items()}
            if since >= self.patience:
                break
        if best_state is not None:
            network.load_state_dict(best_state)
        self.network_ = network.to("cpu")
        return losses

    def _train_epoch(self, torch: Any, network: Any, data: Any) -> list[float]:
        criterion = (
            torch.nn.functional.mse_loss if self.loss == "mse" else torch.nn.functional.l1_loss
        )
        order = torch.randperm(len(data)) if self.shuffle else torch.arange(len(data))
        losses = []
        network.train()
        for rows in order.split(self.batch_size):
            batch = data[rows.to(data.device)]
            self._optimizer.zero_grad()
            loss = criterion(network(batch), batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            self._optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    def _redrawn(self, windows: Windows) -> NDArray[np.float64]:
        torch = require("torch", extra="torch")
        self.network_.eval()
        place = next(self.network_.parameters()).device
        with torch.no_grad():
            data = torch.as_tensor(windows, dtype=torch.float32, device=place)
            return self.network_(data).cpu().numpy().astype(np.float64)

    def _errors(self, windows: Windows, unit: float | None = None) -> NDArray[np.float64]:
        filled = np.stack([_filled(w, self.window_size) for w in windows])
        away = np.abs(self._redrawn(filled) - filled)
        per_window = np.mean(away**2 if self.loss == "mse" else away, axis=(1, 2))
        return per_window / (self.unit_ if unit is None else unit)

    def _parts(self, windows: Windows) -> dict[str, NDArray[np.float64]]:
        return {"reconstruction": self._errors(windows)}

    def explain(self, X: ArrayLike) -> list[dict[str, Any]]:
        """Say for each window which channel and sample are redrawn worst.

        Parameters
        ----------
        X : array-like of shape (n_windows, window_size, n_channels)

        Returns
        -------
        list of dict
            ``decision``, ``channel``, ``channels`` (shares, which sum to 1) and ``sample``.
        """
        windows = self._scale(self._check(X, reset=False))
        squares = (self._redrawn(windows) - windows) ** 2
        answers = []
        for decision, square in zip(self._decide(windows), squares, strict=True):
            by_channel = square.mean(axis=0)
            answers.append(
                {
                    "decision": float(decision),
                    "channel": int(np.argmax(by_channel)),
                    "channels": (by_channel / max(by_channel.sum(), 1e-300)).tolist(),
                    "sample": int(np.argmax(square.mean(axis=1))),
                }
            )
        return answers


class ConvAutoencoder(_Autoencoder):
    """A small one-dimensional convolutional autoencoder of healthy windows.

    Two strided convolutions squeeze a window to a quarter of its length and
    ``n_codes`` channels, two more draw it again. What was not healthy is drawn
    badly.

    Parameters
    ----------
    window_size : int, default 100
        Samples per window.
    n_filters : int, default 24
        Channels of the outer convolutions.
    n_codes : int, default 4
        Channels of the code.
    epochs, batch_size, learning_rate
        Training by Adam, at most so many epochs.
    patience : int or None, default 20
        Epochs without improvement on held-out healthy windows before it stops.
    loss : {"mse", "mae"}
    shuffle : bool
    false_alarm_rate, noise_floor
        As of `anomaly.vibration.VibrationDetector`.
    device : str, default "auto"
        ``auto`` trains on a GPU where there is one; scores are made on the CPU.
    random_state : int or None

    Attributes
    ----------
    network_ : torch.nn.Module
    losses_ : list of float
        Of each training batch.

    Examples
    --------
    ``ConvAutoencoder(random_state=0).fit(healthy).predict(windows)``
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_Autoencoder._parameter_constraints,
        "n_filters": [Interval(Integral, 1, None, closed="left")],
        "n_codes": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        window_size: int = 100,
        n_filters: int = 24,
        n_codes: int = 4,
        epochs: int = 200,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        patience: int | None = 20,
        loss: str = "mse",
        shuffle: bool = True,
        false_alarm_rate: float = 0.001,
        noise_floor: float = 1e-3,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.window_size = window_size
        self.n_filters = n_filters
        self.n_codes = n_codes
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.loss = loss
        self.shuffle = shuffle
        self.false_alarm_rate = false_alarm_rate
        self.noise_floor = noise_floor
        self.device = device
        self.random_state = random_state

    def _build(self, torch: Any) -> Any:
        from anomaly.networks import convolutional

        return convolutional(self.n_features_in_, self.n_filters, self.n_codes, self.window_size)


class LSTMAutoencoder(_Autoencoder):
    """An autoencoder of LSTM layers; `original` makes the published one.

    Parameters
    ----------
    window_size : int, default 100
        Samples per window.
    n_layers : int, default 2
    n_units : int, default 32
        Per layer.
    n_codes : int or None, default 4
        Units of a narrow layer in the middle; None leaves it out.
    scaling : {"healthy", "window"}, default "healthy"
        By healthy mean and standard deviation, or, as the original did, each
        signal by its own minimum and maximum, which hides what is merely louder.
    threshold : float or None, default None
        Loss that alarms; None calibrates it on held-out healthy windows.
    epochs, batch_size, learning_rate, patience, loss, shuffle, false_alarm_rate, \
noise_floor, device, random_state
        As of `ConvAutoencoder`.

    Attributes
    ----------
    network_ : torch.nn.Module
    losses_ : list of float
        Of each training batch.

    References
    ----------
    R. Kienzler, "Anomaly detection using Keras and TensorFlow", IBM developerWorks, 2018.

    Examples
    --------
    ``LSTMAutoencoder(random_state=0).fit(healthy).predict(windows)``
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_Autoencoder._parameter_constraints,
        "n_layers": [Interval(Integral, 1, None, closed="left")],
        "n_units": [Interval(Integral, 1, None, closed="left")],
        "n_codes": [Interval(Integral, 1, None, closed="left"), None],
        "scaling": [StrOptions({"healthy", "window"})],
        "threshold": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self,
        window_size: int = 100,
        n_layers: int = 2,
        n_units: int = 32,
        n_codes: int | None = 4,
        scaling: str = "healthy",
        threshold: float | None = None,
        epochs: int = 150,
        batch_size: int = 32,
        learning_rate: float = 5e-3,
        patience: int | None = 20,
        loss: str = "mse",
        shuffle: bool = True,
        false_alarm_rate: float = 0.001,
        noise_floor: float = 1e-3,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.window_size = window_size
        self.n_layers = n_layers
        self.n_units = n_units
        self.n_codes = n_codes
        self.scaling = scaling
        self.threshold = threshold
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.loss = loss
        self.shuffle = shuffle
        self.false_alarm_rate = false_alarm_rate
        self.noise_floor = noise_floor
        self.device = device
        self.random_state = random_state

    @classmethod
    def original(cls, *, random_state: int | None = None, **changes: Any) -> Self:
        """The published detector, in full.

        Windows of 10 samples, eleven layers of 50 units that return sequences, a
        dense layer back to the channels, mean absolute error, Adam, batches of
        72 in order, 50 epochs for each signal it is shown, scaling of each
        signal by itself, and an alarm at a loss above 0.1. `present` shows it a
        signal, so twenty healthy presentations of 3,000 samples make 5,000
        losses, and a broken one 250.

        Parameters
        ----------
        random_state : int or None
        **changes
            Other parameters, e.g. fewer layers.
        """
        published: dict[str, Any] = {
            "window_size": 10,
            "n_layers": 11,
            "n_units": 50,
            "n_codes": None,
            "scaling": "window",
            "threshold": 0.1,
            "epochs": 50,
            "batch_size": 72,
            "learning_rate": 1e-3,
            "patience": None,
            "loss": "mae",
            "shuffle": False,
        }
        return cls(**{**published, **changes}, random_state=random_state)

    def present(self, X: ArrayLike) -> list[float]:
        """Train on a signal without asking whether it is healthy, as the original did.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_channels)

        Returns
        -------
        list of float
            Loss of each batch; also appended to ``losses_``.
        """
        values = self._check(X, reset=not hasattr(self, "network_"))
        if not hasattr(self, "network_"):
            self._validate_params()
            torch = require("torch", extra="torch")
            self.classes_ = np.array([0, 1])
            self._learn_scale([values])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
                self.network_ = self._build(torch)
            self._optimizer, self.losses_, self.unit_ = None, [], 1.0
            self.thresholds_ = {"reconstruction": self.threshold or 1.0}
        losses = self._train(cut(self._scale(values), self.window_size), None)
        self.losses_ += losses
        return losses

    def _calibrate(self, scores: dict[str, list[NDArray[np.float64]]]) -> None:
        super()._calibrate(scores)
        if self.threshold is not None:
            self.thresholds_ = {"reconstruction": self.threshold / self.unit_}

    def _scale(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.scaling == "healthy":
            return super()._scale(values)
        axis = tuple(range(values.ndim - 1))
        low, high = values.min(axis=axis), values.max(axis=axis)
        return (values - low) / np.where(high > low, high - low, 1.0)

    def _build(self, torch: Any) -> Any:
        from anomaly.networks import recurrent

        return recurrent(self.n_features_in_, self.n_layers, self.n_units, self.n_codes)


class OnnxAutoencoder:
    """An exported autoencoder, scored by onnxruntime; PyTorch is not needed.

    Parameters
    ----------
    path : path-like
        Written by ``export_onnx``.

    Examples
    --------
    ``OnnxAutoencoder("bearing.onnx").decision_function(windows)``
    """

    def __init__(self, path: str | Path) -> None:
        runtime = require("onnxruntime", extra="onnx")
        self._session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        described = self._session.get_modelmeta().custom_metadata_map.get("anomaly")
        if described is None:
            raise ParameterError(f"{path}: not written by export_onnx of this program")
        facts = json.loads(described)
        self.window_size = int(facts["window_size"])
        self._mean, self._scale = np.array(facts["mean"]), np.array(facts["scale"])
        self._unit, self._threshold = float(facts["unit"]), float(facts["threshold"])
        self._loss, self._scaling = facts["loss"], facts["scaling"]

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """As the exported detector's: above 0 is an anomaly.

        Parameters
        ----------
        X : array-like of shape (n_windows, window_size, n_channels)

        Returns
        -------
        ndarray of shape (n_windows,)
        """
        windows = np.asarray(X, dtype=np.float64)
        expected = (self.window_size, len(self._mean))
        if windows.ndim != 3 or windows.shape[1:] != expected:
            raise DataError(
                f"X: shape (n_windows, {expected[0]}, {expected[1]}) is needed, "
                f"got {windows.shape}"
            )
        if self._scaling == "window":
            low, high = windows.min(axis=(0, 1)), windows.max(axis=(0, 1))
            scaled = (windows - low) / np.where(high > low, high - low, 1.0)
        else:
            scaled = (windows - self._mean) / self._scale
        (redrawn,) = self._session.run(None, {"windows": scaled.astype(np.float32)})
        away = np.abs(redrawn.astype(np.float64) - scaled)
        errors = np.mean(away**2 if self._loss == "mse" else away, axis=(1, 2)) / self._unit
        return np.log(np.maximum(errors, 1e-300) / self._threshold)

    def predict(self, X: ArrayLike) -> NDArray[np.int_]:
        """1 where `decision_function` is above 0."""
        return (self.decision_function(X) > 0).astype(int)


def _place(torch: Any, device: str) -> Any:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(device)
    except RuntimeError:
        raise ParameterError(f"device: auto, cpu or cuda is needed, got {device!r}") from None


def _filled(segment: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """A segment that is too short, repeated until it fills a window."""
    if len(segment) >= size:
        return segment
    return np.resize(segment, (size, segment.shape[1]))


def _split(
    segments: list[NDArray[np.float64]],
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Earlier samples to learn from, later ones held out; a single sample is both."""
    left = max(1, round(HELD_OUT * sum(map(len, segments))))
    learnt, held_out = list(segments), []
    while left > 0 and learnt:
        last = learnt.pop()
        n = min(left, len(last))
        held_out.append(last[len(last) - n :])
        if n < len(last):
            learnt.append(last[: len(last) - n])
        left -= n
    return learnt or held_out, held_out
