"""Fit a detector to a healthy recording and write it as one verified file.

python -m anomaly.bearing healthy.csv bearing.clf
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sklearn.pipeline import make_pipeline

from anomaly.autoencoder import ConvAutoencoder, LSTMAutoencoder
from anomaly.bands import BandDetector, VibrationEnsemble
from anomaly.encoding import RecordEncoder
from anomaly.errors import AnomalyError
from anomaly.exported import export_classifier
from anomaly.loading import read_csv
from anomaly.vibration import VibrationDetector
from anomaly.waveform import WindowDetector

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
        frame = read_csv(options.recording, columns=columns).frame[columns]
        detector = KINDS[options.detector]().set_params(window_size=options.window_size)
        pipeline = make_pipeline(RecordEncoder(scaling="none"), detector).fit(frame)
        # A signal is judged by the window; a single sample is one a file can repeat.
        export_classifier(pipeline, options.file, probes=frame[:1])
    except (AnomalyError, ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.file}: fitted to {len(frame)} samples of {', '.join(columns)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
