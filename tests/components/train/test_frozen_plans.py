"""Where plans freeze, all ranks go on with the same ones."""

import json
import multiprocessing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch.distributed as dist

from components.train.loop import freeze_plans
from model.parallel.layout import ParallelLayout
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator

SHAPE = GeneratorConfig(
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    fine_layers=1,
)


def freeze_on_a_rank(rank: int, folder: Path) -> None:
    """Two ranks whose batches had other means; each writes what is left of them."""
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    model = Generator(SHAPE).train()
    assert model.plan is not None
    norm = model.plan.encoder["latents"][3]
    norm.running_mean.fill_(float(rank))
    norm.running_var.fill_(1.0 + 2 * rank)
    norm.num_batches_tracked.fill_(7)
    place = SimpleNamespace(data_group=dist.group.WORLD, layout=ParallelLayout(data=2))
    freeze_plans(cast(Any, SimpleNamespace(parts=[model], place=place)))
    found = [norm.running_mean[0].item(), norm.running_var[0].item(), norm.num_batches_tracked.item()]
    (folder / f"{rank}.json").write_text(json.dumps([*found, model.plan.frozen, norm.training]))
    dist.destroy_process_group()


def test_frozen_plans_are_normalised_by_what_the_first_rank_has_seen(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=freeze_on_a_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [
        [0.0, 1.0, 7, True, False]
    ] * 2
