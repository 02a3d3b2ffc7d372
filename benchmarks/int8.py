"""What does INT8 give: how much faster is an image, how much smaller a package, and what does it cost in accuracy?

    emuflow bench int8 --json FILE

The kept checkpoint `large` (hidden 256, four layers), packaged in fp32 and in INT8 by the pipeline's own steps with their
default settings. What is timed is a whole image, from the prompt to the pixels, by the loop that is served: both packages
on onnxruntime, and the same weights in torch, eager and compiled, all on one thread and in turn in every round. Accuracy
is that of the images that both packages draw for all held-out captions with the same seeds.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console

from benchmarks import checkpoints
from benchmarks.decoders import Decoder, warm_ms
from benchmarks.image_quality import BOOTSTRAP, Questions, paired_difference
from benchmarks.int8_graphs import file_bytes, operators, output_errors, part_bytes
from benchmarks.report import Announcer, Check, Report, Row, command_line, family_cpu_s
from benchmarks.served_package import build
from common.files import read_json
from components.calibrate.engine import block_sizes
from components.export.settings import DecodingSettings, ExportSettings
from components.judge.reading import GRAPH_NAME
from components.judge.settings import JudgeSettings
from components.judge.training import trained_judge
from model.decoding.loop import DecodingOptions, generate
from model.decoding.session import Session
from model.quantization.export_onnx import transformer_graphs
from model.quantization.inference import with_plain_tables
from model.tokenizers.visual import VisualTokenizer
from model.transformer.model import Generator
from model.transformer.session import TorchSession, compiled
from serving.package.runtime.engine import EngineSession

_CHECKPOINT = "large"
_BATCH = 8
_QUALITY_BATCH = 32
_MEASURED = 64
"""Captions on which the graphs' outputs are compared."""
_FP32, _INT8 = "onnxruntime, fp32", "onnxruntime, INT8"
_FP32_8, _INT8_8 = f"{_FP32}, batch {_BATCH}", f"{_INT8}, batch {_BATCH}"
_DECODING = DecodingSettings(previews=False)
_EAGER, _COMPILED = "torch, fp32, eager", "torch, fp32, compiled"


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured."""

    rounds: int = 40
    """In each, every decoder is timed once."""
    calls: int = 9
    """Images, or batches of them, of which each time is the median: a machine with other work stops some of them."""
    seeds: int = 12
    """Images of each caption."""
    captions: int | None = None
    """Held-out captions; None is all of them."""


@dataclass
class Engines:
    """Both packages of the checkpoint, and what they were made of."""

    generator: Generator
    visual: VisualTokenizer
    graphs: dict[str, Path] = field(default_factory=dict)
    """A folder of them for each precision, that of the prompt whole; a package holds it in two parts."""
    packages: dict[str, Path] = field(default_factory=dict)
    sessions: dict[str, EngineSession] = field(default_factory=dict)

    @classmethod
    def build(cls, work: Path) -> "Engines":
        tokenizers = checkpoints.load_tokenizers()
        made = cls(checkpoints.load(_CHECKPOINT), tokenizers.visual)
        for precision in ("fp32", "int8"):
            folder = work / precision
            made.packages[precision] = build(_CHECKPOINT, precision, _DECODING, ExportSettings(), folder, work / "keys")
            description = read_json(made.packages[precision] / "1" / "generator.json")
            made.graphs[precision] = folder / "engine" / precision
            made.sessions[precision] = EngineSession(made.graphs[precision], description, threads=1, scores_plans=True)
        return made


def run(cache: Path, console: Console, file: Path | None, amount: Amount | None = None) -> bool:
    """Measure, print, and write `file`; whether every bound holds. `cache` keeps the judge between calls."""
    amount = amount or Amount()
    report = Report("int8", command_line(), columns=("images_per_s",))
    announce = Announcer(console)
    announce("the judge")
    judge = trained_judge(JudgeSettings(), cache).folder / GRAPH_NAME
    with TemporaryDirectory(prefix="emuflow-int8-") as temporary, _one_thread():
        announce("packaging the model in both precisions")
        engines = Engines.build(Path(temporary))
        questions = Questions.of(
            checkpoints.load_tokenizers().text, engines.generator.config.text_length, amount.captions
        )
        options = _DECODING.options()
        announce("accuracy")
        correct = {
            name: _correct(session, questions, judge, amount.seeds, options)
            for name, session in engines.sessions.items()
        }
        announce("compiling in torch")
        decoders = _decoders(engines, options)
        announce(f"timing {amount.rounds} rounds")
        with report.timed(family_cpu_s):  # torch compiles in processes of its own
            times = _times(decoders, questions.text_ids, amount)
        announce("the graphs")
        report.rows += _rows(times, correct)
        report.checks += [*_speed_checks(times), *_size_checks(engines), _accuracy_check(correct)]
        report.notes |= _notes(engines, questions)
    return report.finish(console, file)


def _correct(session: Session, questions: Questions, judge: Path, seeds: int, options: DecodingOptions) -> np.ndarray:
    """Whether all is right in each image: float64 [seeds, captions]."""
    prompts, images = questions.prompts(seeds), []
    for start in range(0, len(prompts), _QUALITY_BATCH):
        part = prompts[start : start + _QUALITY_BATCH]
        images.append(_draw(session, options)(part, list(range(start, start + len(part)))))
    return questions.correct(judge, np.concatenate(images))


def _draw(session: Session, options: DecodingOptions) -> Callable[[np.ndarray, list[int]], np.ndarray]:
    def draw(text_ids: np.ndarray, seeds: list[int]) -> np.ndarray:
        *_, final = generate(session, text_ids, options, seeds)
        return final.pixels

    return draw


def _decoders(engines: Engines, options: DecodingOptions) -> dict[str, tuple[Decoder, int]]:
    """Every row's decoder, and the images that it draws at once."""
    parameters = sum(parameter.numel() for parameter in engines.generator.parameters())
    plain = with_plain_tables(engines.generator)
    sessions: dict[str, tuple[Session, int]] = {
        _FP32: (engines.sessions["fp32"], 1),
        _INT8: (engines.sessions["int8"], 1),
        _EAGER: (TorchSession(plain, engines.visual), 1),
        _COMPILED: (compiled(plain, engines.visual), 1),
        _FP32_8: (engines.sessions["fp32"], _BATCH),
        _INT8_8: (engines.sessions["int8"], _BATCH),
    }
    return {
        name: (Decoder(name, parameters, _draw(session, options)), batch) for name, (session, batch) in sessions.items()
    }


