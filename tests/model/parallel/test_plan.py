"""The planner: formulas where the answer is known, and published trainings."""

from dataclasses import replace

import pytest

from common.errors import UsageError
from components.train.layouts import check_layout
from components.train.settings import ParallelSettings, TrainingSettings
from model.parallel.plan.engines import EMUFLOW, MEGATRON
from model.parallel.plan.hardware import GPUS
from model.parallel.plan.layout import Layout
from model.parallel.plan.memory import memory
from model.parallel.plan.published import GPT_175B, LLAMA_8B, LLAMA_405B, MT_NLG, RUNS
from model.parallel.plan.search import best_plans, plan
from model.parallel.plan.shape import ModelShape
from model.parallel.plan.step_time import step_time
from model.transformer.config import GeneratorConfig
from model.transformer.presets import PRESETS

H100 = GPUS["h100"]
EMU = ModelShape.of("emu3.5-34b", PRESETS["emu3.5-34b"], 4096)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_published_training_is_predicted_within_a_fifth(run):
    assert abs(run.error) <= 0.20, f"{run.predicted_s:.2f} s for {run.step_s:.2f} s ({run.source})"


def test_at_most_two_runs_of_each_gpu_calibrate_it():
    for gpu in ("a100", "h100"):
        of_gpu = [run for run in RUNS if run.gpu.name == gpu]
        assert sum(run.calibrates for run in of_gpu) == 2 and len(of_gpu) >= 8


@pytest.mark.parametrize("run", [run for run in RUNS if run.memory_gib], ids=lambda run: run.name)
def test_memory_counts_most_of_a_published_peak_and_not_more(run):
    assert 0.65 <= memory(run.shape, run.layout).total / run.memory_gib <= 1.05


@pytest.mark.parametrize(
    ("shape", "billions"), [(MT_NLG, 530), (GPT_175B, 175), (LLAMA_8B, 8.03), (LLAMA_405B, 405.8), (EMU, 34.1)]
)
def test_parameters_are_those_of_the_models(shape, billions):
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_model_flops_are_counted_as_the_papers_count_them():
    """Smith et al. 2022: 126 TFLOP/s for each of 2,240 GPUs at 60.1 s, everything computed again (4 passes for 3)."""
    flops = MT_NLG.model_flops_per_token * 1920 * 2048 * 4 / 3
    assert flops / 2240 / 60.1 / 1e12 == pytest.approx(126, rel=0.01)
    """Jiang et al. 2024: 55.2% of 312 TFLOP/s on 12,288 GPUs at 6.34 s."""
    assert GPT_175B.model_flops_per_token * 6144 * 2048 / 12288 / 6.34 / 312e12 == pytest.approx(0.552, rel=0.02)


def test_a_pipeline_is_idle_as_long_as_it_fills():
    one = step_time(EMU, Layout(8, 1, 1, 1, 16), H100)
    four = step_time(EMU, Layout(8, 4, 1, 1, 16), H100)
    work = four.matmul + four.elementwise + four.tensor_transfers
    assert one.bubble == 0 and four.bubble == pytest.approx(work * 3 / 16)
    assert step_time(EMU, Layout(8, 4, 1, 1, 16, virtual=4), H100).bubble == pytest.approx(four.bubble / 4)
    assert work == pytest.approx((one.matmul + one.elementwise + one.tensor_transfers) / 4)


def test_transfers_are_those_of_rings():
    layout = Layout(8, 1, 16, 2, 3, engine=MEGATRON)
    sent, tokens, layers = step_time(EMU, layout, H100).link_bytes, 2 * 4096, EMU.layers
    assert sent["tensor"] == pytest.approx(3 * layers * 4 * 2 * 7 / 8 * tokens * EMU.hidden * 2)
    assert sent["data"] == pytest.approx(15 / 16 * EMU.parameters / 8 * 4)
    # This project's engine: what goes backward is fp32, as weights and their gradients are.
    own = step_time(EMU, replace(layout, engine=EMUFLOW), H100).link_bytes
    assert own["tensor"] == pytest.approx(1.5 * sent["tensor"]) and own["data"] == pytest.approx(2 * sent["data"])
    split = step_time(EMU, replace(layout, zero=2), H100).link_bytes["data"]  # gradients for each of 3 micro-batches
    assert split == pytest.approx(sent["data"] * (2 + 3 * 2) / 4)
    staged = replace(layout, pipeline=4)
    sent, own = (step_time(EMU, replace(staged, engine=each), H100).link_bytes for each in (MEGATRON, EMUFLOW))
    assert sent["pipeline"] == pytest.approx(3 * 2 * tokens * EMU.hidden * 2 / 8)
    assert own["pipeline"] == pytest.approx(3 * 2 * tokens * EMU.hidden * 4)  # fp32, and whole on each tensor rank
    assert step_time(EMU, Layout(1, 1, 1, 1, 1), H100).link_bytes == {"tensor": 0, "pipeline": 0, "data": 0}


