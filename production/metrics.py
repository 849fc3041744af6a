"""Counters and latencies for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """What `/metrics` tells.

    Examples
    --------
    >>> from production.metrics import Metrics
    >>> metrics = Metrics()
    >>> metrics.answered("tiles", [{"status": "scored", "is_anomaly": True}], 0.002)
    >>> "anomaly_anomalies_total 1.0" in metrics.text()
    True
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"anomaly_{name}", text, labels, registry=self._registry)

        self.accepted = counter("records_accepted", "Records scored and learnt")
        self.rejected = counter("rejected", "Requests and records refused", "reason")
        self.late = counter("records_late", "Records older than the newest of their stream")
        self.duplicate = counter("records_duplicate", "Records sent again, or at a known time")
        self.gap = counter("records_gap", "Records that came after a gap")
        self.future = counter("records_future", "Records ahead of the clock")
        self.anomalies = counter("anomalies", "Records and windows found anomalous")
        self.windows = counter("windows_accepted", "KPI windows tested", "detector")
        self.latency = Histogram(
            "anomaly_latency_seconds",
            "Time from a request to its durable answer",
            ("detector",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.streams = Gauge("anomaly_streams", "Streams known", registry=self._registry)
        self.waiting = Gauge("anomaly_waiting", "Requests in queues", registry=self._registry)
        self.store_lag = Gauge(
            "anomaly_result_store_lag",
            "Records not in the result store yet",
            registry=self._registry,
        )

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        self.rejected.labels(reason).inc()

    def answered(self, detector: str, answers: list[dict[str, Any]], seconds: float) -> None:
        """Count what became of the records of a request."""
        for answer in answers:
            status = answer["status"]
            if status == "rejected":
                self.refused(answer["reason"])
                continue
            if status == "duplicate":
                self.duplicate.inc()
                continue
            self.accepted.inc()
            if status in self._special():
                self._special()[status].inc()
            if answer["is_anomaly"]:
                self.anomalies.inc()
        self.latency.labels(detector).observe(seconds)

    def _special(self) -> dict[str, Counter]:
        return {
            "late": self.late,
            "conflicting": self.duplicate,
            "gap": self.gap,
            "future": self.future,
        }

    def tested(self, detector: str, anomalous: bool, seconds: float) -> None:
        """Count a KPI window."""
        self.windows.labels(detector).inc()
        if anomalous:
            self.anomalies.inc()
        self.latency.labels(detector).observe(seconds)

    def text(self) -> str:
        """Everything in Prometheus' format."""
        return generate_latest(self._registry).decode()
