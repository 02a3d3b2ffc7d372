"""What stands in a package, and that it needs nothing from outside."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.errors import ExportError
from common.files import files_under, read_json, write_json
from serving.package.builder import build_package
from serving.package.manifest import read_manifest
from serving.package.runtime.generator import Generator
from serving.package.runtime.requests import Request, RequestError
from serving.package.verify import verify
from tests.engines import CAPTIONS, TinyShape, write_engine
from tests.packages import RUNTIME, provenance

ALLOWED_IMPORTS = {"numpy", "onnxruntime", "triton_python_backend_utils"}


def build(engine: Path, store: Path, keys: Path, *, coarse_steps: int = 2, run_id: str = "run-1") -> Path:
    return build_package(
        engine,
        "int8",
        decoding={"coarse_steps": coarse_steps},
        runtime=RUNTIME,
        provenance=provenance(run_id),
        key_folder=keys,
        package_store=store,
    )[0]


def test_the_same_content_has_the_same_digest(engine: Path, key_folder: Path, tmp_path: Path) -> None:
    first, second = (build(engine, tmp_path / name, key_folder) for name in ("a", "b"))
    assert first.name == second.name == read_manifest(first).digest


def test_other_settings_provenance_or_weights_have_another_digest(
    engine: Path, key_folder: Path, tmp_path: Path
) -> None:
    others = [
        build(engine, tmp_path, key_folder),
        build(engine, tmp_path, key_folder, coarse_steps=3),
        build(engine, tmp_path, key_folder, run_id="run-2"),
        build(write_engine(tmp_path / "engine", seed=9), tmp_path, key_folder),
    ]
    assert len({package.name for package in others}) == 4


def test_the_layout_is_the_contract_s(packages: dict[str, Path]) -> None:
    names = {path.relative_to(packages["int8"]).as_posix() for path in files_under(packages["int8"])}
    expected = {"config.pbtxt", "manifest.json", "manifest.sig", "1/model.py", "1/generator.json", "1/tokenizer.json"}
    assert expected <= names
    assert {f"1/engine/{name}.onnx" for name in ("prefill", "coarse", "fine", "image_decoder", "draw")} <= names
    assert "1/runtime/decoding/loop.py" in names
    assert not any("__pycache__" in name for name in names)
    assert read_json(packages["int8"] / "1" / "generator.json")["decoding"] == {"coarse_steps": 2}


def test_the_code_inside_imports_numpy_and_onnxruntime_alone(packages: dict[str, Path]) -> None:
    for path in packages["int8"].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - ALLOWED_IMPORTS
            assert not foreign, f"{path.name} imports {foreign}"


def test_a_package_draws_without_the_project(packages: dict[str, Path], tmp_path: Path) -> None:
    """The runtime runs from the package's folder alone, where none of the project's packages can be imported."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from runtime.generator import Generator\n"
        "Generator(Path(sys.argv[1])).check()\n"
        "assert not {'serving', 'model', 'common', 'tokenizers', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-IB", "-c", script, str(packages["int8"] / "1")], check=True, cwd=tmp_path)


def test_an_image_depends_on_prompt_and_seed_alone(packages: dict[str, Path]) -> None:
    generator = Generator(packages["int8"] / "1")

    def draw(prompt: str, seed: int) -> np.ndarray:
        *previews, final = generator.images(Request(prompt, seed, coarse_steps=None, temperature=1.0))
        assert [preview.pixels.shape for preview in previews] == [(32, 32, 3)]
        assert final.stage == "final" and final.pixels.shape == (64, 64, 3)
        return final.pixels

    assert (draw("a red seven", 3) == draw("a red seven", 3)).all()
    assert (draw("a red seven", 3) != draw("a red seven", 4)).any()
    assert (draw("a red seven", 3) != draw("a blue nine", 3)).any()


def test_a_package_that_is_guided_draws_something_else(engine: Path, key_folder: Path, tmp_path: Path) -> None:
    def draw(guidance: float) -> np.ndarray:
        package, _ = build_package(
            engine,
            "int8",
            decoding={"coarse_steps": 1, "temperature": 0.0, "guidance": guidance},
            runtime=RUNTIME,
            provenance=provenance("run-1"),
            key_folder=key_folder,
            package_store=tmp_path,
        )
        generator = Generator(package / "1")
        asked = [Request(caption, 3, coarse_steps=None, temperature=None) for caption in CAPTIONS]
        return np.array([next(generator.images(request)).pixels for request in asked])

    assert (draw(1.0) == draw(1.0)).all()
    assert (draw(1.0) != draw(20.0)).any()


