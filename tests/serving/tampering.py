"""Changes of a package's copy that nobody has signed, and a way to tell whether one of them was ever run."""

import importlib.util
import py_compile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.files import files_under, remove


@dataclass(frozen=True)
class Trap:
    """`sprung` is there once code was run that it has planted."""

    sprung: Path

    def code(self) -> str:
        return f"open({str(self.sprung)!r}, 'w').close()\n"

    def in_source(self, copy: Path) -> None:
        model = copy / "1" / "model.py"
        model.write_text(model.read_text() + self.code())

    def in_bytecode(self, copy: Path) -> None:
        """Of an unaltered source, as far as Python can tell."""
        model = copy / "1" / "model.py"
        planted, signed = self.sprung.with_name("planted.py"), model.stat()
        text = model.read_text() + self.code()
        planted.write_text(text)
        py_compile.compile(str(planted), cfile=str(planted.with_suffix(".pyc")), doraise=True)
        compiled = planted.with_suffix(".pyc").read_bytes()
        header = int(signed.st_mtime).to_bytes(4, "little") + signed.st_size.to_bytes(4, "little")
        cache = Path(importlib.util.cache_from_source(str(model)))
        cache.parent.mkdir(exist_ok=True)
        remove(cache)
        cache.write_bytes(compiled[:8] + header + compiled[16:])


def flip_a_byte(file: Path) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def flip_an_engine_s_byte(copy: Path) -> None:
    flip_a_byte(copy / "1" / "engine" / "weights.bin")


def garble_the_manifest(copy: Path) -> None:
    (copy / "manifest.json").write_text("{}")


def is_copy_of(copy: Path, package: Path) -> bool:
    """Whether every file is as in the package store; what Python has compiled since does not count."""

    def content(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in files_under(folder)
            if "__pycache__" not in path.parts
        }

    return content(copy) == content(package)


Tamper = Callable[[Path], None]
