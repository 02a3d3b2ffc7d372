"""The models of a package's graphs in a running server: loaded and tried before the package, unloaded long after it."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from common.errors import RepositoryError, ServerError
from common.files import remove
from serving.control import Load, LoadTimeout, ModelControl
from serving.gpu.check import check_names
from serving.gpu.config import MODEL_FILE
from serving.gpu.layout import GraphLayout
from serving.gpu.names import generation_of, generations, read_graphs
from serving.gpu.onnx_file import read_onnx
from serving.gpu.probe import probe, probed_axes
from serving.package.manifest import Manifest

_LOADING_FOLDER = "loading-graphs"
"""Beside the repository's models: a file for each model that the server loads, or that was loaded and not tried yet."""
Prepare = Callable[[Path, Manifest], None]
log = logging.getLogger(__name__)


class GraphModels:
    """Those that compute for the Python model `name` of the repository `models`."""

    def __init__(
        self,
        control: ModelControl,
        models: Path,
        name: str,
        layout: GraphLayout | None,
        *,
        quiet_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Without a `layout` packages compute their graphs themselves.

        The models of a package that serves no more are unloaded when nobody has asked them for `quiet_s` seconds: until
        then the Python model in whose place another one has come may still answer what it took before.
        """
        self._control, self._models, self._name, self._layout = control, models, name, layout
        self._quiet_s, self._clock = quiet_s, clock
        self._asked: dict[str, tuple[int, float]] = {}
        self._late: dict[str, Load] = {}
        """Loads that had not ended in time, by their models, until those are tried or removed."""
        self._marks = models.parent / _LOADING_FOLDER

    def settle(self) -> None:
        """Wait for loads that nobody has waited for to their end: until then no file of theirs may be moved. Nothing is asked
        for again, as the files are not verified here. A load of another process cannot be asked, but Triton unloads its
        model after it alone; who wants that loads it anew.

        Raises `LoadTimeout` where one has not ended yet. One that failed is forgotten: who wants the model loads it anew.
        """
        for model in sorted(self._unsettled()):
            if not (self._models / model).is_dir():
                self._forget(model)
                continue
            load = self._late.get(model) or self._control.begin_unload(model)
            try:
                self._wait(model, load)
            except LoadTimeout:
                raise
            except ServerError as error:
                log.warning("a graph that was still being loaded is not there: %s", error)
                self._forget(model)
                continue
            if self._control.is_ready(model):
                self._late[model] = load  # loaded, and not tried yet
            else:
                self._forget(model)

    def stand(self) -> bool:
        """Whether the package that stands under the name has its graphs computed in the way that is wanted."""
        try:
            found = read_graphs(self._models / self._name)
        except RepositoryError:
            return False
        if found is None or self._layout is None:
            return found is None and self._layout is None
        accelerator, models = found
        there = all((self._models / model).is_dir() for model in models.values())
        return there and accelerator == self._layout.options.accelerator

    def check(self, manifest: Manifest) -> None:
        """Raise `RepositoryError` where the standing package, whose verified `manifest` this is, would ask other graphs than
        its own: nobody has signed its `graphs.json`."""
        package = self._models / self._name
        if (found := read_graphs(package)) is not None:
            check_names(package, self._name, manifest, *found)

    def complete(self) -> bool:
        """Whether the server has every graph of the standing package, tried."""
        return not any(self._lacks(model) for model in self._standing().values())

    def restore(self, manifest: Manifest) -> None:
        """Load and try those of the standing package that the server does not have. They are laid out anew before that, as
        nobody has signed what is derived; the package has just been verified, and this is its `manifest`.

        Raises as what `changing` gives.
        """
        if self._layout is None:
            return
        package = self._models / self._name
        for graph, model in self._layout.write(package, manifest, self._name, self._models).items():
            if self._lacks(model):
                self._load(package, graph, model)

    @contextmanager
    def changing(self) -> Iterator[Prepare]:
        """Gives what lays out, loads and tries the models of a verified copy that the body makes serve; if the body fails,
        none of those that are new is left. Models that the server still has of a package that served before are taken as
        they are.

        Where a load has not ended in time (`LoadTimeout`), or this process is interrupted, Triton may still read their
        files: they stay, and `retire` removes those that do not come to serve.

        What it gives raises `RepositoryError` where they cannot be laid out, `ServerError` where one does not load or answer.
        """
        undo: list[Callable[[], None]] = []

        def prepare(package: Path, manifest: Manifest) -> None:
            if self._layout is None:
                return
            generation = generation_of(self._name, manifest.digest, self._layout.options.accelerator)
            untried = self._unsettled()
            kept = {
                model for model in self._laid_out(generation) if model not in untried and self._control.is_ready(model)
            }
            undo.append(lambda: self._discard(generation, kept))
            for graph, model in self._layout.write(package, manifest, self._name, self._models).items():
                if model not in kept:
                    self._load(package, graph, model)

        try:
            yield prepare
        except LoadTimeout:
            raise
        except Exception:
            for step in undo:
                step()
            raise

    def retire(self) -> None:
        """Remove the models of packages that serve no more and are asked no more. What fails is tried the next time."""
        current = set(self._standing().values())
        for generation, models in generations(self._name, self._models).items():
            others = [model for model in models if model not in current]
            if others != models:  # it serves; what else there is of it was left half written
                self._asked.pop(generation, None)
            try:
                if others and self._is_quiet(generation, [model for model in others if self._control.is_ready(model)]):
                    self._remove(others)
                    self._asked.pop(generation, None)
            except ServerError as error:
                log.warning("the graphs of a package that serves no more are still there: %s", error)

    def _discard(self, generation: str, kept: Set[str]) -> None:
        """Where the server does not answer, `retire` does so later."""
        try:
            self._remove(model for model in self._laid_out(generation) if model not in kept)
        except ServerError as error:
            log.warning("the graphs of a package that does not serve are still there: %s", error)

    def _laid_out(self, generation: str) -> list[str]:
        return generations(self._name, self._models).get(generation, [])

    def _lacks(self, model: str) -> bool:
        return model in self._late or not self._control.is_ready(model)

    def _standing(self) -> dict[str, str]:
        found = read_graphs(self._models / self._name)
        return found[1] if found else {}

    def _load(self, package: Path, graph: str, model: str) -> None:
        try:
            self._wait(model, self._late.get(model) or self._begin(model))
            file = read_onnx(self._models / model / "1" / MODEL_FILE)
            for axes in probed_axes(package, file):
                probe(self._control, model, file, axes)
            self._forget(model)
        except LoadTimeout as error:
            raise LoadTimeout(f"the graph '{graph}' is not there yet: {error.what}", where=error.where) from error
        except ServerError as error:
            self._forget(model)
            raise ServerError(
                f"the graph '{graph}' cannot be served as a model of its own: {error.what}",
                where=error.where,
                fix="the server needs a GPU and Triton's onnxruntime backend, its log says more; without one, serve with "
                "--accelerator none",
            ) from error

    def _begin(self, model: str) -> Load:
        """A load that is marked until it is known what became of it, for a process that comes after this one."""
        self._marks.mkdir(exist_ok=True)
        (self._marks / model).touch()
        return self._control.begin_load(model)

    def _wait(self, model: str, load: Load) -> None:
        try:
            load.wait(self._control.timeout_s)
        except LoadTimeout:
            self._late[model] = load
            raise

    def _unsettled(self) -> set[str]:
        marked = {mark.name for mark in self._marks.iterdir()} if self._marks.is_dir() else set()
        return marked | self._late.keys()

    def _forget(self, model: str) -> None:
        self._late.pop(model, None)
        (self._marks / model).unlink(missing_ok=True)

    def _is_quiet(self, generation: str, loaded: list[str]) -> bool:
        """Whether nobody has asked for long enough, since this was first looked at."""
        asked, now = sum(self._control.requests(model) for model in loaded), self._clock()
        before, since = self._asked.get(generation, (-1, now))
        if asked != before:
            self._asked[generation] = (asked, now)
            since = now
        return not loaded or now - since >= self._quiet_s

    def _remove(self, models: Iterable[str]) -> None:
        for model in models:
            if self._control.is_ready(model):
                self._control.unload(model)
            remove(self._models / model)
            self._forget(model)