def test_a_model_without_an_unconditional_answer_is_not_packaged_with_guidance(
    key_folder: Path, tmp_path: Path
) -> None:
    engine = write_engine(tmp_path / "engine", shape=TinyShape(unconditional_share=0.0))
    with pytest.raises(ExportError, match=r"decoding\.guidance"):
        build_package(
            engine,
            "int8",
            decoding={"guidance": 3.0},
            runtime=RUNTIME,
            provenance=provenance(),
            key_folder=key_folder,
            package_store=tmp_path / "store",
        )
    assert list((tmp_path / "store").iterdir()) == []


def test_a_prompt_stands_between_bos_and_boi(packages: dict[str, Path]) -> None:
    generator = Generator(packages["int8"] / "1")
    special = read_json(packages["int8"] / "1" / "generator.json")["special"]
    ids = generator.prompt_ids("a red seven")[0].tolist()
    start = ids.index(special["bos"])
    assert len(ids) == 24 and ids[-1] == special["boi"] and set(ids[:start]) == {special["pad"]}
    with pytest.raises(RequestError, match="tokens, more than 22"):
        generator.prompt_ids("x y z " * 10)


@pytest.mark.parametrize("name", ["int8/coarse.onnx", "int8/weights.bin", "generator.json"])
def test_fault_14_an_engine_without_a_file_gives_no_package(tmp_path: Path, key_folder: Path, name: str) -> None:
    engine = write_engine(tmp_path / "engine")
    (engine / name).unlink()
    with pytest.raises(ExportError, match=name.split("/")[-1]):
        build(engine, tmp_path / "store", key_folder)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_model_with_plans_is_packaged_with_the_two_parts_of_its_prefill(key_folder: Path, tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine")
    description = read_json(engine / "generator.json")
    write_json(engine / "generator.json", description | {"plan_noise_shape": [24, 19]})
    for name in ("prompt.onnx", "plan.onnx"):
        with pytest.raises(ExportError, match=name):
            build(engine, tmp_path / "store", key_folder)
        (engine / "int8" / name).write_bytes(b"a graph")
    graphs = {path.name for path in (build(engine, tmp_path / "store", key_folder) / "1" / "engine").glob("*.onnx")}
    assert graphs == {f"{name}.onnx" for name in ("prompt", "plan", "coarse", "fine", "image_decoder", "draw")}


def altered(package: Path) -> None:
    (package / "1" / "generator.json").write_text("{}")


def incomplete(package: Path) -> None:
    (package / "1" / "engine" / "weights.bin").unlink()


def foreign(package: Path) -> None:
    (package / "1" / "__pycache__").mkdir()
    (package / "1" / "__pycache__" / "model.pyc").write_bytes(b"")


def unsigned(package: Path) -> None:
    (package / "manifest.sig").unlink()


def no_folder(package: Path) -> None:
    shutil.rmtree(package)
    package.write_text("not a package")


@pytest.mark.parametrize("damage", [altered, incomplete, foreign, unsigned, no_folder])
def test_a_damaged_package_is_replaced_when_it_is_exported_again(
    engine: Path, key_folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    package = build(engine, tmp_path, key_folder)
    damage(package)
    assert build(engine, tmp_path, key_folder) == package
    verify(package, key_folder, expected_digest=package.name)
    assert list(tmp_path.iterdir()) == [package]


def test_a_package_by_a_key_that_is_not_trusted_any_more_is_signed_anew(
    engine: Path, key_folder: Path, tmp_path: Path
) -> None:
    package = build(engine, tmp_path / "store", tmp_path / "old keys")
    assert build(engine, tmp_path / "store", key_folder) == package
    verify(package, key_folder)


def test_a_whole_package_is_left_as_it_is(engine: Path, key_folder: Path, tmp_path: Path) -> None:
    package = build(engine, tmp_path, key_folder)
    before = package.stat()
    assert build(engine, tmp_path, key_folder) == package
    assert (package.stat().st_ino, package.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
