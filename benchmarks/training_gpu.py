"""Tokens a second and MFU of a decoder of 1.1B weights on one GPU, in bf16.

    python -m benchmarks.training_gpu --json FILE

With and without activation checkpointing, with and without compiled blocks; each micro-batch that is tried, up to one that
does not fit. MFU counts the products of matrices and of attention that training needs (not those that checkpointing does
again) against the GPU's dense bf16 peak: Chowdhery et al. 2022, "PaLM", appendix B.
"""

import argparse
import gc
import itertools
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console

from benchmarks.report import Announcer, Report, Row, command_line
from benchmarks.training_trainer import only_rank
from common.errors import PlatformError
from components.train.meter import peak_flops
from model.parallel.decoder_engine import Tokens, decoder_engine
from model.parallel.engine import EngineOptions
from model.parallel.layout import ParallelLayout
from model.transformer.config import DecoderConfig
from model.transformer.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured, and of what model."""

    preset: str = "1b"
    sequence: int = 4096
    micro_batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    warmup_steps: int = 3
    steps: int = 10


def run(console: Console, file: Path | None, amount: Amount | None = None) -> bool:
    """Measure, print, and write `file`. Nothing is promised: which GPU it is decides the numbers."""
    amount, config = amount or Amount(), PRESETS[(amount or Amount()).preset]
    report = Report("training-gpu", command_line(), columns=("tokens_per_s", "mfu", "memory_gib"))
    announce = Announcer(console)
    report.notes["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    report.notes["parameters"] = config.parameter_count
    with only_rank():
        for checkpointing, compiled in itertools.product((False, True), (False, True)):
            kind = f"checkpointing {_is(checkpointing)}, compiled {_is(compiled)}"
            for micro_batch in amount.micro_batches:
                announce(f"{kind}, {micro_batch} sequences at once")
                row = _measured(amount, config, kind, micro_batch, checkpointing=checkpointing, compiled=compiled)
                if row is None:
                    break  # it does not fit, and more will not
                report.rows.append(row)
    dist.destroy_process_group()
    return report.finish(console, file)


def _measured(
    amount: Amount, config: DecoderConfig, kind: str, micro_batch: int, *, checkpointing: bool, compiled: bool
) -> Row | None:
    """None where the GPU's memory does not hold it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        steps_s = _steps_s(amount, config, micro_batch, checkpointing=checkpointing, compiled=compiled)
    except torch.OutOfMemoryError:
        return None
    median, p95 = float(np.median(steps_s)), float(np.quantile(steps_s, 0.95))
    peak, tokens = peak_flops(1), micro_batch * amount.sequence
    more = {
        "micro_batch": micro_batch,
        "tokens_per_s": tokens / median,
        "mfu": flops_per_token(config, amount.sequence) * tokens / median / peak if peak else None,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
    }
    return Row(f"{kind}, micro-batch {micro_batch}", 1000 * median, 1000 * p95, n=len(steps_s), more=more)


def _steps_s(
    amount: Amount, config: DecoderConfig, micro_batch: int, *, checkpointing: bool, compiled: bool
) -> list[float]:
    options = EngineOptions(
        layout=ParallelLayout(),
        micro_batch=micro_batch,
        accumulation=1,
        gradient_clipping=1.0,
        bf16=True,
        checkpointing=checkpointing,
        compiled=compiled,
    )
    make = partial(torch.optim.AdamW, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    engine = decoder_engine(options, config, lambda model: make(model.parameters()))
    draws, seconds = torch.Generator().manual_seed(0), []
    try:
        for _ in range(amount.warmup_steps + amount.steps):
            tokens = Tokens(torch.randint(config.vocab_size, (micro_batch, amount.sequence + 1), generator=draws))
            begun = time.perf_counter()
            engine.step([tokens])
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
    finally:
        engine.deepspeed.destroy()
    return seconds[amount.warmup_steps :]


def flops_per_token(config: DecoderConfig, sequence: int) -> float:
    """Of forward and backward: 6 for each weight of a product, 12 x layers x heads x head_dim x sequence for attention, of
    which a causal one needs half; an embedding is looked up, not multiplied."""
    embedded = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sequence / 2
    return 6 * (config.parameter_count - embedded) + attention


def _is(on: bool) -> str:
    return "on" if on else "off"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tokens a second and MFU on one GPU.")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise PlatformError("no GPU is at hand", fix="run it where torch.cuda.is_available(), with the CUDA torch")
    return 0 if run(Console(), chosen.json) else 1


if __name__ == "__main__":
    sys.exit(main())
