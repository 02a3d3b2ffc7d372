"""Export: two packages that a real server loads, or none."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from common.errors import ExportError
from common.files import read_json, write_json
from components.export.export import Exported, export
from components.export.settings import DecodingSettings, ExportSettings
from model.decoding.loop import DecodingOptions
from serving.package.verify import verify
from tests.engines import write_engine
from tests.packages import provenance


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "engine")


def run(tmp_path: Path, engine: Path, decoding: DecodingSettings | None = None) -> Exported:
    return export(
        ExportSettings(),
        decoding or DecodingSettings(),
        engine,
        provenance(),
        tmp_path / "keys",
        tmp_path / "packages",
        tmp_path / "exported",
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_both_packages_are_signed_and_named_by_their_digest(tmp_path: Path, engine: Path) -> None:
    exported = run(tmp_path, engine, DecodingSettings(coarse_steps=3, temperature=0.5))
    assert names(tmp_path / "packages") == {exported.int8, exported.fp32}
    for precision, digest in (("int8", exported.int8), ("fp32", exported.fp32)):
        package = tmp_path / "packages" / digest
        manifest = verify(package, tmp_path / "keys", expected_digest=digest)
        assert (manifest.precision, manifest.provenance) == (precision, provenance())
        assert exported.bytes[precision] == sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
        config = read_json(package / "1" / "generator.json")
        assert DecodingOptions(**config["decoding"]) == DecodingOptions(coarse_steps=3, temperature=0.5)
    report = read_json(tmp_path / "exported" / "export.json")
    assert (report["int8"], report["fp32"]) == (exported.int8, exported.fp32)
    assert 0 < report["timings_ms"]["coarse"] < report["timings_ms"]["final"]


def test_the_same_engine_again_is_the_same_package(tmp_path: Path, engine: Path) -> None:
    assert run(tmp_path, engine).int8 == run(tmp_path, engine).int8
    assert len(names(tmp_path / "packages")) == 2


def missing_graph(engine: Path) -> None:
    (engine / "int8" / "coarse.onnx").unlink()


def missing_fp32(engine: Path) -> None:
    (engine / "fp32" / "weights.bin").unlink()


def cut_weights(engine: Path) -> None:
    weights = engine / "int8" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1000])


def wrong_shape(engine: Path) -> None:
    write_json(engine / "generator.json", read_json(engine / "generator.json") | {"image_size": [32, 64]})


def swapped_graphs(engine: Path) -> None:
    shutil.copy(engine / "int8" / "coarse.onnx", engine / "int8" / "fine.onnx")


@pytest.mark.parametrize("change", [missing_graph, missing_fp32, cut_weights, wrong_shape, swapped_graphs])
def test_fault_14_a_bad_engine_leaves_no_package(tmp_path: Path, engine: Path, change: object) -> None:
    assert callable(change)
    change(engine)
    with pytest.raises(ExportError):
        run(tmp_path, engine)
    assert names(tmp_path / "packages") == set()
    assert not (tmp_path / "exported").exists()


def test_fault_14_a_failed_export_keeps_the_packages_that_were_there(tmp_path: Path, engine: Path) -> None:
    before = run(tmp_path, engine)
    wrong_shape(engine)
    with pytest.raises(ExportError):
        run(tmp_path, engine)
    assert names(tmp_path / "packages") == {before.int8, before.fp32}


def test_decoding_settings_are_the_decode_loop_s(tmp_path: Path) -> None:
    assert DecodingSettings().options() == DecodingOptions()
    with pytest.raises(ValidationError):
        DecodingSettings(coarse_steps=0)


EXPORT = """
import sys
from pathlib import Path
from components.export.export import export
from components.export.settings import DecodingSettings, ExportSettings
from components.step import step
from tests.packages import provenance
engine, folder = Path(sys.argv[1]), Path(sys.argv[2])
with step("export"):
    export(ExportSettings(), DecodingSettings(), engine, provenance(),
           folder / "keys", folder / "packages", folder / "exported")
"""


def test_fault_27_a_terminated_export_leaves_no_package_no_folder_and_no_server(tmp_path: Path, engine: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen([sys.executable, "-c", EXPORT, str(engine), str(tmp_path)], env=environment) as process:
        deadline = time.monotonic() + 60
        while not (children := psutil.Process(process.pid).children(recursive=True)):  # the server's guard
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        assert names(temporary) and names(tmp_path / "packages")
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert names(temporary) == names(tmp_path / "packages") == set()
    _, left = psutil.wait_procs(children, timeout=5)
    assert left == []
