import pickle

import pytest
import torch

from common.errors import DataError, UntrustedFileError
from model.tokenizers.fsq import FSQ
from model.tokenizers.metrics import psnr, ssim
from model.tokenizers.settings import VisualTokenizerConfig, VisualTrainingSettings
from model.tokenizers.training import to_float, train_visual_tokenizer
from model.tokenizers.visual import VisualTokenizer

TINY = VisualTokenizerConfig(width=16, depth=1)


def blobs(count, seed=0):
    """Smooth coloured images, uint8 [count, 3, 32, 32]."""
    random = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=random)
    return (torch.nn.functional.interpolate(small, 32, mode="bilinear") * 255).to(torch.uint8)


@pytest.mark.parametrize("levels", [(8, 6, 5), (2,), (7, 5, 5, 5, 5)])
def test_every_code_survives_a_round_trip(levels):
    fsq = FSQ(levels)
    codes = torch.arange(fsq.codes)
    values = fsq.to_values(codes)
    assert torch.equal(fsq.to_codes(values), codes)
    assert values.abs().max() == 1
    assert len(values.unique(dim=0)) == fsq.codes


def test_quantization_gives_the_nearest_level_and_lets_gradients_pass():
    fsq = FSQ((8, 5))
    latents = torch.tensor([[0.1, 0.1], [-9.0, 9.0]], requires_grad=True)
    values = fsq.quantize(latents)
    torch.testing.assert_close(values.detach(), torch.tensor([[1 / 7, 0.0], [-1.0, 1.0]]))
    values.sum().backward()
    assert latents.grad is not None
    assert latents.grad[0].min() > 0.5


def test_codes_are_numbered_as_the_generator_embeds_them():
    from model.transformer.embeddings import code_levels

    values = FSQ((8, 6, 5)).to_values(torch.arange(240))
    rows = code_levels((8, 6, 5)) - torch.tensor([0, 8, 14])
    half = torch.tensor([3.5, 2.5, 2.0])
    torch.testing.assert_close(values, (rows - half) / half)


def test_one_tokenizer_serves_every_scale():
    tokenizer = VisualTokenizer(TINY).eval()
    for side in (64, 32, 16):
        codes = tokenizer.encode(torch.rand(2, 3, side, side) * 2 - 1)
        assert codes.shape == (2, side // 4, side // 4)
        assert codes.dtype == torch.int64
        assert 0 <= codes.min() <= codes.max() < 240
        assert tokenizer.decode(codes).shape == (2, 3, side, side)


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        VisualTokenizer(TINY).encode(torch.zeros(1, 3, 30, 32))


def test_codes_do_not_depend_on_the_batch():
    tokenizer = VisualTokenizer(TINY).eval()
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    assert torch.equal(tokenizer.encode(images)[3:4], tokenizer.encode(images[3:4]))


def test_training_learns_to_reconstruct_images_it_has_not_seen():
    losses = []
    settings = VisualTrainingSettings(steps=150, batch_size=8, threads=1)
    tokenizer = train_visual_tokenizer(blobs(64), TINY, settings, lambda _, loss: losses.append(loss))
    unseen = to_float(blobs(16, seed=1))
    reconstruction = tokenizer.decode(tokenizer.encode(unseen))
    assert len(losses) == 150
    assert losses[-1] < losses[0] / 4
    assert psnr(reconstruction, unseen).mean() > 18
    assert not tokenizer.training


def test_metrics_know_a_perfect_and_a_worse_copy():
    image = to_float(blobs(4))
    noisy = (image + 0.2 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    torch.testing.assert_close(ssim(image, image), torch.ones(4))
    assert (ssim(noisy, image) < 0.8).all()
    assert (psnr(noisy, image) < psnr(image, image)).all()


def test_saved_and_loaded_gives_the_same_codes(tmp_path):
    tokenizer = VisualTokenizer(TINY).eval()
    tokenizer.save(tmp_path / "visual")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(VisualTokenizer.load(tmp_path / "visual").encode(images), tokenizer.encode(images))


def test_fault_06_a_pickle_in_place_of_the_weights_is_refused(tmp_path):
    folder = tmp_path / "visual"
    VisualTokenizer(TINY).save(folder)
    for content in (pickle.dumps({"weights": [1]}), b""):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UntrustedFileError, match="safetensors"):
            VisualTokenizer.load(folder)
    (folder / "model.safetensors").unlink()
    torch.save(VisualTokenizer(TINY).state_dict(), folder / "model.pt")
    with pytest.raises(UntrustedFileError, match=r"model\.pt"):
        VisualTokenizer.load(folder)


def test_weights_of_another_shape_are_refused(tmp_path):
    VisualTokenizer(TINY).save(tmp_path / "a")
    VisualTokenizer(VisualTokenizerConfig(width=24, depth=1)).save(tmp_path / "b")
    (tmp_path / "b/model.safetensors").replace(tmp_path / "a/model.safetensors")
    with pytest.raises(DataError, match=r"config\.json"):
        VisualTokenizer.load(tmp_path / "a")
