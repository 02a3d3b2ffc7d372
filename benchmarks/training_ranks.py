"""The ranks of `benchmarks.training` that share a step's samples: `torchrun … -m benchmarks.training_ranks QUESTION.json`."""

import json
import os
import sys
import time
from pathlib import Path

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from benchmarks.training import Amount, pin
from model.parallel.decoder_engine import Tokens, decoder_engine
from model.parallel.engine import EngineOptions
from model.parallel.layout import ParallelLayout
from model.transformer.presets import PRESETS


def main() -> None:
    question = json.loads(Path(sys.argv[1]).read_text())
    amount = Amount(**{key: question[key] for key in Amount.__dataclass_fields__})
    pin(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    config = PRESETS[amount.preset]
    options = EngineOptions(
        layout=ParallelLayout(data=dist.get_world_size()),
        micro_batch=1,
        accumulation=amount.accumulation,
        gradient_clipping=1.0,
    )
    engine = decoder_engine(options, config, lambda model: torch.optim.AdamW(model.parameters(), 1e-4, fused=True))
    draws = torch.Generator().manual_seed(dist.get_rank())
    size = amount.accumulation, amount.sequence + 1
    ends = []
    for _ in range(amount.data_parallel_steps + 1):
        ids = torch.randint(config.vocab_size, size, generator=draws)
        engine.step([Tokens(each) for each in ids.split(1)])
        ends.append(time.perf_counter())
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps({"step_s": np.diff(ends).tolist()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
