"""GET /metrics: what the service counts, in Prometheus' text format."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge.clock import NS_PER_S
from edge.serve.memory import AllocatedMemory
from edge.session.sense import COUNTED
from edge.session.turn import Done, Status

CONTENT_TYPE = CONTENT_TYPE_LATEST
N_ANSWERS = 5
"""So many of the newest answers are remembered, without what they say."""
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One service's counters, in a registry of its own."""

    def __init__(self, status: Callable[[], Status]) -> None:
        """Begin at 0.

        Args:
            status: of the session, asked at each scrape.
        """
        self.answers: deque[Done] = deque(maxlen=N_ANSWERS)
        """The newest, oldest first."""
        self._registry = CollectorRegistry()
        self._registry.register(_Session(status))
        self._registry.register(AllocatedMemory())
        ProcessCollector(namespace="edge", registry=self._registry)
        where: Any = {"registry": self._registry}
        self.connections = Gauge("edge_connections", "Open connections.", **where)
        self._refused = Counter(
            "edge_connections_refused", "Clients that were not let in.", ["reason"], **where
        )
        self._dropped = Counter(
            "edge_clients_dropped", "Clients that were let in and had to go.", ["reason"], **where
        )
        self._requests = Counter(
            "edge_requests", "Requests that were answered.", ["route", "status"], **where
        )
        self._malformed = Counter(
            "edge_requests_malformed", "What clients sent that is no HTTP.", **where
        )
        self._held_back_s = Counter(
            *("edge_held_back_seconds", "What requests waited because of what theirs had taken."),
            **where,
        )
        self._request_s = Histogram(
            *("edge_request_seconds", "From a request to the end of its answer.", ["route"]),
            buckets=BUCKETS_S,
            **where,
        )
        self._first_token_s = Histogram(
            *("edge_first_token_seconds", "From a question to the first token of its answer."),
            buckets=BUCKETS_S,
            **where,
        )

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)

    def refused(self, reason: str) -> None:
        """Count a client that was not let in."""
        self._refused.labels(reason).inc()

    def dropped(self, reason: str) -> None:
        """Count a client that had to go."""
        self._dropped.labels(reason).inc()

    def malformed(self) -> None:
        """Count something that is no HTTP request."""
        self._malformed.inc()

    def held_back(self, seconds: float) -> None:
        """Count what a request waited for others' sake."""
        self._held_back_s.inc(seconds)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: its pattern, not its path: there are few.
        """
        self._requests.labels(route, str(status)).inc()
        self._request_s.labels(route).observe(seconds)

    def hear(self, event: object) -> None:
        """Take one of the session's events, in its thread: answers are counted."""
        if not isinstance(event, Done):
            return
        self.answers.append(event)
        if event.n_completion_tokens:
            times = event.timeline
            self._first_token_s.observe((times.first_token_ns - times.asked_ns) / NS_PER_S)

    def clients(self) -> dict[str, int]:
        """Open connections, and since the start who was not let in or had to go."""
        return {
            "connected": _sum(self.connections),
            "refused": _sum(self._refused),
            "dropped": _sum(self._dropped),
        }


def _sum(metric: Gauge | Counter) -> int:
    """Over all labels."""
    samples = [sample for family in metric.collect() for sample in family.samples]
    return sum(int(sample.value) for sample in samples if not sample.name.endswith("_created"))


class _Session(Collector):
    """What the session counts itself, read when it is wanted."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        return ()  # they are as they are at the moment

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        for name, help_text, value in (
            ("ready", "1 while the session can answer.", float(status.ready)),
            ("context_tokens", "Tokens in the live context.", status.n_context_tokens),
            ("context_max_tokens", "Bound of the live context.", status.max_context_tokens),
            ("uptime_seconds", "Since the session began.", status.uptime_ns / NS_PER_S),
        ):
            yield GaugeMetricFamily(f"edge_{name}", help_text, value=value)
        newest = {stages.modality: stages for stages in status.recent}
        age = GaugeMetricFamily(
            *("edge_capture_to_state_seconds", "From capture to the state, newest segment."),
            labels=["modality"],
        )
        for modality, stages in newest.items():
            age.add_metric([modality], (stages.prefilled_ns - stages.captured_ns) / NS_PER_S)
        yield age
        # A name that somebody has chosen is a label: what all have in common can be asked for.
        for what, help_text in COUNTED.items():
            family = CounterMetricFamily(f"edge_source_{what}", help_text, labels=["source"])
            for source, counts in status.senses.items():
                family.add_metric([source], counts[what])
            yield family
        labelled = {f"{source}_{what}" for source in status.senses for what in COUNTED}
        for name in sorted(status.counters.keys() - labelled):
            count = status.counters[name]
            yield CounterMetricFamily(f"edge_{name}", f"The session's {name}.", value=count)
