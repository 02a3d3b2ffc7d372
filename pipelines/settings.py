"""The whole settings tree: one section for each component, presets in YAML, overrides as `a.b=c`."""

import difflib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from common.errors import SettingsError
from common.settings import Section
from common.version import VERSION
from components.adapt.settings import AdaptationSettings
from components.benchmark.settings import BenchmarkSettings
from components.calibrate.settings import CalibrationSettings
from components.curate.settings import CurateSettings
from components.export.settings import DecodingSettings, ExportSettings
from components.gate.settings import GateSettings
from components.ingest.digit_world.settings import SCENE_SIDE
from components.ingest.settings import BUILT_IN, IngestSettings
from components.judge.settings import JudgeSettings
from components.promote.settings import PromotionSettings
from components.tokenize.settings import TokenizerSettings
from components.train.settings import LauncherSettings, TrainingSettings
from components.validate.settings import ValidateSettings
from model.transformer.config import ModelSettings

PRESETS = Path(__file__).resolve().parent / "presets"


class ContainerSettings(Section):
    """The images of a run whose steps run in containers, and what each container may use."""

    image: str = Field(default=f"localhost/emuflow:{VERSION}", description="of the steps; by digest where it is pulled")
    triton_image: str = Field(
        default=f"localhost/emuflow-triton:{VERSION}",
        description="of export and benchmark; by digest where it is pulled",
    )
    memory: str | None = Field(
        default=None, pattern=r"^[1-9][0-9]*[kmg]$", description="limit of one container, such as 4g"
    )
    shared_memory: str = Field(default="1g", pattern=r"^[1-9][0-9]*[kmg]$", description="size of /dev/shm")
    gpus: bool = Field(default=False, description="hand every NVIDIA GPU to every step (Docker with NVIDIA's toolkit)")
    environment: list[str] = Field(
        default_factory=list, description="names of more variables that the steps need, such as AWS_ACCESS_KEY_ID"
    )
    network: str | None = Field(
        default=None, description="the engine's name of it; else none with the home's own SQLite, else the engine's own"
    )


class PlatformSettings(Section):
    """What differs between one machine and another place to run."""

    runner: Literal["subprocess", "containers"] = Field(
        default="subprocess", description="what a step of a local run is: a process, or a container of its image"
    )
    containers: ContainerSettings = ContainerSettings()
    launcher: LauncherSettings = LauncherSettings()
    tracking_uri: str | None = Field(
        default=None, description="MLflow; else MLFLOW_TRACKING_URI, else SQLite in the home"
    )
    release_url: str | None = Field(
        default=None, description="SQLAlchemy URL of the release store; else MLflow's SQLite file"
    )

    @model_validator(mode="after")
    def _hosts_are_reached(self) -> Self:
        if self.launcher.kind == "hosts" and self.runner == "containers":
            raise ValueError("launcher.kind=hosts needs runner=subprocess: a step's container reaches no other host")
        return self


class SettingsTree(Section):
    """Everything that a run can be told, each section valid by itself: a preset is one of these."""

    data: IngestSettings = IngestSettings()
    validation: ValidateSettings = ValidateSettings()
    curation: CurateSettings = CurateSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    adaptation: AdaptationSettings = AdaptationSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    decoding: DecodingSettings = DecodingSettings()
    export: ExportSettings = ExportSettings()
    judge: JudgeSettings = JudgeSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    gate: GateSettings = GateSettings()
    promotion: PromotionSettings = PromotionSettings()
    platform: PlatformSettings = PlatformSettings()


class Settings(SettingsTree):
    """The settings of a run: sections that also fit each other."""

    @model_validator(mode="after")
    def _the_judge_can_read(self) -> Self:
        if self.data.source == BUILT_IN and self.tokenizer.image_size != SCENE_SIDE:
            raise ValueError(
                f"tokenizer.image_size {self.tokenizer.image_size}: the digit world and its judge have {SCENE_SIDE}; "
                "another size needs data.source (or --data) of your own"
            )
        return self

    @model_validator(mode="after")
    def _next_tokens_are_adapted(self) -> Self:
        if self.adaptation.enabled != (self.training.objective == "next_token"):
            raise ValueError(
                f"training.objective {self.training.objective} with adaptation.enabled {self.adaptation.enabled}: what is "
                "served predicts in parallel, so next_token and the step adapt go together"
            )
        return self

    @model_validator(mode="after")
    def _guidance_was_trained(self) -> Self:
        last, name = (self.adaptation, "adaptation") if self.adaptation.enabled else (self.training, "training")
        if self.decoding.guidance != 1 and not last.masking.unconditional_share:
            raise ValueError(
                f"decoding.guidance {self.decoding.guidance} takes a model that was trained without prompts, too: set "
                f"{name}.masking.unconditional_share (0.1 is usual)"
            )
        return self

    @model_validator(mode="after")
    def _bounds_are_measured(self) -> Self:
        _refuse_unmeasured(self.benchmark, self.gate)
        return self

    def section_parameters(self) -> dict[str, str]:
        """The sections as parameters of the pipeline: `training_settings` and so on, each as JSON."""
        names = [name for name in type(self).model_fields if name != "platform"]
        sections = {f"{name}_settings": getattr(self, name).model_dump_json() for name in names}
        sections["benchmark_settings"] = _deciding(self.benchmark, self.gate).model_dump_json()
        return {**sections, "launcher_settings": self.platform.launcher.model_dump_json()}


