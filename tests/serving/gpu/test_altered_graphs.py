"""Fault 22 in a repository with graphs of their own: what is derived from a package is laid out anew before it is loaded
again, as nobody has signed it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import SignatureError
from common.files import read_json, write_json
from serving.remote import RemoteDeployment
from serving.server import TritonServer
from tests.serving.gpu.stand_ins import StandIns
from tests.serving.gpu.test_graphs_in_triton import Place
from tests.serving.served import eventually
from tests.serving.tampering import Trap, flip_a_byte, is_copy_of


@pytest.fixture
def place(tmp_path: Path, own_store: Path, key_folder: Path) -> Iterator[Place]:
    with TritonServer(tmp_path / "theirs", tmp_path / "no-keys", stop_grace_s=0) as theirs:
        yield Place(theirs, own_store, key_folder)


@pytest.fixture
def good(packages: dict[str, Path]) -> str:
    return packages["int8"].name


@pytest.fixture
def remote(place: Place, good: str) -> RemoteDeployment:
    """It serves the package, by graphs of their own."""
    deployment = place.remote(StandIns())
    deployment.reconcile(good)
    return deployment


def model_of(place: Place, graph: str) -> Path:
    (name,) = (model for model in place.graphs() if model.endswith(f"-{graph}"))
    return place.models / name


def unload(place: Place, *models: str) -> None:
    for model in models:
        place.server.control.unload(model)
        eventually(lambda model=model: not place.server.control.is_ready(model))


def assert_as_laid_out(place: Place, good: str, own_store: Path) -> None:
    """The copy of the package beside its list of graphs, and its own engine in every graph's model."""
    copy = place.models / "generator"
    (copy / "graphs.json").rename(place.models.parent / "graphs.json")
    assert is_copy_of(copy, own_store / good)
    (place.models.parent / "graphs.json").rename(copy / "graphs.json")
    engine = own_store / good / "1" / "engine"
    for graph, model in read_json(copy / "graphs.json")["models"].items():
        assert (place.models / model / "1" / "model.onnx").read_bytes() == (engine / f"{graph}.onnx").read_bytes()


def a_program(place: Place, trap: Trap) -> None:
    model = model_of(place, "coarse") / "1" / "model.py"
    model.write_text(model.read_text() + trap.code())


def a_later_version(place: Place, trap: Trap) -> None:
    """Triton loads the one of the largest number."""
    model = model_of(place, "coarse")
    shutil.copytree(model / "1", model / "2")
    (model / "2" / "model.py").write_text((model / "1" / "model.py").read_text() + trap.code())


def weights(place: Place, trap: Trap) -> None:
    """They are the package's own, by another name."""
    flip_a_byte(model_of(place, "coarse") / "1" / "weights.bin")


def a_graph(place: Place, trap: Trap) -> None:
    flip_a_byte(model_of(place, "coarse") / "1" / "model.onnx")


@pytest.mark.parametrize("alter", [a_program, a_later_version, weights, a_graph])
@pytest.mark.parametrize("lost", ["one graph", "all"])
def test_fault_22_an_altered_graph_is_never_loaded_again(
    remote: RemoteDeployment,
    place: Place,
    good: str,
    own_store: Path,
    trap: Trap,
    alter: Callable[[Place, Trap], None],
    lost: str,
) -> None:
    alter(place, trap)
    unload(place, *(["generator", *place.graphs()] if lost == "all" else [model_of(place, "coarse").name]))
    assert remote.reconcile(good) and not remote.reconcile(good)
    assert place.version() == good and not trap.sprung.exists()
    assert_as_laid_out(place, good, own_store)
    assert not (model_of(place, "coarse") / "2").exists()


def test_fault_22_a_package_is_never_sent_to_graphs_that_are_not_its_own(
    remote: RemoteDeployment, place: Place, good: str, own_store: Path, trap: Trap
) -> None:
    """`graphs.json` is not signed, and names the models that are asked."""
    file, coarse = place.models / "generator" / "graphs.json", model_of(place, "coarse")
    shutil.copytree(coarse, place.models / "foreign")
    content = read_json(file)
    write_json(file, content | {"models": content["models"] | {"coarse": "foreign"}})
    (place.models / "foreign" / "1" / "model.py").write_text(trap.code())
    unload(place, "generator")
    assert remote.reconcile(good) and not remote.reconcile(good)
    assert read_json(file) == content
    assert place.version() == good and not trap.sprung.exists()


def test_fault_22_where_nothing_can_replace_the_package_neither_it_nor_a_graph_is_loaded(
    remote: RemoteDeployment, place: Place, good: str, own_store: Path, trap: Trap
) -> None:
    graphs = place.graphs()
    (own_store / good).rename(own_store / "elsewhere")
    trap.in_source(place.models / "generator")
    unload(place, "generator", *graphs)
    with pytest.raises(SignatureError, match="there is no such package"):
        remote.reconcile(good)
    assert not any(place.server.control.is_ready(model) for model in ("generator", *graphs))
    (own_store / "elsewhere").rename(own_store / good)
    assert remote.reconcile(good)
    assert place.version() == good and not trap.sprung.exists()


def test_fault_22_a_graph_that_was_being_loaded_for_a_process_that_ended_is_not_loaded_as_it_lies_there(
    remote: RemoteDeployment, place: Place, good: str, own_store: Path, trap: Trap
) -> None:
    a_program(place, trap)
    unload(place, model_of(place, "coarse").name)
    (place.models.parent / "loading-graphs" / model_of(place, "coarse").name).touch()  # what such a process leaves
    assert place.remote(StandIns()).reconcile(good)
    assert place.version() == good and not trap.sprung.exists()
    assert_as_laid_out(place, good, own_store)