@contextmanager
def _one_thread():
    """Torch with one thread, as onnxruntime has it here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _times(decoders: dict[str, tuple[Decoder, int]], text_ids: np.ndarray, amount: Amount) -> dict[str, np.ndarray]:
    """Milliseconds of each decoder in each round, in an order that turns round each time; each is timed when warm, as a
    server is. The first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for number in range(amount.rounds + 1):
        for name in decoders if number % 2 else reversed(decoders):
            decoder, batch = decoders[name]
            prompts = np.take(text_ids, range(number, number + batch), axis=0, mode="wrap")
            taken = warm_ms(decoder, prompts, number, amount.calls)
            if number:
                times[name].append(taken)
    return {name: np.array(each) for name, each in times.items()}


def _rows(times: dict[str, np.ndarray], correct: dict[str, np.ndarray]) -> list[Row]:
    rows = []
    for name, each in times.items():
        images = _BATCH if name in (_FP32_8, _INT8_8) else 1
        drawn = {_FP32: correct["fp32"], _INT8: correct["int8"]}.get(name)
        rows.append(
            Row(
                name,
                float(np.median(each)),
                float(np.quantile(each, 0.95)),
                None if drawn is None else float(drawn.mean()),
                0 if drawn is None else drawn.size,
                {"images_per_s": 1000 * images / float(np.median(each)), "rounds": len(each)},
            )
        )
    return rows


def _speed_checks(times: dict[str, np.ndarray]) -> list[Check]:
    return [
        _speedup("int8_speedup_same_engine_b1", times[_FP32] / times[_INT8], 1.7, 2.3),
        _speedup(f"int8_speedup_same_engine_b{_BATCH}", times[_FP32_8] / times[_INT8_8], 1.7, 2.3),
        _speedup("int8_speedup_vs_eager", times[_EAGER] / times[_INT8], 2.3, 4),
        _speedup("int8_speedup_vs_compile", times[_COMPILED] / times[_INT8], 1.5, 3),
    ]


def _speedup(name: str, ratios: np.ndarray, bound: float, aim: float) -> Check:
    """The median over the rounds, with its interval."""
    interval = BOOTSTRAP.quantile([[float(ratio)] for ratio in ratios], 0.5)
    return Check(name, float(np.median(ratios)), bound, aim, len(ratios), low=interval.low, high=interval.high)


def _size_checks(engines: Engines) -> list[Check]:
    blocks = block_sizes(engines.graphs["fp32"], engines.graphs["int8"], transformer_graphs(detail_stages=1))
    full, int8 = (file_bytes(engines.packages[precision]) for precision in ("fp32", "int8"))
    return [
        Check("block_bytes_ratio", blocks.int8 / blocks.fp32, 0.27, 0.255, blocks.fp32, at_least=False),
        Check("package_bytes_ratio", int8 / full, 0.32, 0.27, full, at_least=False),
    ]


def _accuracy_check(correct: dict[str, np.ndarray]) -> Check:
    """The upper end of the interval of what is lost, in points of accuracy."""
    _, lost = paired_difference(correct["fp32"], correct["int8"])
    low, high = 100 * lost.low, 100 * lost.high
    return Check("int8_accuracy_loss", high, 1, 0.2, correct["int8"].size, at_least=False, low=low, high=high)


def _notes(engines: Engines, questions: Questions) -> dict:
    prompts = np.array_split(questions.text_ids[:_MEASURED], -(-len(questions.text_ids[:_MEASURED]) // _BATCH))
    return {
        "checkpoint": {"name": _CHECKPOINT, **checkpoints.describe(_CHECKPOINT)},
        "decoding": asdict(_DECODING.options()),
        "bytes": {
            precision: part_bytes(engines.graphs[precision], package / "1" / "engine")
            | {"package": file_bytes(package)}
            for precision, package in engines.packages.items()
        },
        "operators": operators(engines.generator, engines.visual, engines.graphs["fp32"], engines.graphs["int8"]),
        "output_error": output_errors(engines.sessions["fp32"], engines.sessions["int8"], engines.generator, prompts),
    }
