import numpy as np
import onnx
import pytest
import torch

from model.decoding.loop import DecodingOptions
from model.quantization.export_onnx import engine_graphs, export_graphs
from model.quantization.inference import with_plain_tables
from model.quantization.observe import observe
from model.quantization.smoothquant import fold_smoothing
from model.quantization.static_int8 import quantizable_layers, quantize_graph
from model.tokenizers.visual import VisualTokenizer, VisualTokenizerConfig
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator

OPTIONS = DecodingOptions(coarse_steps=2)
CONFIG = GeneratorConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    text_vocabulary=40,
    text_length=6,
    visual_levels=(4, 3),
    coarse_grid=(2, 4),
    fine_layers=1,
    fine_window=1,
    plan_tokens=4,
)

GRAPHS = engine_graphs(1)


def random_generator(seed=0):
    """A generator whose norms have outlier channels, as a trained one's do."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = Generator(CONFIG).eval()
        with torch.no_grad():
            for block in generator.decoder_blocks():
                for norm in (block.attention_norm, block.mlp_norm):
                    norm.weight.mul_(torch.exp(0.3 * torch.randn(CONFIG.hidden_size)))
                    norm.weight[:2].mul_(20)
    return generator


def random_prompts(seed=0, batches=2, size=3):
    random = np.random.default_rng(seed)
    return [random.integers(0, CONFIG.text_vocabulary, (size, CONFIG.text_length)) for _ in range(batches)]


@pytest.fixture
def generator():
    return random_generator()


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A smoothed generator, its image decoder, its four fp32 graphs, and inputs recorded from the decode loop."""
    generator = random_generator()
    fold_smoothing(generator, observe(generator, random_prompts(), OPTIONS, 0).maxima, 0.5)
    feeds = observe(generator, random_prompts(), OPTIONS, 0).feeds
    with torch.random.fork_rng():
        torch.manual_seed(0)
        visual = VisualTokenizer(VisualTokenizerConfig(levels=(4, 3), width=16, depth=1)).eval()
    folder = tmp_path_factory.mktemp("graphs")
    export_graphs(with_plain_tables(generator), visual, folder)
    return generator, visual, folder, feeds


@pytest.fixture(scope="session")
def quantized(exported, tmp_path_factory):
    """Folder of the INT8 graphs, and the quantized layers of each."""
    _, _, fp32, feeds = exported
    folder = tmp_path_factory.mktemp("int8")
    layers = {}
    for graph in GRAPHS:
        source = fp32 / f"{graph}.onnx"
        layers[graph] = quantizable_layers(onnx.load(source), heads=True)
        quantize_graph(source, folder / source.name, feeds[graph], layers[graph])
    return folder, layers
