"""One process of `benchmarks.training`: our step and Hugging Face's `Trainer`, in turn.

    python -m benchmarks.training_trainer QUESTION.json

All have the same weights at the start, the same batches, precision, optimizer (AdamW, fused), clipping and schedule. The
Trainer logs nothing, saves nothing, and has the attention that is faster here, which a few steps of each tell. Both are
there as they are and compiled (ours block by block, theirs as a whole). A step's time goes from one step's end to the next
one's: data, forward, backward, optimizer, and whatever else is between.
"""

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
OURS, TRAINER, COMPILED = "ours", "trainer", ", compiled"


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


def trainer_seconds(
    model: transformers.PreTrainedModel, data: Sequences, amount: Amount, bf16: bool, steps: int
) -> list[float]:
    return trainer_block(model, data, amount, steps, bf16).seconds


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
    turns, losses = contestants(config, attention, data, amount, bf16)
    for _, block in turns:  # what is compiled is so before anything is timed
        block(2)
    blocks: dict[str, list[list[float]]] = {name: [] for name, _ in turns}
    for number in range(amount.rounds):
        for name, block in turns if number % 2 else reversed(turns):
            blocks[name].append(block(amount.steps))
    found = {
        "blocks": blocks,
        "parameters": config.parameter_count,
        "attention": {"taken": attention, "probed_s": probed_s},
        "first_losses": losses,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }
    Path(sys.argv[1]).write_text(json.dumps(found))
    dist.destroy_process_group()


def contestants(
    config: DecoderConfig, attention: str, data: Sequences, amount: Amount, bf16: bool
) -> tuple[list[tuple[str, Callable[[int], list[float]]]], dict[str, float]]:
    """What trains some steps and tells their seconds, by name; and each one's loss on the first batch, before any step."""
    turns: list[tuple[str, Callable[[int], list[float]]]] = []
    losses: dict[str, float] = {}
    with only_rank():
        for suffix in ("", COMPILED):
            theirs = reference(config, attention)
            engine = our_engine(theirs, config, amount, bf16=bf16, compiled=bool(suffix))
            losses |= first_losses(theirs, engine, data, amount, suffix)
            if suffix:
                theirs.compile()
            turns.append((OURS + suffix, partial(our_block, engine, data, amount)))
            turns.append((TRAINER + suffix, partial(trainer_seconds, theirs, data, amount, bf16)))
    return turns, losses


@contextmanager
def only_rank() -> Iterator[None]:
    """This process is the only rank while engines are made. The Trainer would take it for one of several, and wrap its
    model, where it saw that."""
    store = Path(tempfile.mkdtemp()) / "store"
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ |= told
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(backend, verbose=False, init_method=f"file://{store}", rank=0, world_size=1)
    yield
    for name in told:
        del os.environ[name]


def our_engine(
    theirs: transformers.PreTrainedModel, config: DecoderConfig, amount: Amount, *, bf16: bool, compiled: bool
) -> Any:
    """Ours, with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(Path(folder) / "theirs")
        import_checkpoint(Path(folder) / "theirs", Path(folder) / "ours")
        start = load_decoder(Path(folder) / "ours").state_dict()
    options = EngineOptions(
        layout=ParallelLayout(),
        micro_batch=amount.batch,
        accumulation=1,
        gradient_clipping=_CLIPPING,
        bf16=bf16,
        compiled=compiled,
    )
    return decoder_engine(
        options,
        config,
        lambda model: torch.optim.AdamW(
            model.parameters(), _LEARNING_RATE, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True
        ),
        start,
    )


def first_losses(
    theirs: transformers.PreTrainedModel, engine: Any, data: Sequences, amount: Amount, suffix: str
) -> dict[str, float]:
    """Of both on the first batch, before a step: the same model, or the comparison is none."""
    ids = data.ids[: amount.batch, :-1].to(engine.deepspeed.device)
    with torch.no_grad():
        own = engine.parts[0].sequence_logits(ids)[:, :-1].flatten(0, 1)
        losses = {
            OURS + suffix: torch.nn.functional.cross_entropy(own, ids[:, 1:].flatten()).item(),
            TRAINER + suffix: theirs(input_ids=ids, labels=ids).loss.item(),
        }
    if max(losses.values()) - min(losses.values()) > 1e-3:
        raise ValueError(f"the two are not one model: {losses}")
    return losses


if __name__ == "__main__":
    main()
