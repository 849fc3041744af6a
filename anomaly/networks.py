"""The networks of the autoencoders, built when they are fitted or loaded."""

from __future__ import annotations

from typing import Any

from anomaly.errors import require

__all__ = ["convolutional", "recurrent"]


def convolutional(n_channels: int, n_filters: int, n_codes: int, window_size: int) -> Any:
    """Two strided convolutions to a code, two more and a resampling back."""
    nn: Any = require("torch", extra="torch").nn

    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.draw = nn.Sequential(
                nn.Conv1d(n_channels, n_filters, 7, stride=2, padding=3),
                nn.ELU(),
                nn.Conv1d(n_filters, n_filters, 7, stride=2, padding=3),
                nn.ELU(),
                nn.Conv1d(n_filters, n_codes, 1),
                nn.Conv1d(n_codes, n_filters, 1),
                nn.ELU(),
                nn.Upsample(size=-(-window_size // 2), mode="linear", align_corners=False),
                nn.Conv1d(n_filters, n_filters, 7, padding=3),
                nn.ELU(),
                nn.Upsample(size=window_size, mode="linear", align_corners=False),
                nn.Conv1d(n_filters, n_channels, 7, padding=3),
            )

        def forward(self, windows: Any) -> Any:
            return self.draw(windows.transpose(1, 2)).transpose(1, 2)

    return Convolutional()


def recurrent(n_channels: int, n_layers: int, n_units: int, n_codes: int | None) -> Any:
    """LSTM layers that return sequences, and a dense layer back to the channels.

    With ``n_codes`` a narrow dense layer sits between the two halves of the
    layers. Weights begin as in Keras, which the original used.
    """
    nn: Any = require("torch", extra="torch").nn
    if n_codes is None:
        halves = [(n_channels, n_layers)]
    else:
        halves = [(n_channels, -(-n_layers // 2)), (n_codes, max(1, n_layers // 2))]

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.LSTM(n_in, n_units, count, batch_first=True) for n_in, count in halves
            )
            self.narrow = None if n_codes is None else nn.Linear(n_units, n_codes)
            self.dense = nn.Linear(n_units, n_channels)
            for name, values in self.named_parameters():
                _begin_as_keras(nn, name, values, n_units)

        def forward(self, windows: Any) -> Any:
            drawn, _ = self.layers[0](windows)
            if self.narrow is not None:
                drawn, _ = self.layers[1](self.narrow(drawn))
            return self.dense(drawn)

    return Recurrent()


def _begin_as_keras(nn: Any, name: str, values: Any, n_units: int) -> None:
    """Glorot uniform, orthogonal recurrence, zero biases but one for the gate that forgets."""
    if values.dim() == 1:
        nn.init.zeros_(values)
        if "bias_ih" in name:
            nn.init.ones_(values.data[n_units : 2 * n_units])
    elif "weight_hh" in name:
        nn.init.orthogonal_(values)
    else:
        nn.init.xavier_uniform_(values)
