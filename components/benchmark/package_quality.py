"""Quality numbers that travel inside a signed package: made when it was calibrated, compared by later gates."""

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


def heldout_loss(package: Path) -> HeldoutLoss | None:
    """The held-out loss of the checkpoint that the package was made from, `None` where the package does not tell."""
    losses = _calibration(package).get("heldout_loss_per_sample")
    if not losses:
        return None
    provenance = read_manifest(package).provenance
    return HeldoutLoss(
        tokenizers_digest=provenance.tokenizers_digest,
        evaluation_digest=provenance.evaluation_digest,
        visual_vocabulary=read_json(package / _VERSION / "generator.json")["visual_vocabulary"],
        loss_per_sample=losses,
    )


def _calibration(package: Path) -> dict[str, Any]:
    path = package / _VERSION / "calibration.json"
    return read_json(path) if path.is_file() else {}
