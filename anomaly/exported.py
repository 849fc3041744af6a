"""The classifier as one callable in one file, and the trailer that vouches for the file.

A file is a pickle (or a skops archive), a JSON header that describes it, and a
footer of fixed size: the lengths of both, a SHA-256 over them and, if a key was
given, an HMAC-SHA256. ``pickle.load`` stops at the end of the pickle and never
sees the rest; `production.classify.load` reads the rest first.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import importlib.metadata
import json
import os
import pickle
import platform
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

import anomaly
from anomaly.encoding import RecordEncoder, is_missing
from anomaly.errors import (
    ClassifierFileError,
    DataError,
    MissingExtraError,
    ParameterError,
    require,
)
from anomaly.files import write_aside
from anomaly.forest import RefusedValueError, compile_forest
from anomaly.injection import OversampleClassifier
from anomaly.streaming import StreamDetector
from anomaly.threshold import Threshold

__all__ = ["Contents", "ExportedClassifier", "export_classifier", "key_from", "unpack", "verify"]

FORMAT_VERSION = 1
N_PROBES = 16
MISSING_POLICIES = ("error", "malicious", "fill", "pass")

_MAGIC = b"\x00anomaly-clf\x00"
_FOOTER = struct.Struct(">QQB32s32sH13s")  # lengths, signed, digest, mac, version, magic
_LARGEST_HEADER = 16 << 20
_NEAR = 1e-9  # scores this close to the boundary are settled row by row
# Their predict takes each row by itself, so there is nothing to settle.
_ROW_BY_ROW = frozenset({"KNeighborsClassifier", "NuSVC", "SVC", "XGBClassifier"})


class ExportedClassifier:
    """A fitted classifier as a function of one record: true means malicious.

    Schema, encoder, classifier and threshold in one. Tree ensembles that
    `anomaly.forest.compile_forest` takes are evaluated natively; all others
    by their own ``predict``. One record and a frame of many take the same path
    and get the same answers.

    Parameters
    ----------
    pipeline : Pipeline
        Fitted; its first step is a `RecordEncoder`, its last a classifier with
        two classes, of which the second is the anomaly. An
        `OversampleClassifier` round the pipeline or its last step is taken off.
    threshold : float, optional
        A record is malicious if its score is above it. The score is
        ``decision_function``, or ``predict_proba[:, 1]`` of a classifier
        without one. By default the classifier's own ``predict`` decides.
    missing : {"error", "malicious", "fill", "pass"}, default="error"
        What a missing value (None, NaN) does: it is refused, it makes the record
        malicious, it is filled with the training median or most frequent
        category, or it is passed on to a classifier that was trained with
        missing values. A missing *field* is always refused.

    Attributes
    ----------
    columns : tuple of str
        The fields, in the order of positional arguments.
    header : dict or None
        What the file says about itself, if this came from
        `production.classify.load`.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from anomaly.encoding import RecordEncoder
    >>> from anomaly.exported import ExportedClassifier
    >>> records = pd.DataFrame({"class": ["car", "car", "car", "human", "human", "human"],
    ...                         "length": [4400.0, 4300.0, 300.0, 310.0, 290.0, 4500.0]})
    >>> pipeline = make_pipeline(RecordEncoder(), DecisionTreeClassifier(random_state=0))
    >>> fun = ExportedClassifier(pipeline.fit(records, [0, 0, 1, 0, 0, 1]))
    >>> fun("car", 4300.0), fun({"class": "human", "length": 4600.0})
    (False, True)
    >>> fun(records)
    array([False, False,  True, False, False,  True])
    >>> fun("cart", 4300.0)
    Traceback (most recent call last):
        ...
    anomaly.errors.DataError: class: unknown category 'cart'; allowed: 'car', 'human'; \