class MeasurementSettings(Section):
    """What a measurement of an exported package goes by."""

    benchmark: BenchmarkSettings = BenchmarkSettings()
    gate: GateSettings = GateSettings()
    promotion: PromotionSettings = PromotionSettings()
    platform: PlatformSettings = PlatformSettings()

    @model_validator(mode="after")
    def _bounds_are_measured(self) -> Self:
        _refuse_unmeasured(self.benchmark, self.gate)
        return self

    def section_parameters(self) -> dict[str, str]:
        """The sections as parameters of the pipeline, likewise."""
        sections = {f"{name}_settings": getattr(self, name).model_dump_json() for name in MEASURED_BY}
        return {**sections, "benchmark_settings": _deciding(self.benchmark, self.gate).model_dump_json()}


def _deciding(benchmark: BenchmarkSettings, gate: GateSettings) -> BenchmarkSettings:
    """With the gate's bounds, so that it knows when it has measured enough."""
    return benchmark if benchmark.bounds else benchmark.model_copy(update={"bounds": gate.deciding})


MEASURED_BY = ("benchmark", "gate", "promotion")
"""The sections that a measurement takes over from the run that made the package."""


def _refuse_unmeasured(benchmark: BenchmarkSettings, gate: GateSettings) -> None:
    """A bound on what is not measured would fail every candidate, after hours of training. Raises `ValueError` that names
    both settings."""
    absolute, champion = gate.absolute, gate.champion
    open_load = {"absolute.max_open_load_error_share": absolute.max_open_load_error_share}
    previews = {
        "absolute.max_first_preview_p95_ms": absolute.max_first_preview_p95_ms,
        "champion.max_first_preview_ratio": champion.max_first_preview_ratio,
    }
    for name, amount, bounds in (
        ("open_load.chunks", benchmark.open_load.chunks, open_load),
        ("latency.block_previews", benchmark.latency.block_previews, previews),
    ):
        bound = next((key for key, value in bounds.items() if value is not None), None)
        if amount == 0 and bound is not None:
            raise ValueError(
                f"benchmark.{name} 0 measures nothing that gate.{bound} could be held against: set that bound to null, or "
                f"benchmark.{name} to 1 or more"
            )


def load(preset: str, overrides: Sequence[str] = (), data: Path | None = None) -> Settings:
    """The settings of a preset (a name, or a YAML file of one's own) with overrides such as `training.steps=60`.

    `data` is a file or folder of the user's own, in the place of `data.source`. Raises `SettingsError` for an unknown preset, key or value; it names the nearest valid one.
    """
    file = _preset_file(preset)
    content = yaml.safe_load(file.read_text()) or {}
    if not isinstance(content, dict):
        raise SettingsError("a preset is a mapping of sections", where=str(file))
    SettingsTree.parse(content, where=str(file))
    for override in overrides:
        _apply(content, override)
    source = data or content.get("data", {}).get("source", BUILT_IN)
    if source != BUILT_IN:
        content.setdefault("data", {})["source"] = str(Path(source).resolve())  # the steps work in another folder
    _resolve_embedder(content)
    return Settings.parse(content, where="--set" if overrides else str(file))


def override_platform(platform: Mapping[str, Any], overrides: Sequence[str]) -> PlatformSettings:
    """The section `platform` with overrides such as `platform.containers.memory=4g`, and no others."""
    return PlatformSettings.parse(override_section("platform", platform, overrides), where="--set")


def override_section(name: str, section: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A section with its overrides, not validated yet. Raises `SettingsError` for an override of another section."""
    return override_sections({name: section}, overrides)[name]


def override_sections(sections: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Sections by their names with overrides, not validated yet. Raises `SettingsError` for one of another section."""
    content = {name: deepcopy(dict(section)) for name, section in sections.items()}
    for override in overrides:
        if not override.strip().startswith(tuple(f"{name}." for name in sections)):
            named = f"the section{'s' if len(sections) > 1 else ''} {', '.join(sections)}"
            raise SettingsError(f"'{override.partition('=')[0]}' is not of {named}", where="--set")
        _apply(content, override)
    _resolve_embedder(content)
    return content


def seed_overrides(seed: int) -> list[str]:
    """The overrides that draw other data, other weights and another order. What is measured on stays the same."""
    return [f"{key}={seed}" for key in ("data.digit_world.seed", "tokenizer.visual_training.seed", "training.seed")]


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _preset_file(preset: str) -> Path:
    if preset in preset_names():
        return PRESETS / f"{preset}.yaml"
    own = Path(preset)
    if own.suffix in (".yaml", ".yml") and own.is_file():
        return own
    nearest = difflib.get_close_matches(preset, preset_names(), n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are: {', '.join(preset_names())}"
    raise SettingsError(f"unknown preset '{preset}', {hint}", where="--preset")


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` in place; the value is read as YAML (`true`, `3`, `[8, 6, 5]`)."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise SettingsError(f"'{key}' has no value", where="--set", fix="write section.key=value")
    *sections, last = key.strip().split(".")
    target: Any = content
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise SettingsError(f"'{section}' in '{key}' is a value, not a section", where="--set")
    try:
        target[last] = _merged(target.get(last), yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise SettingsError(f"the value of '{key}' is not YAML ({type(error).__name__})", where="--set") from None


def _resolve_embedder(content: Mapping[str, Mapping[str, Any]]) -> None:
    """The steps work in another folder: name the file as it is named from there."""
    benchmark = content.get("benchmark", {})
    if isinstance(benchmark, dict) and isinstance(benchmark.get("embedder"), str):
        benchmark["embedder"] = str(Path(benchmark["embedder"]).resolve())


def _merged(old: Any, new: Any) -> Any:
    """`new`, over what a section held before."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new