def test_what_is_computed_again_costs_time_and_saves_memory():
    layouts = [Layout(8, 1, 8, 1, 4, recompute=what, engine=MEGATRON) for what in ("none", "selective", "full")]
    times = [step_time(EMU, layout, H100).total for layout in layouts]
    held = [memory(EMU, layout).activations for layout in layouts]
    assert times == sorted(times) and held == sorted(held, reverse=True)
    assert 1.2 < times[2] / times[0] < 4 / 3  # the head is not computed again


def test_sharding_splits_what_its_stage_says():
    whole, one, two, three = (
        memory(EMU, Layout(1, 1, 64, 1, 1, zero=stage, engine=MEGATRON)) for stage in (0, 1, 2, 3)
    )
    gib = EMU.parameters / 2**30
    assert (whole.optimizer, whole.weights, whole.gradients) == pytest.approx((12 * gib, 2 * gib, 2 * gib))
    assert one.optimizer == pytest.approx(whole.optimizer / 64) and one.weights == whole.weights
    assert (two.weights, two.gradients) == pytest.approx((whole.weights, 2 * gib / 64))
    assert three.gradients == pytest.approx(2 * gib / 64) and three.weights < 0.1 * whole.weights


def test_the_stage_with_the_head_is_the_fullest_where_its_logits_are_large():
    shape = ModelShape.of("qwen3-8b", PRESETS["qwen3-8b"], 4096)
    layout = Layout(1, 4, 16, 8, 16, recompute="full")
    held = memory(shape, layout)
    assert held.logits == pytest.approx(8 * 8 * 4096 * shape.vocabulary / 2**30)
    assert held.total > 70 and not plan(shape, layout, H100).fits
    small = memory(shape, replace(layout, micro_batch=1, accumulation=128, recompute="none"))
    assert small.logits == 0  # the first stage: its activations of four micro-batches are more
    chunks = replace(layout, engine=MEGATRON, virtual=3, micro_batch=1, accumulation=128, recompute="none")
    assert memory(replace(shape, vocabulary=10_000_000), chunks).activations < memory(shape, chunks).activations


def test_this_engine_keeps_fp32_and_copies_of_what_is_multiplied_with():
    whole, one, three = (memory(EMU, Layout(1, 1, 64, 1, 1, zero=stage)) for stage in (0, 1, 3))
    gib, copies = EMU.parameters / 2**30, 2 * (EMU.parameters - EMU.embedding_parameters) / 2**30
    assert (whole.weights, whole.gradients, whole.optimizer) == pytest.approx((4 * gib + copies, 4 * gib, 8 * gib))
    assert one.optimizer == pytest.approx(12 * gib / 64) and one.weights == whole.weights
    assert three.gradients == pytest.approx(4 * gib / 64) and three.weights > copies
    # Each micro-batch in flight has its copies; where blocks are computed again, one has. (Few logits: the first stage's.)
    few = replace(EMU, vocabulary=32_000)
    in_flight, again = (memory(few, Layout(1, 4, 1, 1, 8, recompute=what)).weights for what in ("none", "full"))
    stage = (EMU.layers * EMU.block_parameters / 4) / 2**30
    assert in_flight - again == pytest.approx(2 * 3 * stage)


def test_norms_and_what_enters_the_products_are_whole_on_each_tensor_rank():
    one, eight = (memory(EMU, Layout(size, 1, 1, 1, 1)).activations for size in (1, 8))
    outer = EMU.layers * 4096 * 12 * EMU.hidden / 2**30
    assert eight == pytest.approx(outer + (one - outer) / 8)
    split = memory(EMU, Layout(8, 1, 1, 1, 1, sequence_parallel=True, engine=MEGATRON))
    assert split.activations < 0.5 * eight
    # A layout that Megatron fits into an H100, and this engine does not.
    layout = Layout(4, 1, 512, 1, 4, sequence_parallel=True, engine=MEGATRON)
    assert plan(EMU, layout, H100).fits
    assert plan(EMU, replace(layout, sequence_parallel=False, engine=EMUFLOW), H100).memory.total > H100.memory_gib


