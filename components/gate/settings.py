"""The policy of the gate: every bound that a candidate must keep, and how sure we want to be."""

from pydantic import Field

from common.settings import Section
from components.benchmark.settings import DecidingBounds


class AbsoluteBounds(Section):
    """What every candidate must reach; the first champion is judged by these alone."""

    min_accuracy: float = Field(
        default=0.90, ge=0, le=1, description="share of captions with digit, colour and position right"
    )
    max_accuracy_loss_int8: float = Field(
        default=0.01, ge=0, le=1, description="full precision minus INT8, same captions and seeds"
    )
    max_block_bytes_ratio: float = Field(default=0.27, gt=0, description="INT8 / fp32 bytes of the transformer blocks")
    max_image_p95_ms: float = Field(default=25.0, gt=0, description="final image over gRPC, one client")
    max_first_preview_p95_ms: float | None = Field(
        default=20.0, gt=0, description="first stage over gRPC, one client; null: no bound"
    )
    max_open_load_error_share: float | None = Field(
        default=0.0, ge=0, le=1, description="requests without an image under open load; null: no bound"
    )
    min_tokenizer_ssim: float = Field(default=0.75, ge=0, le=1, description="reconstruction of held-out images")
    max_heldout_loss_ratio: float = Field(
        default=0.95,
        gt=0,
        description="without a judge: held-out loss / the loss of guessing evenly among the visual codes",
    )
    # 0.01 nats are one percent of perplexity: as much as the accuracy may fall where there is a judge.
    max_heldout_loss_int8: float = Field(
        default=0.01, ge=0, description="without a judge: INT8 minus full precision, nats per token, same samples"
    )


class ChampionBounds(Section):
    """How much worse than the champion a candidate may be, at the far end of the interval."""

    accuracy_margin: float = Field(default=0.03, ge=0, le=1, description="accuracy may be lower by this much")
    heldout_loss_margin: float = Field(
        default=0.02, ge=0, description="held-out loss may be higher by this many nats per token"
    )
    max_p50_ratio: float = Field(default=1.10, gt=0, description="median latency, candidate / champion")
    max_p95_ratio: float = Field(default=1.25, gt=0, description="95th percentile of latency, candidate / champion")
    max_first_preview_ratio: float | None = Field(
        default=1.20, gt=0, description="median time to the first stage, candidate / champion; null: no bound"
    )
    min_throughput_ratio: float | None = Field(
        default=0.8,
        gt=0,
        description="images a second of several clients at once, candidate / champion; null: no bound",
    )
    max_memory_ratio: float | None = Field(
        default=1.25, gt=0, description="memory of the loaded package, candidate / champion; null: no bound"
    )
    max_frechet_ratio: float | None = Field(
        default=1.5, gt=0, description="Fréchet distance to real images, candidate / champion; null: no bound"
    )


class MetricBounds(Section):
    """Bounds on one of the user's own metrics (benchmark.metrics); the mean score, higher is better."""

    minimum: float | None = Field(default=None, description="what every candidate must reach; null: no bound")
    margin: float | None = Field(default=None, ge=0, description="lower than the champion by this much; null: no bound")


_MOST_COUNTED = 3
"""Measurements of one package beyond which an interval gets no wider: its ends would soon be those of single draws."""
_MOST_DRAWS = 16_000


class GateSettings(Section):
    """The whole policy; it is copied into each verdict."""

    absolute: AbsoluteBounds = AbsoluteBounds()
    champion: ChampionBounds = ChampionBounds()
    metrics: dict[str, MetricBounds] = Field(default_factory=dict, description="bounds by a metric's name")
    max_control_ratio: float = Field(
        default=1.10,
        gt=1,
        description="two loads of the champion whose median latencies surely differ by more make a measurement INVALID",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of every interval, two-sided")
    earlier_measurements: int = Field(
        default=0,
        ge=0,
        description="of the same package against the same champion, as `emuflow measure` counts them: each halves the chance "
        "of a verdict by chance",
    )
    power: float = Field(
        default=0.9, gt=0.5, lt=1, description="the report names the slow-down that would be called broken this often"
    )
    bootstrap_resamples: int = Field(default=2000, ge=200, le=100_000)
    bootstrap_seed: int = 20240601
    min_captions: int = Field(default=500, ge=1, description="captions behind an accuracy")
    min_latency_samples: int = Field(default=200, ge=20, description="requests per arm behind a latency")
    min_previews: int = Field(default=40, ge=10, description="requests per arm behind a time to the first stage")
    min_latency_rounds: int = Field(default=8, ge=2, description="interleaved rounds behind a latency")
    min_quiet_share: float = Field(
        default=0.5, ge=0, le=1, description="of rounds and of chunks, without other processes on the processors"
    )
    min_heldout_samples: int = Field(default=32, ge=1, description="samples behind a held-out loss")

    @property
    def deciding(self) -> DecidingBounds:
        """What a benchmark need not measure any longer once it is surely kept or broken."""
        absolute, champion = self.absolute, self.champion
        return DecidingBounds(
            max_p50_ratio=champion.max_p50_ratio,
            max_p95_ratio=champion.max_p95_ratio,
            accuracy_margin=champion.accuracy_margin,
            max_accuracy_loss_int8=absolute.max_accuracy_loss_int8,
        )

    @property
    def confidence_now(self) -> float:
        """That of every interval of what this measurement draws anew: who measures again until it passes must show more each
        time, and the first four tries together are wrong less than twice as often as the first one alone."""
        return 1 - (1 - self.confidence) / 2**self._counted

    @property
    def resamples_now(self) -> int:
        """More draws for the ends that lie further out."""
        return max(self.bootstrap_resamples, min(self.bootstrap_resamples * 2**self._counted, _MOST_DRAWS))

    @property
    def _counted(self) -> int:
        return min(self.earlier_measurements, _MOST_COUNTED)
