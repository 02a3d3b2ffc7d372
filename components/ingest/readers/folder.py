"""A folder of images, each with a caption beside it: `cat.jpg` and `cat.txt` (or `cat.json`)."""

from collections.abc import Iterator
from pathlib import Path

from components.ingest.readers.parts import IMAGE_EXTENSIONS, TEXT_EXTENSIONS, Parts, Rejected
from components.ingest.settings import LimitSettings


def read_folder(root: Path, files: list[Path], limits: LimitSettings) -> Iterator[Parts | Rejected]:
    """Stream the samples among `files` (all below `root`): files of one folder with one stem belong together."""
    samples: dict[Path, list[Path]] = {}
    for path in files:
        samples.setdefault(path.with_suffix(""), []).append(path)
    for paths in samples.values():
        yield _sample(root, paths, limits)


def _sample(root: Path, paths: list[Path], limits: LimitSettings) -> Parts | Rejected:
    images = [path for path in paths if _extension(path) in IMAGE_EXTENSIONS]
    source = (images or paths)[0].relative_to(root).as_posix()
    if len(images) > 1:
        return Rejected(source, "", "several_images", f"{', '.join(path.name for path in images)} share one name")
    contents: dict[str, bytes] = {}
    for path in paths:
        extension = _extension(path)
        limit = limits.max_text_bytes if extension in TEXT_EXTENSIONS else limits.max_member_bytes
        try:
            if not path.resolve().is_relative_to(root.resolve()):
                return Rejected(source, "", "link_outside", f"{path.name} leads out of the data folder")
            if path.stat().st_size > limit:
                return Rejected(source, "", "member_too_large", f"{path.name} has more than {limit} bytes")
            contents[extension] = path.read_bytes()
        except OSError as error:
            return Rejected(source, "", "unreadable_file", str(error.strerror))
    return Parts(source, "", contents)


def _extension(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")
