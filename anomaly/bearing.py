"""Fit a detector to a healthy recording and write it as one verified file.

python -m anomaly.bearing healthy.csv bearing.clf
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pandas as pd
from sklearn.pipeline import make_pipeline

from anomaly.autoencoder import ConvAutoencoder, LSTMAutoencoder
from anomaly.bands import BandDetector, VibrationEnsemble
from anomaly.encoding import RecordEncoder
from anomaly.errors import AnomalyError, DataError
from anomaly.exported import export_classifier
from anomaly.loading import read_csv
from anomaly.vibration import VibrationDetector
from anomaly.waveform import FEWEST_LEARNT, WindowDetector

KINDS: dict[str, type[WindowDetector]] = {
    "vibration": VibrationDetector,
    "bands": BandDetector,
    "ensemble": VibrationEnsemble,
    "conv": ConvAutoencoder,
    "lstm": LSTMAutoencoder,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success, 2 a mistake of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m anomaly.bearing",
        description="Fit a detector to a healthy recording, a CSV file with one column for each "
        "channel, and write it for python -m production.mqtt --detector.",
        epilog="example: python -m anomaly.bearing healthy.csv bearing.clf --fields x,y,z",
    )
    parser.add_argument("recording", help="CSV file")
    parser.add_argument("file", help="where to write the detector, by custom NAME.clf")
    parser.add_argument("--fields", default="x,y,z", help="columns, in order (x,y,z)")
    parser.add_argument("--window-size", type=int, default=100, help="samples per window (100)")
    parser.add_argument(
        "--detector", choices=KINDS, default="vibration", help="conv and lstm need PyTorch"
    )
    options = parser.parse_args(arguments)
    columns = options.fields.split(",")
    try:
        frame = read_recording(options.recording, columns, FEWEST_LEARNT * options.window_size)
        detector = KINDS[options.detector]().set_params(window_size=options.window_size)
        pipeline = make_pipeline(RecordEncoder(scaling="none"), detector).fit(frame)
        # A signal is judged by the window; a single sample is one a file can repeat.
        export_classifier(pipeline, options.file, probes=frame[:1])
    except (AnomalyError, ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.file}: fitted to {len(frame)} samples of {', '.join(columns)}")
    return 0


def read_recording(path: str, columns: list[str], fewest: int) -> pd.DataFrame:
    """The samples of a CSV file, one after the other without a gap.

    Raises
    ------
    DataError
        If a cell is no number, or if there are fewer samples than ``fewest``.
    """
    loaded = read_csv(path, columns=columns, categorical=[])
    report = loaded.report
    if report.rows_dropped:
        raise DataError(
            f"{path}: every sample needs a finite number for {', '.join(columns)}, since the next "
            f"is told from it; {report.rows_dropped} of {report.rows_read} lack one"
        )
    if report.rows < fewest:
        raise DataError(
            f"{path}: at least {fewest} samples are needed ({FEWEST_LEARNT} windows), "
            f"got {report.rows}"
        )
    return loaded.frame[columns]


if __name__ == "__main__":
    sys.exit(main())
