"""A whole benchmark on a real Triton server: what it records, and when it says that it cannot be used."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from common.errors import GateError, SettingsError, SignatureError
from common.files import read_json, write_json
from components.benchmark.benchmark import benchmark
from components.benchmark.measurements import (
    CANDIDATE,
    CHAMPION,
    CONTROL,
    FULL_PRECISION,
    Measurements,
    read_measurements,
    rounds,
)
from components.benchmark.settings import (
    BenchmarkSettings,
    DecidingBounds,
    NeighbourSettings,
    WarmupSettings,
)
from components.gate.gate import gate
from components.gate.settings import GateSettings
from components.gate.verdict import Result
from tests.components.benchmark.conftest import CAPTIONS, SETTINGS, Workbench, write_evaluation_set
from tests.components.benchmark.test_neighbours import busy_cores
from tests.packages import RUNTIME, build, change_and_sign

SURE = DecidingBounds(max_p50_ratio=1.5, max_p95_ratio=5.0, accuracy_margin=1.0, max_accuracy_loss_int8=1.0)


def run(
    bench: Workbench,
    measurements: Path,
    *,
    champion: str | None = None,
    settings: BenchmarkSettings = SETTINGS,
    evaluation_set: Path | None = None,
) -> Measurements:
    benchmark(
        settings,
        exported=bench.exported,
        package_store=bench.package_store,
        key_folder=bench.key_folder,
        champion_digest=champion,
        evaluation_set=evaluation_set or bench.evaluation_set,
        tokenizers=bench.tokenizers,
        judge_folder=bench.judge,
        measurements=measurements,
    )
    return read_measurements(measurements)


@pytest.fixture(scope="module")
def measured(workbench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Measurements, Path]:
    """Candidate, full precision and, as the champion, the full-precision package again."""
    folder = tmp_path_factory.mktemp("benchmark") / "measurements"
    return run(workbench, folder, champion=workbench.fp32), folder


def test_all_arms_are_measured_on_the_same_captions_in_the_same_rounds(measured, workbench):
    record, _ = measured
    assert record.status == "VALID", record.reasons
    assert {name: arm.digest for name, arm in record.arms.items()} == {
        CANDIDATE: workbench.int8,
        FULL_PRECISION: workbench.fp32,
        CHAMPION: workbench.fp32,
        CONTROL: workbench.fp32,
    }
    assert len(record.captions) == CAPTIONS
    for name, arm in record.arms.items():
        assert arm.warmup is not None and arm.warmup.stable
        timed = {block.round for block in arm.latency_blocks}
        assert 3 <= len(timed) <= 4 if name in (CANDIDATE, CHAMPION) else timed == {0, 1}
        assert [block.round for block in arm.latency_blocks] == sorted(block.round for block in arm.latency_blocks)
        if name == CONTROL:
            continue
        assert arm.correctness is not None and len(arm.correctness.correct) == 2 * CAPTIONS
        assert [chunk.images for chunk in arm.throughput_chunks] == [10, 10, 4, 10, 10, 4]
    assert len(record.arms[CANDIDATE].latency_blocks) == len(record.arms[CHAMPION].latency_blocks)


def test_each_block_tells_what_the_client_the_package_triton_and_the_machine_saw(measured):
    record, _ = measured
    blocks = [block for arm in record.arms.values() for block in arm.latency_blocks]
    for block in blocks:
        assert len(block.samples_ms) == len(block.server_ms) == 4 and len(block.preview_ms) == 4
        pairs = zip(block.samples_ms, block.server_ms, strict=True)
        assert all(client and server and 0 < server < client for client, server in pairs)
        assert all(first and first > 0 for first in block.preview_ms)
        assert block.triton_queue_ms is not None and block.triton_compute_ms is not None
        assert 0 < block.triton_queue_ms < 50 and 0 < block.triton_compute_ms < 50
        assert block.machine is not None and block.machine.load >= 0
        assert block.machine.steal_share is None or 0 <= block.machine.steal_share <= 1
        assert block.processors is not None and 0 <= block.processors.others + block.processors.idle <= 1.01
        assert not block.disturbed


def test_the_second_load_of_the_champion_is_timed_and_nothing_more(measured):
    record, _ = measured
    control = record.arms[CONTROL]
    assert control.latency_blocks and control.memory_mb
    assert (control.throughput_chunks, control.correctness, control.open_load, control.frechet) == (
        [],
        None,
        None,
        None,
    )


def test_arms_bear_the_same_requests_at_random_times(measured):
    record, _ = measured
    loads = [record.arms[name].open_load for name in (CANDIDATE, CHAMPION)]
    assert record.arms[FULL_PRECISION].open_load is None
    assert len({load.offered_per_s for load in loads}) == 1
    assert len({len(load.image_ms) for load in loads}) == 1 and {load.errors for load in loads} == {0}
    slowest = min(
        sum(chunk.images for chunk in arm.throughput_chunks) / sum(chunk.seconds for chunk in arm.throughput_chunks)
        for arm in record.arms.values() if arm.throughput_chunks
    )  # fmt: skip
    assert loads[0].offered_per_s == pytest.approx(0.5 * slowest)


def test_distances_to_real_images_are_taken_where_the_judge_sees_them(measured):
    record, _ = measured
    assert record.judge is not None
    distances = {name: record.arms[name].frechet for name in (CANDIDATE, CHAMPION)}
    for distance in distances.values():
        assert distance.space == f"judge:{record.judge.digest[:12]}"
        assert distance.value > 0 and len(distance.draws) == 20
    assert distances[CANDIDATE] != distances[CHAMPION]


def test_processes_tell_what_each_package_takes(measured):
    record, _ = measured
    assert all(arm.memory_mb and 10 < arm.memory_mb < 1000 for arm in record.arms.values())


def test_the_same_package_under_two_names_answers_alike(measured):
    record, _ = measured
    assert record.arms[FULL_PRECISION].correctness == record.arms[CHAMPION].correctness


def test_what_the_packages_and_tokenizers_say_is_carried_over(measured, workbench):
    record, _ = measured
    assert record.block_bytes is not None and (record.block_bytes.fp32, record.block_bytes.int8) == (400, 104)
    assert record.tokenizer_ssim == 0.87 and record.tokenizers_digest == "3" * 64
    assert record.evaluation_digest == read_json(workbench.evaluation_set / "evaluation.json")["digest"]
    assert record.quality_metric == "judge" and record.judge is not None and record.judge.scenes == 100


def test_each_arm_carries_the_heldout_loss_of_its_own_precision(measured, workbench):
    record, _ = measured
    candidate, champion = record.arms[CANDIDATE], record.arms[CHAMPION]
    assert candidate.evaluation_digest == champion.evaluation_digest == "2" * 64  # of their manifests
    assert candidate.heldout is not None and candidate.heldout.loss_per_sample[:2] == [1.001, 1.011]
    assert champion.heldout is not None and champion.heldout.loss_per_sample[:2] == [1.0, 1.01]
    assert candidate.heldout.coarse_grid == (8, 8) and candidate.heldout.samples_digest == "5" * 64
    assert candidate.heldout.groups == [i // 2 for i in range(40)]


def test_example_images_and_the_servers_log_are_kept(measured):
    record, folder = measured
    assert len(record.examples) == 3 * 3
    for example in record.examples:
        assert Image.open(folder / example.file).size == (64, 64)
    assert (folder / "triton.log").stat().st_size > 0


def test_the_gate_judges_what_the_benchmark_wrote(measured, tmp_path):
    _, folder = measured
    # Other tests share this machine: how far two loads of the champion differ, in two rounds, is no matter here.
    outcome = gate(GateSettings(max_control_ratio=100), folder, tmp_path / "verdict")
    assert outcome.result is Result.FAIL  # random weights draw no digits, and 24 captions are not 500
    assert outcome.report_file.read_text().count("data:image/png;base64") == 9


def test_fault_16_a_server_that_was_not_warmed_up_makes_the_measurement_invalid(workbench, tmp_path):
    cold = SETTINGS.model_copy(update={"warmup": WarmupSettings(max_windows=0)})
    record = run(workbench, tmp_path / "measurements", settings=cold)
    assert record.status == "INVALID" and "not warmed up" in record.reasons[0]
    assert gate(GateSettings(), tmp_path / "measurements", tmp_path / "verdict").result is Result.INVALID


GROWS = """

