"""A whole benchmark on a real Triton server: what it records, and when it says that it cannot be used."""

from pathlib import Path

import pytest
from PIL import Image

from common.errors import GateError, SettingsError, SignatureError
from common.files import read_json
from components.benchmark.benchmark import benchmark
from components.benchmark.measurements import CANDIDATE, CHAMPION, FULL_PRECISION, Measurements, read_measurements
from components.benchmark.settings import BenchmarkSettings, WarmupSettings
from components.gate.gate import gate
from components.gate.settings import GateSettings
from components.gate.verdict import Result
from tests.components.benchmark.conftest import CAPTIONS, SETTINGS, Workbench, write_evaluation_set


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
    }
    assert len(record.captions) == CAPTIONS
    for arm in record.arms.values():
        assert arm.correctness is not None and len(arm.correctness.correct) == 2 * CAPTIONS
        assert arm.warmup is not None and arm.warmup.stable
        assert [chunk.images for chunk in arm.throughput_chunks] == [10, 10, 10, 10, 8]
        assert 2 <= len({block.round for block in arm.latency_blocks}) <= 4
        assert [block.round for block in arm.latency_blocks] == sorted(block.round for block in arm.latency_blocks)
        assert all(len(block.samples_ms) == 4 for block in arm.latency_blocks)
    assert len({len(arm.latency_blocks) for arm in record.arms.values()}) == 1


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


def test_example_images_and_the_servers_log_are_kept(measured):
    record, folder = measured
    assert len(record.examples) == 3 * 3
    for example in record.examples:
        assert Image.open(folder / example.file).size == (64, 64)
    assert (folder / "triton.log").stat().st_size > 0


def test_the_gate_judges_what_the_benchmark_wrote(measured, tmp_path):
    _, folder = measured
    outcome = gate(GateSettings(), folder, tmp_path / "verdict")
    assert outcome.result is Result.FAIL  # random weights draw no digits, and 24 captions are not 500
    assert outcome.report_file.read_text().count("data:image/png;base64") == 9


def test_fault_16_a_server_that_was_not_warmed_up_makes_the_measurement_invalid(workbench, tmp_path):
    cold = SETTINGS.model_copy(update={"warmup": WarmupSettings(max_windows=0)})
    record = run(workbench, tmp_path / "measurements", settings=cold)
    assert record.status == "INVALID" and "not warmed up" in record.reasons[0]
    assert gate(GateSettings(), tmp_path / "measurements", tmp_path / "verdict").result is Result.INVALID


def test_data_without_labels_is_measured_without_a_judge(workbench, tmp_path):
    write_evaluation_set(tmp_path / "own", judged=False)
    record = run(workbench, tmp_path / "measurements", evaluation_set=tmp_path / "own")
    assert record.quality_metric == "heldout_loss" and record.judge is None
    assert len(record.captions) == SETTINGS.unjudged_captions
    candidate = record.arms[CANDIDATE]
    assert candidate.correctness is None and candidate.latency_blocks and candidate.heldout is not None
    assert sum(chunk.images for chunk in candidate.throughput_chunks) == 2 * SETTINGS.unjudged_captions


def test_more_rounds_at_least_than_at_most_are_refused():
    with pytest.raises(SettingsError, match=r"latency.*min_rounds \(50\) is above max_rounds \(48\)"):
        BenchmarkSettings.parse({"latency": {"min_rounds": 50}})


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
