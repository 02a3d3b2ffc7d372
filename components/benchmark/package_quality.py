"""What travels inside a signed package for the gates: made when it was calibrated, compared by later runs."""

from pathlib import Path
from typing import Any

from common.files import read_json
from components.benchmark.measurements import BlockBytes, HeldoutLoss
from serving.package.manifest import read_manifest

_VERSION = "1"


def block_bytes(package: Path) -> BlockBytes | None:
    """Bytes of the transformer blocks in both precisions, `None` where the package does not tell."""
    sizes = _calibration(package).get("block_bytes")
    if not isinstance(sizes, dict) or not {"fp32", "int8"} <= sizes.keys():
        return None
    return BlockBytes(fp32=sizes["fp32"], int8=sizes["int8"])


def evaluation_digest(package: Path) -> str:
    """The evaluation set that the package's training held out."""
    return read_manifest(package).provenance.evaluation_digest


def heldout_loss(package: Path) -> HeldoutLoss | None:
    """The held-out loss of the package's own graphs, in its own precision; `None` where the package does not tell."""
    heldout = _calibration(package).get("heldout")
    if not heldout:
        return None
    manifest = read_manifest(package)
    return HeldoutLoss(
        tokenizers_digest=manifest.provenance.tokenizers_digest,
        evaluation_digest=manifest.provenance.evaluation_digest,
        visual_vocabulary=read_json(package / _VERSION / "generator.json")["visual_vocabulary"],
        samples_digest=heldout["samples_digest"],
        masks_digest=heldout["masks_digest"],
        text_length=heldout["text_length"],
        coarse_grid=heldout["coarse_grid"],
        fine_grid=heldout["fine_grid"],
        loss_per_sample=heldout["loss_per_sample"][manifest.precision],
        groups=heldout.get("groups"),
    )


def _calibration(package: Path) -> dict[str, Any]:
    path = package / _VERSION / "calibration.json"
    return read_json(path) if path.is_file() else {}