_draw, _SLOWER_BY = Generator.draw, iter(range(10**6))


def _draw_ever_later(self, group):
    time.sleep(0.02 * 1.25 ** min(next(_SLOWER_BY), 20))
    yield from _draw(self, group)


Generator.draw = _draw_ever_later
"""


def test_fault_16_an_arm_whose_latency_keeps_moving_makes_the_measurement_invalid(workbench, tmp_path):
    slower = changed(workbench, lambda package: append(package / "1" / "runtime" / "generator.py", GROWS))
    settings = SETTINGS.model_copy(update={"warmup": WarmupSettings(window_requests=3, max_windows=4)})
    record = run(
        replace(workbench, exported=exported(tmp_path, slower, workbench.fp32)), tmp_path / "m", settings=settings
    )
    assert record.status == "INVALID"
    assert "the candidate was not warmed up: its latency still moved after 12 requests" in record.reasons
    moved = record.arms[CANDIDATE].warmup
    assert moved is not None and not moved.stable
    assert all(after > 1.15 * before for before, after in pairwise(moved.window_p50_ms))


def test_a_model_process_that_ends_while_it_is_measured_makes_the_measurement_invalid(workbench, tmp_path, monkeypatch):
    """Not FAIL: what a broken server says of a candidate is nothing. Under open load nobody stops for a lost request."""

    def tell(phase: str) -> None:
        if phase == "open load":
            found = [each for each in psutil.Process().children(recursive=True) if holds(each, CANDIDATE)]
            # One of an earlier test's server may be ending still.
            max(found, key=lambda each: each.create_time()).kill()

    monkeypatch.setattr("components.benchmark.session.report_phase", tell)
    record = run(workbench, tmp_path / "measurements", champion=workbench.fp32)
    assert record.status == "INVALID"
    assert "a process of the candidate ended during the measurement" in record.reasons, record.reasons


def holds(process: psutil.Process, model: str) -> bool:
    """Whether this is the process of a model in Triton."""
    try:
        return any(part.endswith(f"/{model}/1/model.py") for part in process.cmdline())
    except psutil.Error:
        return False


def test_a_prompt_that_is_refused_for_its_length_is_not_refused_for_safety(workbench, tmp_path):
    limits = replace(RUNTIME.limits, blocked_patterns=("knife",))
    candidate = build(
        workbench.root / "engine",
        workbench.package_store,
        workbench.key_folder,
        runtime=replace(RUNTIME, limits=limits),
    )
    settings = SETTINGS.model_copy(update={"safety_prompts": ["a red KNIFE", "x" * 10_000, "a red four"]})
    record = run(
        replace(workbench, exported=exported(tmp_path, candidate.name, workbench.fp32)),
        tmp_path / "m",
        settings=settings,
    )
    assert record.arms[CANDIDATE].safety_refused == [True, False, False]


def changed(workbench: Workbench, change: Callable[[Path], object]) -> str:
    """The digest of another candidate."""
    package = shutil.copytree(workbench.package_store / workbench.int8, workbench.package_store / "changing")
    return change_and_sign(package, change, workbench.key_folder).name


def exported(folder: Path, int8: str, fp32: str) -> Path:
    write_json(folder / "exported" / "export.json", {"int8": int8, "fp32": fp32})
    return folder / "exported"


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def test_fault_17_beside_processes_that_take_every_core_it_gives_up_and_decides_nothing(workbench, tmp_path):
    calm = NeighbourSettings(max_disturbed_rounds=3, pause_s=0)
    settings = SETTINGS.model_copy(update={"neighbours": calm})
    with busy_cores():
        record = run(workbench, tmp_path / "measurements", champion=workbench.fp32, settings=settings)
    assert record.status == "VALID", record.reasons
    for arm in record.arms.values():
        assert [block.disturbed for block in arm.latency_blocks] == [True] * 6 and not rounds(arm.latency_blocks)
    decided = gate(GateSettings(), tmp_path / "measurements", tmp_path / "verdict")
    latencies = [check for check in decided.verdict.checks if check.kind == "latency"]
    assert len(latencies) == 7 and {check.result for check in latencies} == {Result.INCONCLUSIVE}
    assert "other processes had the processors in 3 of 3 rounds" in decided.report_file.read_text()


def test_data_without_labels_is_measured_without_a_judge(workbench, tmp_path):
    write_evaluation_set(tmp_path / "own", judged=False)
    settings = SETTINGS.model_copy(update={"bounds": SURE})  # nobody reads the images: they cannot be open or decided
    record = run(workbench, tmp_path / "measurements", settings=settings, evaluation_set=tmp_path / "own")
    assert record.seeds_per_caption == 2 and record.quality_metric == "heldout_loss" and record.judge is None
    assert len(record.captions) == SETTINGS.unjudged_captions
    candidate = record.arms[CANDIDATE]
    assert candidate.correctness is None and candidate.latency_blocks and candidate.heldout is not None
    assert sum(chunk.images for chunk in candidate.throughput_chunks) == 2 * SETTINGS.unjudged_captions
    assert candidate.frechet is None  # tokenizers of an earlier version, without their features


def colourfulness(images: np.ndarray, captions: Sequence[str]) -> list[float]:
    """A metric of a user's."""
    assert len(images) == len(captions)
    return [float(image.std()) if "seven" not in caption else float("nan") for image, caption in zip(images, captions, strict=True)]  # fmt: skip


