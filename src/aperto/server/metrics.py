"""What the server did, for Prometheus: counters of its own, and the engines' state when asked."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from aperto.chat import Done
from aperto.server.pool import ModelPool

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, pool: ModelPool) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "aperto_requests",
            "Requests by path and status.",
            ("path", "status"),
            registry=self.registry,
        )
        self.open_requests = Gauge(
            "aperto_open_requests", "Requests being answered.", registry=self.registry
        )
        self.tokens = Counter(
            "aperto_tokens",
            "Tokens by kind: prompt, cached (of the prompt), completion, reasoning.",
            ("model", "kind"),
            registry=self.registry,
        )
        self.answers = Counter(
            "aperto_answers",
            "Answers by the reason they ended.",
            ("model", "finish_reason"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "aperto_phase_seconds",
            "Time of an answer's phases: queued, prefill, decode.",
            ("model", "phase"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_EngineState(pool))

    def count(self, model: str, done: Done) -> None:
        """Note one finished answer."""
        usage = done.usage
        for kind, number in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
            ("reasoning", done.reasoning_tokens),
        ):
            self.tokens.labels(model, kind).inc(number)
        self.answers.labels(model, done.finish_reason).inc()
        self.seconds.labels(model, "queued").observe(done.timings.queued_s)
        self.seconds.labels(model, "prefill").observe(done.timings.prefill_s)
        self.seconds.labels(model, "decode").observe(done.timings.decode_s)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineState(Collector):
    """Asks the loaded engines when metrics are read."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Running and waiting requests, pages, and traffic of saved prompts, by model."""
        running = GaugeMetricFamily(
            "aperto_running_requests", "Answers being computed.", labels=("model",)
        )
        waiting = GaugeMetricFamily(
            "aperto_waiting_requests", "Requests not yet begun.", labels=("model",)
        )
        pages = GaugeMetricFamily(
            "aperto_cache_pages",
            "Pages of keys and values by window group: all, held by answers, kept as prefixes.",
            labels=("model", "group", "state"),
        )
        saved = CounterMetricFamily(
            "aperto_prompt_cache_tokens",
            "Tokens of prompts that were saved on disk, and fetched from there, since loading.",
            labels=("model", "way"),
        )
        for name, model in self._pool.loaded().items():
            stats = model.engine.stats()
            running.add_metric([name], stats.num_running)
            waiting.add_metric([name], stats.num_waiting)
            for state in ("total", "held", "cached"):
                for group, count in enumerate(getattr(stats, f"pages_{state}")):
                    pages.add_metric([name, str(group), state], count)
            saved.add_metric([name, "saved"], stats.tokens_saved)
            saved.add_metric([name, "fetched"], stats.tokens_fetched)
        yield from (running, waiting, pages, saved)
