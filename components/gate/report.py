"""The verdict as one page that needs nothing beside itself: plots and images are inside it."""

import base64
from dataclasses import dataclass
from pathlib import Path

from common.files import write_text
from components.benchmark.measurements import Example, Measurements
from components.gate import plots
from components.gate.settings import GateSettings
from components.gate.verdict import Result, Verdict

FILE_NAME = "report.html"
_TEMPLATE = Path(__file__).with_name("report.html.j2")
_MEANING = {
    Result.PASS: "Every bound is kept. The candidate may become the champion.",
    Result.FAIL: "At least one bound is broken. The champion stays.",
    Result.INCONCLUSIVE: "No bound is proven broken, but not every one is proven kept. The champion stays. To measure again: "
    "emuflow measure {candidate}",
    Result.INVALID: "This evidence cannot carry a verdict. The champion stays. To measure again: emuflow measure {candidate}",
}
_QUANTITY_TITLES = {
    "p50_ms": "median latency, ms",
    "p95_ms": "p95 latency, ms",
    "first_preview_p50_ms": "first preview, median, ms",
    "first_preview_p95_ms": "first preview, p95, ms",
    "server_p50_ms": "median latency as the package sees it, ms",
    "triton_queue_ms": "in Triton's queue, ms",
    "triton_compute_ms": "in Triton's call of the package, ms",
    "open_load_per_s": "open load: requests asked, /s",
    "open_load_answered_per_s": "open load: images answered, /s",
    "open_load_p95_ms": "p95 under open load, ms",
    "images_per_s": "throughput, images/s",
    "images_per_s_low": "throughput, lower end of its interval",
    "images_per_s_high": "throughput, upper end of its interval",
    "memory_mb": "memory, MiB",
    "accuracy": "accuracy",
    "frechet": "Fréchet distance to real images",
}


@dataclass(frozen=True)
class ExampleRow:
    """One caption and each arm's image of it as a data URI, in the order of the page's arms."""

    caption: str
    images: list[str | None]


def write_report(folder: Path, verdict: Verdict, measured: Measurements, measurements: Path) -> Path:
    """Write `folder/report.html`; `measurements` is the folder that holds the example images."""
    path = folder / FILE_NAME
    write_text(path, render(verdict, measured, measurements))
    return path


def render(verdict: Verdict, measured: Measurements, measurements: Path) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    arms = [name for name in plots.TITLES if name in measured.arms]
    policy = GateSettings.parse(verdict.policy, where=FILE_NAME)
    drawing = [name for name in arms if any(example.arm == name for example in measured.examples)]
    own = {metric: f"{metric}, mean score" for metric in measured.metrics}
    return environment.from_string(_TEMPLATE.read_text()).render(
        verdict=verdict,
        measured=measured,
        meaning=_MEANING[verdict.result].format(candidate=verdict.candidate_digest[:12] or "VERSION"),
        arms=arms,
        titles=plots.TITLES,
        quantities=[
            (title, [verdict.reported.get(f"{arm}_{key}") for arm in arms])
            for key, title in (_QUANTITY_TITLES | own).items()
        ],
        figures=_figures(measured, policy),
        policy=policy,
        # They travel with the packages, so that measuring again is no second chance.
        kept_confidence=measured.quality_metric != "judge" and policy.confidence_now != policy.confidence,
        drawing=drawing,
        examples=_examples(measured.examples, drawing, measurements),
    )


def _figures(measured: Measurements, policy: GateSettings) -> list[tuple[str, str]]:
    """Title and SVG of each plot that has data."""
    absolute = policy.absolute
    drawn = [
        (
            "Latency over gRPC, one client",
            plots.latency_distributions(measured, "samples_ms", "final image", absolute.max_image_p95_ms),
        ),
        ("Latency round by round", plots.paired_ratios(measured, policy.champion.max_p50_ratio)),
        ("Accuracy by attribute", plots.accuracy_by_attribute(measured)),
        (
            "First preview over gRPC, one client",
            plots.latency_distributions(measured, "preview_ms", "first stage", absolute.max_first_preview_p95_ms),
        ),
        ("Latency under open load", plots.open_load(measured)),
        ("Warm-up", plots.warm_up(measured)),
        ("The machine while it was timed", plots.machine(measured)),
    ]
    return [(title, svg) for title, svg in drawn if svg]


def _examples(examples: list[Example], arms: list[str], folder: Path) -> list[ExampleRow]:
    files = {(example.caption, example.arm): folder / example.file for example in examples}
    captions = list(dict.fromkeys(example.caption for example in examples))
    return [ExampleRow(caption, [_data_uri(files.get((caption, arm))) for arm in arms]) for caption in captions]


def _data_uri(path: Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
