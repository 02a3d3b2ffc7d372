"""One process of `benchmarks.training`: our step and Hugging Face's `Trainer`, in turn.

    python -m benchmarks.training_trainer QUESTION.json

Both have the same weights at the start, the same batches, precision, optimizer (AdamW, fused), clipping and schedule. The
Trainer logs nothing, saves nothing, and has the attention that is faster here, which a few steps of each tell. A step's
time goes from one step's end to the next one's: data, forward, backward, optimizer, and whatever else is between.
"""

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch.utils.data import Dataset

from benchmarks.training import Amount, pin
from model.parallel.decoder_engine import Tokens, decoder_engine
from model.parallel.engine import EngineOptions
from model.parallel.layout import ParallelLayout
from model.transformer.config import DecoderConfig
from model.transformer.huggingface import import_checkpoint, load_decoder
from model.transformer.presets import PRESETS

_LEARNING_RATE, _WEIGHT_DECAY, _BETAS, _CLIPPING = 1e-4, 0.1, (0.9, 0.95), 1.0
_PROBED_STEPS = 6


class Sequences(Dataset):
    """Random tokens: what they are changes no time."""

    def __init__(self, config: DecoderConfig, amount: Amount):
        draws = torch.Generator().manual_seed(0)
        size = amount.batch * amount.steps, amount.sequence + 1
        self.ids = torch.randint(config.vocab_size, size, generator=draws)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        # As many tokens as ours are asked for: the Trainer's model drops the last one's successor.
        return {"input_ids": self.ids[index, :-1], "labels": self.ids[index, :-1]}


class StepTimes(transformers.TrainerCallback):
    """The seconds from each step's end to the next one's."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.first_loss = math.nan

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return np.diff(self.ends).tolist()


def reference(config: DecoderConfig, attention: str) -> transformers.PreTrainedModel:
    """Hugging Face's Qwen3 of this shape, the same weights each time."""
    torch.manual_seed(0)
    shape = transformers.Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_position_embeddings,
    )
    return transformers.AutoModelForCausalLM.from_config(shape, attn_implementation=attention)


def trainer_block(
    model: transformers.PreTrainedModel, data: Sequences, amount: Amount, steps: int, bf16: bool
) -> StepTimes:
    """Some steps of the Trainer."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=amount.batch,
            max_steps=steps,
            learning_rate=_LEARNING_RATE,
            weight_decay=_WEIGHT_DECAY,
            adam_beta1=_BETAS[0],
            adam_beta2=_BETAS[1],
            max_grad_norm=_CLIPPING,
            lr_scheduler_type="cosine",
            optim="adamw_torch_fused",
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=0,
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[times])
        trainer.train()
        if trainer.model_wrapped is not model:
            raise ValueError(f"the Trainer wraps its model ({type(trainer.model_wrapped).__name__}): that takes time")
    return times


def our_block(engine: Any, data: Sequences, amount: Amount, steps: int) -> list[float]:
    """The same of ours."""
    ends = []
    for step in range(steps):
        for group in engine.optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        first = step * amount.batch % len(data)
        engine.step([Tokens(data.ids[first : first + amount.batch])])
        ends.append(time.perf_counter())
    return np.diff(ends).tolist()


def fastest_attention(
    config: DecoderConfig, data: Sequences, amount: Amount, bf16: bool
) -> tuple[str, dict[str, float]]:
    seconds = {
        attention: float(
            np.median(trainer_block(reference(config, attention), data, amount, _PROBED_STEPS, bf16).seconds)
        )
        for attention in ("sdpa", "eager")
    }
    return min(seconds, key=lambda name: seconds[name]), seconds


def main() -> None:
    question = json.loads(Path(sys.argv[1]).read_text())
    amount = Amount(**{key: question[key] for key in Amount.__dataclass_fields__})
    bf16 = question["precision"] == "bf16"
    pin(0)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    config = PRESETS[amount.preset]
    data = Sequences(config, amount)
    attention, probed_s = fastest_attention(config, data, amount, bf16)
    theirs = reference(config, attention)
    engine = our_engine(theirs, config, amount, bf16)
    losses = first_losses(theirs, engine, data, amount)
    blocks: dict[str, list[list[float]]] = {"ours": [], "trainer": []}
    turns: list[tuple[str, Callable[[], list[float]]]] = [
        ("ours", lambda: our_block(engine, data, amount, amount.steps)),
        ("trainer", lambda: trainer_block(theirs, data, amount, amount.steps, bf16).seconds),
    ]
    for number in range(amount.rounds):
        for name, block in turns if number % 2 else reversed(turns):
            blocks[name].append(block())
    found = blocks | {
        "parameters": config.parameter_count,
        "attention": {"taken": attention, "probed_s": probed_s},
        "first_losses": losses,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }
    Path(sys.argv[1]).write_text(json.dumps(found))
    dist.destroy_process_group()


def our_engine(theirs: transformers.PreTrainedModel, config: DecoderConfig, amount: Amount, bf16: bool) -> Any:
    """Ours, with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(Path(folder) / "theirs")
        import_checkpoint(Path(folder) / "theirs", Path(folder) / "ours")
        start = load_decoder(Path(folder) / "ours").state_dict()
    store = Path(tempfile.mkdtemp()) / "store"
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", verbose=False, init_method=f"file://{store}", rank=0, world_size=1)
    options = EngineOptions(
        layout=ParallelLayout(), micro_batch=amount.batch, accumulation=1, gradient_clipping=_CLIPPING, bf16=bf16
    )
    engine = decoder_engine(
        options,
        config,
        lambda model: torch.optim.AdamW(
            model.parameters(), _LEARNING_RATE, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True
        ),
        start,
    )
    # The Trainer would take this process for a rank of several, and wrap its model.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    return engine


def first_losses(
    theirs: transformers.PreTrainedModel, engine: Any, data: Sequences, amount: Amount
) -> dict[str, float]:
    """Of both on the first batch, before a step: the same model, or the comparison is none."""
    ids = data.ids[: amount.batch, :-1].to(engine.deepspeed.device)
    with torch.no_grad():
        own = engine.parts[0].sequence_logits(ids)[:, :-1].flatten(0, 1)
        losses = {
            "ours": torch.nn.functional.cross_entropy(own, ids[:, 1:].flatten()).item(),
            "trainer": theirs(input_ids=ids, labels=ids).loss.item(),
        }
    if abs(losses["ours"] - losses["trainer"]) > 1e-3:
        raise ValueError(f"the two are not one model: {losses}")
    return losses


if __name__ == "__main__":
    main()
