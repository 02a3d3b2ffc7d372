"""A loaded package: everything that a request may ask of it is in this process from the start."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from common.files import read_json, write_json
from serving.package.runtime.generator import Generator
from serving.package.runtime.graphs import Graph
from serving.package.runtime.providers import load_graph


def loaded_graphs(package: Path, folder: Path, **decoding: Any) -> set[str]:
    """What is loaded at the start of a package with these settings."""
    version = Path(shutil.copytree(package / "1", folder / "1"))
    config = read_json(version / "generator.json")
    write_json(version / "generator.json", config | {"decoding": decoding})
    names = set()

    def load(file: Path) -> Graph:
        names.add(file.stem)
        return load_graph(file, threads=1)

    Generator(version, load)
    return names


ALWAYS = {"prefill", "coarse", "fine", "image_decoder"}


@pytest.mark.parametrize("decoding", [{}, {"coarse_steps": 2}, {"guidance": 3.0}, {"previews": False}])
def test_a_graph_that_a_request_can_ask_is_loaded_at_the_start(
    packages: dict[str, Path], tmp_path: Path, decoding: dict[str, Any]
) -> None:
    assert loaded_graphs(packages["int8"], tmp_path, **decoding) == ALWAYS | {"draw"}


@pytest.mark.parametrize("decoding", [{"redraw_below": 0.1}, {"top_p": 0.9}, {"fine_temperature": 0.5}])
def test_one_that_none_can_ask_takes_no_memory(
    packages: dict[str, Path], tmp_path: Path, decoding: dict[str, Any]
) -> None:
    """No request changes these settings, and with them no image is drawn in one call."""
    assert loaded_graphs(packages["int8"], tmp_path, **decoding) == ALWAYS


def test_what_is_drawn_in_one_call_is_looked_at_too(packages: dict[str, Path], tmp_path: Path) -> None:
    """The defaults of this package, two steps, never draw so."""
    version = Path(shutil.copytree(packages["int8"] / "1", tmp_path / "1"))
    shutil.copyfile(version / "engine" / "image_decoder.onnx", version / "engine" / "draw.onnx")
    generator = Generator(version)
    with pytest.raises(Exception, match=r"text_ids|sketch_noise|Invalid"):
        generator.check()