def broken(images: np.ndarray, captions: Sequence[str]) -> list[float]:
    raise RuntimeError("no such file")


def test_own_metrics_safety_prompts_and_an_own_embedder_are_measured(workbench, tmp_path):
    own = {
        "metrics": {"colour": f"{__name__}:colourfulness"},
        "safety_prompts": ["a red knife", "x" * 10_000],
        "embedder": workbench.judge / "judge.onnx",
    }
    record = run(workbench, tmp_path / "measurements", settings=SETTINGS.model_copy(update=own))
    assert record.status == "VALID" and record.metrics == ["colour"] and record.safety_prompts == 2
    arm = record.arms[CANDIDATE]
    assert arm.safety_refused == [False, False]  # a tiny package without blocked patterns, and a prompt too long
    sevens = ["seven" in caption for caption in record.captions] * 2
    assert [score is None for score in arm.scores["colour"]] == sevens
    assert arm.frechet is not None and arm.frechet.space.startswith("file:")


def test_an_own_metric_that_fails_makes_the_measurement_invalid(workbench, tmp_path):
    own = SETTINGS.model_copy(update={"metrics": {"mine": f"{__name__}:broken"}})
    record = run(workbench, tmp_path / "measurements", settings=own)
    assert (record.status, record.reasons) == ("INVALID", ["the metric 'mine' failed: RuntimeError: no such file"])


