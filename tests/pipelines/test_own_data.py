"""A user's own folder through the whole chain, with broken samples in it; and one that must stop the run."""

import io
import pickle
import tarfile
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from PIL import Image

from components.ingest.digit_world import digits, render, scenes
from tests.pipelines.chain import Chain

IMAGES = 240
BROKEN = {"cut.jpg": "undecodable", "wordless.png": "caption_empty", "trap.png": "pickle"}


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with captions beside them, and three samples that cannot be used."""
    folder = tmp_path_factory.mktemp("own") / "images"
    folder.mkdir()
    drawn, source = scenes.sample_specs(IMAGES, seed=3), digits.load_split("generation")
    pictures = render.render_scenes(source.images, source.labels, drawn, seed=3)
    for index, (scene, picture) in enumerate(zip(drawn, pictures, strict=True)):
        Image.fromarray(picture).save(folder / f"{index:04d}.png")
        (folder / f"{index:04d}.txt").write_text(f"{scene.caption}, number {index}")
    encoded = io.BytesIO()
    Image.fromarray(pictures[0]).save(encoded, "JPEG")
    (folder / "cut.jpg").write_bytes(encoded.getvalue()[:-200])
    (folder / "wordless.png").write_bytes((folder / "0001.png").read_bytes())
    (folder / "trap.png").write_bytes(pickle.dumps(Trap(folder.parent / "sprung")))
    for name in BROKEN:
        (folder / name).with_suffix(".txt").write_text("  \n" if name == "wordless.png" else "a caption")
    return folder


def test_own_images_come_to_a_verdict_and_the_broken_ones_to_quarantine(folder, tmp_path):
    chain = Chain(tmp_path / "runs")
    chain.call(
        "run", "--preset", "smoke", "--data", str(folder),
        "--set", "tokenizer.text_length=40", "--set", "gate.absolute.max_heldout_loss_ratio=2",
    )  # fmt: skip
    run = chain.status()["last_run"]
    checks = {check["name"]: check for check in run["verdict"]["checks"]}
    assert run["verdict"]["result"] == "PASS", run["verdict"]["reasons"]
    assert checks["heldout_loss_ratio"]["n"] >= 32 and 0 < checks["heldout_loss_ratio"]["value"] < 2
    assert "accuracy_int8" not in checks  # the judge reads digits, not a user's images
    table = parquet.read_table(chain.run_folder() / "samples" / "quarantine.parquet").to_pylist()
    reasons = {Path(row["source"]).stem: row["reason"] for row in table}
    assert reasons == {Path(name).stem: reason for name, reason in BROKEN.items()}
    assert not (folder.parent / "sprung").exists()


def test_fault_05_an_archive_that_reaches_outside_stops_the_run_before_any_write(folder, tmp_path):
    data, payload = tmp_path / "data", (folder / "0000.png").read_bytes()
    data.mkdir()
    with tarfile.open(data / "a.tar", "w") as archive:
        for name in ("good.png", "../evil.png"):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    chain = Chain(tmp_path / "runs")
    said = chain.call("run", "--preset", "smoke", "--data", str(data), code=1)
    assert "../evil.png" in said and "step ingest" in said
    assert not list(tmp_path.rglob("evil*"))
    assert not (chain.run_folder() / "samples").exists()
    assert chain.status()["last_run"]["status"] == "failed"