did you mean 'car'?
    """

    header: dict[str, Any] | None = None

    def __init__(
        self, pipeline: Any, *, threshold: float | None = None, missing: str = "error"
    ) -> None:
        self.pipeline = _without_oversampling(pipeline)
        self.threshold = threshold
        self.missing = missing
        self._check()
        self._prepare()
        if missing == "pass":
            self._check_takes_nan()

    # ---- answers

    def __call__(self, *values: Any, **fields: Any) -> bool | NDArray[np.bool_]:
        """Whether records are malicious.

        Parameters
        ----------
        *values
            One value for each field in the order of ``columns``; or one mapping
            or Series of field to value; or one frame, its columns in any order.
        **fields
            One record by name. A name that Python reserves may end in an
            underscore: ``class_``.

        Returns
        -------
        bool, or ndarray of bool for a frame

        Raises
        ------
        DataError
            A field is missing, not known, or has a value that is not allowed;
            the message names it. Also a ValueError.
        """
        if len(values) == 1 and not fields:
            if isinstance(values[0], pd.DataFrame):
                return self._decide(self._ordered(values[0]))
            if isinstance(values[0], Mapping | pd.Series):
                return self._decide_one(self._by_name(dict(values[0])))
        if fields and not values:
            return self._decide_one(self._by_name(self._without_underscores(fields)))
        if fields or len(values) != len(self.columns):
            raise DataError(
                f"expected the {len(self.columns)} values {', '.join(self.columns)}, "
                f"got {len(values)} by position and {len(fields)} by name"
                + "".join(f"; {name} is missing" for name in self.columns[len(values) :][:1])
            )
        return self._decide_one(list(values))

    def _decide_one(self, values: list[Any]) -> bool:
        flagged = False
        if self.missing != "pass":
            for i, value in enumerate(values):
                if is_missing(value):
                    values[i] = self._instead_of_missing(i, None)
                    flagged = self.missing == "malicious"
        row = self._encoder.encode_one(values)
        if self._forest is None:
            return bool(self._fallback(np.array([row]))[0]) or flagged
        try:
            label, score = self._forest.decide_one(row)
        except RefusedValueError as error:
            raise self._refused(error, None) from error
        return (label if self.threshold is None else score > self.threshold) or flagged

    def _decide(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        if frame.empty:
            return np.zeros(len(frame), dtype=bool)
        flagged = np.zeros(len(frame), dtype=bool)
        if self.missing != "pass":
            frame, flagged = self._replace_missing(frame)
        rows = self._encode(frame)
        if self._forest is None:
            return self._fallback(rows) | flagged
        try:
            labels, scores = self._forest.decide(rows)
        except RefusedValueError as error:
            raise self._refused(error, error.row) from error
        return (labels if self.threshold is None else scores > self.threshold) | flagged

    def _encode(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        named = hasattr(self._encoder, "feature_names_in_")
        return np.asarray(
            self._encoder.transform(frame if named else frame.to_numpy(dtype=object))
        )

    # ---- records

    def _by_name(self, record: dict[Any, Any]) -> list[Any]:
        if len(record) == len(self.columns):
            try:
                return [record[name] for name in self.columns]
            except KeyError:
                pass
        raise self._fields_error(list(record))

    def _ordered(self, frame: pd.DataFrame) -> pd.DataFrame:
        if tuple(frame.columns) == self.columns:
            return frame
        if sorted(map(str, frame.columns)) != sorted(self.columns):
            raise self._fields_error(list(frame.columns))
        return frame[list(self.columns)]

    def _fields_error(self, came: list[Any]) -> DataError:
        absent = [name for name in self.columns if name not in came]
        unknown = [repr(name) for name in came if name not in self.columns]
        twice = sorted({repr(name) for name in came if came.count(name) > 1})
        faults = [
            f"{word} {', '.join(names)}"
            for word, names in (("missing", absent), ("unknown", unknown), ("repeated", twice))
            if names
        ]
        return DataError(f"fields are {', '.join(self.columns)}; {'; '.join(faults)}")

    def _without_underscores(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {
            name if name in self.columns else name.removesuffix("_"): value
            for name, value in fields.items()
        }

    def _instead_of_missing(self, i: int, row: int | None) -> Any:
        if self.missing == "error":
            place = self.columns[i] if row is None else f"{self.columns[i]}, row {row}"
            raise DataError(f"{place}: value is missing (None or NaN)")
        return self._encoder.fill_values_[i]

    def _replace_missing(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
        absent = frame.isna().to_numpy()
        flagged: NDArray[np.bool_] = np.asarray(absent.any(axis=1))
        if not flagged.any():
            return frame, flagged
        filled = {}
        for i, name in enumerate(self.columns):
            column = frame[name]
            if absent[:, i].any():
                fill = self._instead_of_missing(i, int(np.argmax(absent[:, i])))
                values = column.to_numpy(dtype=object, copy=True)
                values[absent[:, i]] = fill
                column = pd.Series(values, dtype=object, index=frame.index)
            filled[name] = column
        if self.missing != "malicious":
            flagged = np.zeros_like(flagged)
        return pd.DataFrame(filled), flagged

    def _refused(self, error: RefusedValueError, row: int | None) -> DataError:
        name = self._encoder.origins_[error.column]
        place = name if row is None else f"{name}, row {row}"
        return DataError(f"{place}: the value is too large for this classifier, or missing")

    # ---- classifiers without native code

    def _fallback(self, rows: NDArray[np.float64]) -> NDArray[np.bool_]:
        if not np.isfinite(rows).all() and (np.isinf(rows).any() or self.missing != "pass"):
            row, column = divmod(int(np.argmax(~np.isfinite(rows))), rows.shape[1])
            raise self._refused(RefusedValueError(row, column), row if len(rows) > 1 else None)
        labels = self._labels(rows)
        if len(rows) > 1 and type(self._rest).__name__ not in _ROW_BY_ROW:
            # Matrix products round differently for one row and for many; where that
            # could decide, the answer for one row counts.
            scores, boundary = self._scores(rows)
            if self.threshold is not None:
                boundary = self.threshold
            for i in np.flatnonzero(np.abs(scores - boundary) <= _NEAR):
                labels[i] = self._labels(rows[i : i + 1])[0]
        return labels

    def _labels(self, rows: NDArray[np.float64]) -> NDArray[np.bool_]:
        if self.threshold is not None:
            return np.asarray(self._scores(rows)[0] > self.threshold)
        return np.asarray(self._rest.predict(rows) == self._malicious)

    def _scores(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Scores and the boundary of the classifier's own ``predict``; infinite if it has none."""
        if hasattr(self._rest, "decision_function"):
            return np.asarray(self._rest.decision_function(rows), dtype=float), 0.0
        if hasattr(self._rest, "predict_proba"):
            return np.asarray(self._rest.predict_proba(rows), dtype=float)[:, 1], 0.5
        return np.full(len(rows), np.inf), 0.0

    # ---- making and pickling

    def _check(self) -> None:
        steps = self.pipeline.steps if isinstance(self.pipeline, Pipeline) else []
        if len(steps) < 2 or not isinstance(steps[0][1], RecordEncoder):
            raise ParameterError(
                "pipeline: a fitted Pipeline whose first step is a RecordEncoder is needed, "
                f"got {self.pipeline!r}"
            )
        if self.missing not in MISSING_POLICIES:
            raise ParameterError(
                f"missing: must be one of {', '.join(MISSING_POLICIES)}, got {self.missing!r}"
            )
        if self.missing == "pass" and steps[0][1].missing != "keep":
            raise ParameterError(
                "missing='pass' needs a pipeline fitted with RecordEncoder(missing='keep')"
            )
        classes = getattr(steps[-1][1], "classes_", None)
        if classes is None or len(np.atleast_1d(classes)) != 2:
            raise ParameterError(f"classifier: two classes are needed, got {classes}")
        scored = hasattr(steps[-1][1], "decision_function") or hasattr(
            steps[-1][1], "predict_proba"
        )
        if self.threshold is not None and not scored:
            raise ParameterError("threshold: this classifier has no scores to compare it with")

    def _check_takes_nan(self) -> None:
        try:
            self._decide_one([None] * len(self.columns))
        except ValueError as error:
            raise ParameterError(
                "missing='pass': the classifier takes no missing values"
            ) from error

    def _prepare(self) -> None:
        self._encoder: RecordEncoder = self.pipeline.steps[0][1]
        self.columns: tuple[str, ...] = self._encoder.columns_
        rest = self.pipeline[1:]
        self._rest: Any = rest[0] if len(rest) == 1 else rest
        self._forest = compile_forest(self._rest)
        self._malicious = self._rest.classes_[1]

    @property
    def is_native(self) -> bool:
        """Whether the classifier runs as native code."""
        return self._forest is not None

    @property
    def schema(self) -> list[dict[str, Any]]:
        """Fields in order: name, kind, and for categories what is allowed.

        Examples
        --------
        ``[{"name": "class", "kind": "category", "allowed": ["car", "human"]},
        {"name": "length", "kind": "number"}]``
        """
        categories = self._encoder.categories_
        return [
            {"name": name, "kind": "category", "allowed": list(categories[name])}
            if name in categories
            else {"name": name, "kind": "number"}
            for name in self.columns
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "threshold": self.threshold,
            "missing": self.missing,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __repr__(self) -> str:
        name = type(self.pipeline.steps[-1][1]).__name__
        return f"<{name} of ({', '.join(self.columns)}), true if malicious>"


def _without_oversampling(model: Any) -> Any:
    """The fitted classifier inside; oversampling matters to training only."""
    if isinstance(model, OversampleClassifier):
        return _without_oversampling(model.estimator_)
    if isinstance(model, Pipeline) and model.steps:
        name, last = model.steps[-1]
        inner = _without_oversampling(last)
        if inner is not last:
            return Pipeline([*model.steps[:-1], (name, inner)])
    return model


# ---- writing


def export_classifier(
    pipeline: Any,
    path: str | os.PathLike[str],
    *,
    probes: pd.DataFrame,
    threshold: float | None = None,
    missing: str = "error",
    scores: Mapping[str, Any] | None = None,
    fingerprint: str | Mapping[str, Any] | None = None,
    format: str = "pickle",
    key: str | bytes | None = None,
    trusted: Collection[str] = (),
) -> Path:
    """Write a fitted pipeline as one file that is a function and vouches for itself.

    Parameters
    ----------
    pipeline, threshold, missing
        See `ExportedClassifier`.
    path : str or PathLike
        By custom ``anomaly_classifier.clf``. Written aside, then renamed.
    probes : DataFrame
        Records to answer again wherever the file is loaded. Sixteen are kept,
        of both answers where there are both.
    scores : mapping, optional
        Cross-validated scores, for the reader of the header.
    fingerprint : str or mapping, optional
        What identifies the training data.
    format : {"pickle", "skops"}, default="pickle"
        A skops archive runs no code while it is loaded; it needs
        ``production.classify.load``.
    key : str or bytes, optional
        Signs the file. By default the environment variable ``ANOMALY_KEY``,
        if it is set.
    trusted : collection of str, optional
        Further types that a skops archive may hold, by dotted path.

    Returns
    -------
    Path

    Examples
    --------
    >>> import pickle, tempfile
    >>> import pandas as pd
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from anomaly.encoding import RecordEncoder
    >>> from anomaly.exported import export_classifier
    >>> X = pd.DataFrame({"length": [4400.0, 300.0, 310.0, 4500.0]})
    >>> pipeline = make_pipeline(RecordEncoder(), DecisionTreeClassifier()).fit(X, [0, 1, 1, 0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = export_classifier(pipeline, f"{folder}/c.clf", probes=X)
    ...     with path.open("rb") as file:
    ...         fun = pickle.load(file)
    >>> fun(290.0), fun(4480.0)
    (True, False)
    """
    _refuse_stream(pipeline)
    classifier = ExportedClassifier(pipeline, threshold=threshold, missing=missing)
    payload = _dump(classifier, format, trusted)
    header = _header(classifier, probes, format)
    header["scores"] = _plain(dict(scores or {}))
    header["training"] = _plain(fingerprint)
    described = json.dumps(header, allow_nan=False, ensure_ascii=False).encode()
    final = Path(path)
    with write_aside(final, "wb") as file:
        file.write(_sealed(payload, described, key_from(key)))
    return final


def _dump(classifier: ExportedClassifier, format: str, trusted: Collection[str]) -> bytes:
    if format == "pickle":
        return pickle.dumps(classifier, protocol=5)
    if format == "skops":
        payload = bytes(require("skops.io", extra="skops").dumps(classifier.__getstate__()))
        _unskops(payload, trusted)  # what cannot be read back is not written
        return payload
    raise ParameterError(f"format: must be pickle or skops, got {format!r}")


def _refuse_stream(pipeline: Any) -> None:
    last = pipeline.steps[-1][1] if isinstance(pipeline, Pipeline) else pipeline
    if isinstance(last, StreamDetector):
        raise ParameterError(
            f"{type(last).__name__} judges a record by those before it and cannot answer for "
            "single records: run it with python -m anomaly.stream, or pickle it"
        )


def _header(classifier: ExportedClassifier, probes: pd.DataFrame, format: str) -> dict[str, Any]:
    last = classifier.pipeline.steps[-1][1]
    parameters = {name: repr(value) for name, value in last.get_params(deep=False).items()}
    described: dict[str, Any] = {"class": type(last).__name__, "parameters": parameters}
    threshold = getattr(last, "threshold_", None)
    if isinstance(threshold, Threshold):
        described["promise"] = threshold.promise
    return {
        "format": "anomaly classifier",
        "format_version": FORMAT_VERSION,
        "payload": format,
        "versions": {
            "python": platform.python_version(),
            "anomaly": anomaly.__version__,
            **{name: importlib.metadata.version(name) for name in ("numpy", "pandas")},
        },
        "requires": _required_versions(last),
        "classifier": described,
        "native": classifier.is_native,
        "schema": _plain(classifier.schema),
        "missing": classifier.missing,
        "threshold": _plain(classifier.threshold),
        "probes": _chosen_probes(classifier, probes),
    }


def _required_versions(classifier: Any) -> dict[str, str]:
    """Libraries whose own objects are in the file: these must match exactly."""
    names = {"scikit-learn"}
    package = type(classifier).__module__.partition(".")[0]
    if package not in ("sklearn", "anomaly"):
        names.update(importlib.metadata.packages_distributions().get(package, [])[:1])
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def _chosen_probes(classifier: ExportedClassifier, probes: pd.DataFrame) -> list[dict[str, Any]]:
    """Sixteen records with the answers of the pipeline itself, which the file must repeat."""
    if probes.empty:
        raise ParameterError("probes: at least one record is needed")
    records = classifier._ordered(probes).reset_index(drop=True)
    answers = np.asarray(classifier(records))
    normal = _spread(np.flatnonzero(~answers), N_PROBES // 2)
    malicious = _spread(np.flatnonzero(answers), N_PROBES - len(normal))
    normal = _spread(np.flatnonzero(~answers), N_PROBES - len(malicious))
    kept = sorted([*normal, *malicious])
    chosen = [
        {"record": _plain(records.loc[i].to_dict()), "malicious": bool(answers[i])} for i in kept
    ]
    replay(classifier, chosen)
    _compare_with_pipeline(classifier, records.loc[kept])
    return chosen


def _spread(rows: NDArray[np.intp], n: int) -> list[int]:
    """At most n of the rows, evenly from first to last."""
    if len(rows) <= n:
        return rows.tolist()
    return rows[np.linspace(0, len(rows) - 1, n).astype(int)].tolist()


def _compare_with_pipeline(classifier: ExportedClassifier, records: pd.DataFrame) -> None:
    """The exported answer is that of the fitted pipeline, or nothing is written."""
    if classifier.threshold is not None or records.isna().to_numpy().any():
        return
    labels = classifier._rest.predict(classifier._encode(records))
    expected = np.asarray(labels) == classifier._malicious
    if not np.array_equal(expected, classifier(records)):
        raise ClassifierFileError("the exported classifier disagrees with the fitted pipeline")


def _plain(value: Any) -> Any:
    """Values that strict JSON has: numpy scalars unwrapped, NaN as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if is_missing(value):
        return None
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, str | int | float):
        return value
    raise ParameterError(f"a text, number or truth value is needed in the header, got {value!r}")


def key_from(key: str | bytes | None) -> bytes | None:
    """Key as bytes: the argument, else ``ANOMALY_KEY`` of the environment, else None."""
    found = os.environ.get("ANOMALY_KEY") if key is None else key
    if found is None or (key is None and not found):
        return None
    if not found:
        raise ParameterError("key: must not be empty")
    return found.encode() if isinstance(found, str) else found


def _sealed(payload: bytes, header: bytes, key: bytes | None) -> bytes:
    digest = _digest(payload, header, key is not None)
    mac = bytes(32) if key is None else _mac(digest, key)
    footer = _FOOTER.pack(
        len(payload), len(header), key is not None, digest, mac, FORMAT_VERSION, _MAGIC
    )
    return payload + header + footer


def _digest(payload: bytes, header: bytes, signed: bool) -> bytes:
    whole = hashlib.sha256(struct.pack(">QQBH", len(payload), len(header), signed, FORMAT_VERSION))
    whole.update(payload)
    whole.update(header)
    return whole.digest()


def _mac(digest: bytes, key: bytes) -> bytes:
    return hmac.digest(key, b"anomaly classifier " + digest, "sha256")


# ---- reading


@dataclass(frozen=True)
class Contents:
    """What a verified file holds: the header, and bytes that nobody has run yet."""

    header: dict[str, Any]
    payload: bytes
    signed: bool


def verify(
    data: bytes, key: str | bytes | None = None, *, check_signature: bool = True
) -> Contents:
    """Check the trailer of a file's bytes; nothing is unpickled.

    Parameters
    ----------
    data : bytes
        The whole file. Unpickle ``payload`` of the result, never the file again.
    key : str or bytes, optional
        By default ``ANOMALY_KEY`` of the environment. With a key only files
        signed with it pass; without one only files that are not signed.
    check_signature : bool, default=True
        False to look at the header of a signed file without its key.

    Raises
    ------
    ClassifierFileError
        The file is foreign, truncated, altered, of another format version, or
        not signed as it should be.
    """
    if len(data) < _FOOTER.size:
        raise ClassifierFileError("not an exported classifier: it is too short")
    n_payload, n_header, signed, digest, mac, version, magic = _FOOTER.unpack(
        data[-_FOOTER.size :]
    )
    if magic != _MAGIC:
        raise ClassifierFileError("not an exported classifier, or its end is cut off or altered")
    if version != FORMAT_VERSION:
        raise ClassifierFileError(
            f"written in format {version}, but this version reads format {FORMAT_VERSION}"
        )
    if n_payload + n_header + _FOOTER.size != len(data) or n_header > _LARGEST_HEADER:
        raise ClassifierFileError("the file is damaged: its parts do not add up")
    payload, described = data[:n_payload], data[n_payload : n_payload + n_header]
    sound = hmac.compare_digest(digest, _digest(payload, described, bool(signed)))
    if not sound or signed > 1 or (not signed and any(mac)):
        raise ClassifierFileError("the file is damaged or was altered: its SHA-256 does not match")
    if check_signature:
        _check_signature(bool(signed), digest, mac, key_from(key))
    return Contents(_parse_header(described), payload, bool(signed))


def _check_signature(signed: bool, digest: bytes, mac: bytes, key: bytes | None) -> None:
    if signed and key is None:
        raise ClassifierFileError("the file is signed; set its key in ANOMALY_KEY")
    if key is not None and not signed:
        raise ClassifierFileError("the file is not signed, and a key was given")
    if key is not None and not hmac.compare_digest(mac, _mac(digest, key)):
        raise ClassifierFileError("the signature does not match: another key, or altered")


def _parse_header(described: bytes) -> dict[str, Any]:
    try:
        header = json.loads(described)
    except ValueError as error:
        raise ClassifierFileError("the file is damaged: its header is not JSON") from error
    needed = {"payload": str, "requires": dict, "schema": list, "probes": list}
    if not isinstance(header, dict) or not all(
        isinstance(header.get(name), kind) for name, kind in needed.items()
    ):
        raise ClassifierFileError("the file is damaged: its header is incomplete")
    return header


def unpack(
    contents: Contents, *, skew: str = "refuse", trusted: Collection[str] = ()
) -> ExportedClassifier:
    """Bring a verified classifier to life and put its probes to it.

    Parameters
    ----------
    contents : Contents
        From `verify`.
    skew : {"refuse", "accept"}, default="refuse"
        What to do if a library in the header's ``requires`` has another version
        here. The probes must be answered as expected either way.
    trusted : collection of str, optional
        Further types that a skops archive may hold, by dotted path.

    Raises
    ------
    ClassifierFileError
        Versions differ, the contents cannot be loaded, or an answer differs.
    """
    if skew not in ("refuse", "accept"):
        raise ParameterError(f"skew: must be refuse or accept, got {skew!r}")
    if skew == "refuse":
        _check_versions(contents.header["requires"])
    try:
        classifier = _undump(contents, trusted)
        if type(classifier) is not ExportedClassifier:
            raise ClassifierFileError("the file holds something else than a classifier")
        if _plain(classifier.schema) != contents.header["schema"]:
            raise ClassifierFileError("the header names other fields than the classifier takes")
        replay(classifier, contents.header["probes"])
        classifier.header = contents.header
    except (ClassifierFileError, MissingExtraError):
        raise
    except Exception as error:
        raise ClassifierFileError(
            f"the contents cannot be loaded here: {type(error).__name__}: {error}"
        ) from error
    return classifier


def _check_versions(required: Mapping[str, str]) -> None:
    for name, version in required.items():
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            here = "absent"
        if here != version:
            raise ClassifierFileError(f"made with {name} {version}, but here it is {here}")


def _undump(contents: Contents, trusted: Collection[str]) -> Any:
    if contents.header["payload"] == "pickle":
        return pickle.loads(contents.payload)
    if contents.header["payload"] != "skops":
        raise ClassifierFileError(f"unknown contents {contents.header['payload']!r}")
    return ExportedClassifier(**_unskops(contents.payload, trusted))


def _unskops(payload: bytes, trusted: Collection[str]) -> dict[str, Any]:
    skops = require("skops.io", extra="skops")
    types = set(skops.get_untrusted_types(data=payload))
    strange = {name for name in types - set(trusted) if not _is_trusted(name)}
    if strange:
        raise ClassifierFileError(
            f"the file holds types not trusted: {', '.join(sorted(strange))}"
        )
    return dict(skops.loads(payload, trusted=sorted(types)))


# Types of scikit-learn and XGBoost that skops leaves to its caller: tables of numbers.
_TRUSTED = frozenset(
    {
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBClassifier",
    }
)


def _is_trusted(name: str) -> bool:
    """Whether a type is on the list, or an estimator of this package."""
    module, _, attribute = name.rpartition(".")
    if name in _TRUSTED:
        return True
    if not module.startswith("anomaly."):
        return False
    found = getattr(importlib.import_module(module), attribute, None)
    return isinstance(found, type) and issubclass(found, BaseEstimator)


def replay(classifier: ExportedClassifier, probes: Sequence[Mapping[str, Any]]) -> None:
    """Put the probe records to a classifier, one by one and as a frame.

    Raises
    ------
    ClassifierFileError
        An answer is not the expected one.
    """
    expected = [probe["malicious"] for probe in probes]
    singly = [classifier(probe["record"]) for probe in probes]
    frame = pd.DataFrame([probe["record"] for probe in probes], columns=list(classifier.columns))
    together = np.asarray(classifier(frame)).tolist()
    for answers in (singly, together):
        wrong = sum(a != b for a, b in zip(answers, expected, strict=True))
        if wrong:
            raise ClassifierFileError(
                f"{wrong} of {len(probes)} probe records get another answer than when exported"
            )
