"""The model repository of one Triton server: verified copies of packages, under the names that they serve as."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from common.errors import SignatureError
from common.files import remove
from serving.control import LoadTimeout
from serving.package.manifest import Manifest, read_manifest
from serving.package.verify import verify


class ModelRepository:
    """`folder/models` is what Triton reads; copies are made and verified in `folder/incoming` first."""

    def __init__(self, folder: Path, key_folder: Path):
        self.models = folder / "models"
        self._incoming = folder / "incoming"
        self._key_folder = key_folder
        for path in (self.models, self._incoming):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def clear(self) -> None:
        """Remove every model and what a crash may have left. Only while no server reads the repository."""
        for folder in (self.models, self._incoming):
            for path in folder.iterdir():
                remove(path)

    def materialise(self, package: Path, name: str, *, expected_digest: str | None = None) -> Manifest:
        """Put a verified copy of `package` under `name`. Raises `SignatureError`, and then nothing has changed."""
        with self.replacing(package, name, expected_digest=expected_digest) as manifest:
            return manifest

    @contextmanager
    def replacing(
        self,
        package: Path,
        name: str,
        *,
        expected_digest: str | None = None,
        prepare: Callable[[Path, Manifest], object] | None = None,
    ) -> Iterator[Manifest]:
        """Put a verified copy of `package` under `name` for the body to load; if that fails, undo it.

        Where the body raises `LoadTimeout`, or this process is interrupted, Triton may still read the copy: it stays, and
        the caller has to find out what serves.

        The copy is what is verified, so that nothing can change between the check and the load. `prepare` is given the
        verified copy before it is put in place; what it raises leaves everything as it was.
        """
        work = Path(tempfile.mkdtemp(dir=self._incoming))
        live, copy, old = self.models / name, work / "new", work / "old"
        try:
            if not package.is_dir():
                raise SignatureError(
                    "there is no such package",
                    where=str(package),
                    fix="put it back there, or run the pipeline again: emuflow run",
                )
            shutil.copytree(package, copy, symlinks=True)
            manifest = verify(copy, self._key_folder, expected_digest=expected_digest)
            if prepare is not None:
                prepare(copy, manifest)
            if live.exists():
                live.replace(old)
            copy.replace(live)
            try:
                yield manifest
            except LoadTimeout:
                raise
            except Exception:
                live.replace(copy)
                if old.exists():
                    old.replace(live)
                raise
        finally:
            remove(work)

    def verified(
        self, name: str, *, expected_digest: str | None = None, besides: Set[str] = frozenset()
    ) -> Manifest | None:
        """Verify what stands under `name`, which may have lain there for long: to be called right before it is loaded from
        there. Returns its manifest, `None` where nothing stands there. `besides` are unsigned files that may be there.

        Raises `SignatureError` where it is not what was signed.
        """
        live = self.models / name
        if not live.exists():
            return None
        # Whoever loaded it has left these; nobody signed them, and Python would run them in the place of the source.
        for bytecode in list(live.rglob("__pycache__")):
            remove(bytecode)
        return verify(live, self._key_folder, expected_digest=expected_digest, besides=besides)

    def digest(self, name: str) -> str | None:
        """Digest of the package that stands under `name`, by its own unverified manifest: to be told and compared, never to
        load by. `None` where nothing stands there that has one.
        """
        try:
            return read_manifest(self.models / name).digest
        except SignatureError:
            return None

    def remove(self, name: str) -> None:
        remove(self.models / name)