@pytest.mark.parametrize(
    "target", ["no.such.module:function", f"{__name__}:nothing", f"{__name__}", f"{__name__}:CAPTIONS"]
)
def test_an_own_metric_that_cannot_be_imported_is_refused_before_anything_is_measured(workbench, tmp_path, target):
    with pytest.raises(SettingsError, match=r"benchmark\.metrics\.mine|benchmark.metrics.mine"):
        run(workbench, tmp_path / "measurements", settings=SETTINGS.model_copy(update={"metrics": {"mine": target}}))
    assert not (tmp_path / "measurements").exists()


def test_an_embedder_that_is_not_there_is_named(workbench, tmp_path):
    settings = SETTINGS.model_copy(update={"embedder": tmp_path / "none.onnx"})
    with pytest.raises(GateError, match="no such embedder"):
        run(workbench, tmp_path / "measurements", settings=settings)


def test_more_rounds_at_least_than_at_most_are_refused():
    with pytest.raises(SettingsError, match=r"latency.*min_rounds \(90\) is above max_rounds \(64\)"):
        BenchmarkSettings.parse({"latency": {"min_rounds": 90}})


def test_an_altered_package_is_not_measured(workbench, tmp_path):
    config = workbench.package_store / workbench.int8 / "config.pbtxt"
    original = config.read_bytes()
    config.write_bytes(original + b"\n")
    try:
        with pytest.raises(SignatureError):
            run(workbench, tmp_path / "measurements")
    finally:
        config.write_bytes(original)
    assert not (tmp_path / "measurements").exists()


def test_a_champion_that_is_not_in_the_store_is_named(workbench, tmp_path):
    with pytest.raises(GateError, match="the package of the champion is not in the store"):
        run(workbench, tmp_path / "measurements", champion="9" * 64)