@pytest.mark.parametrize(
    ("preset", "gpus"), [("qwen3-0.6b", 8), ("1b", 64), ("qwen3-8b", 64), ("qwen3-8b", 1024), ("emu3.5-34b", 2048)]
)
def test_the_trainer_takes_every_best_plan(preset, gpus):
    config = PRESETS[preset]
    generator = GeneratorConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
    )
    for each in best_plans(ModelShape.of(preset, config, 4096), H100, gpus, 2048, count=100):
        layout = each.layout
        parallel = ParallelSettings(
            tensor=layout.tensor,
            pipeline=layout.pipeline,
            zero=layout.zero,
            activation_checkpointing=layout.recompute == "full",
            micro_batch_size=layout.micro_batch,
        )
        settings = TrainingSettings(processes=gpus, global_batch_size=2048, optimizer="adamw", parallel=parallel)
        assert check_layout("training", settings, generator, "next_token") == layout.micro_batch * layout.accumulation
        assert layout.virtual == 1 and not layout.sequence_parallel and layout.recompute in ("none", "full")
        assert layout.pipeline == 1 or not config.tie_word_embeddings  # `decoder_engine` refuses it


def test_another_engine_has_plans_that_the_trainer_does_not_take():
    found = best_plans(EMU, H100, 2048, 2048, engine=MEGATRON)
    assert any(each.layout.virtual > 1 for each in found) and all(each.layout.sequence_parallel for each in found)
    assert found[0].time.total < best_plans(EMU, H100, 2048, 2048, count=1)[0].time.total


@pytest.mark.parametrize(
    ("layout", "shape", "told"),
    [
        (Layout(1, 2, 2, 1, 4, virtual=2), EMU, "one chunk of layers"),
        (Layout(1, 2, 2, 1, 4, zero=3), EMU, "no ZeRO-3 with pipeline"),
        (Layout(1, 2, 2, 1, 4), replace(EMU, tied=True), "tied to the embedding"),
        (Layout(1, 1, 4, 1, 4, recompute="selective"), EMU, "compute again what is selective"),
        (Layout(2, 1, 2, 1, 4, sequence_parallel=True), EMU, "no sequence parallel"),
        (Layout(8, 1, 1, 1, 4), replace(EMU, kv_heads=4), "4 key and value heads"),
    ],
)
def test_what_this_engine_does_not_do_is_refused_and_another_does_it(layout, shape, told):
    with pytest.raises(UsageError, match=told):
        plan(shape, layout, H100)
    assert plan(shape, replace(layout, engine=MEGATRON), H100).time.total > 0


def test_the_best_plans_fit_are_sorted_and_beat_the_reference_layout():
    found = best_plans(EMU, H100, 2048, 2048)
    assert all(each.fits and each.layout.gpus == 2048 and each.layout.batch == 2048 for each in found)
    assert [each.time.total for each in found] == sorted(each.time.total for each in found)
    reference = plan(EMU, Layout(8, 4, 64, 1, 32), H100)
    assert found[0].time.total < reference.time.total and 0.2 < reference.mfu < found[0].mfu < 0.6
    days = found[0].days(10e12)
    assert days == pytest.approx(10e12 / (2048 * 4096) * found[0].time.total / 86400)
    assert found[0].cost_usd(10e12) == pytest.approx(days * 24 * 2048 * H100.usd_per_hour)


def test_more_gpus_at_the_same_batch_are_faster_and_less_used():
    best = [best_plans(EMU, H100, gpus, 2048, count=1)[0] for gpus in (64, 512, 4096)]
    assert [each.tokens_per_s for each in best] == sorted(each.tokens_per_s for each in best)
    assert [each.mfu for each in best] == sorted((each.mfu for each in best), reverse=True)


def test_what_does_not_fit_or_divide_is_refused_with_what_would():
    with pytest.raises(UsageError, match="does not fit 8 A100"):
        best_plans(EMU, GPUS["a100"], 8, 64)
    with pytest.raises(UsageError, match="64 layers do not divide into 3"):
        plan(EMU, Layout(1, 3, 1, 1, 1), H100)
    with pytest.raises(UsageError, match="leave the node of 8"):
        plan(EMU, Layout(16, 1, 1, 1, 1), H100)
    with pytest.raises(UsageError, match="heads"):
        plan(replace(EMU, heads=60), Layout(8, 1, 1, 1, 1), H100)
