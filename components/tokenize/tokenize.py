"""The tokenize step: tokenizers, and the data as token shards."""

from dataclasses import dataclass
from pathlib import Path

from common.files import atomic_path
from components.evaluation_groups import group_numbers
from components.evaluation_set import load_evaluation_set
from components.tokenize.dropped import DroppedRows
from components.tokenize.settings import TokenizerSettings
from components.tokenize.table import captioned_images
from components.validate.result import require_validated

TRAIN, HELDOUT = "train", "heldout"
FEATURES_FILE = "features.onnx"
"""Beside the tokenizers: where the visual one sees images, uint8 [n, height, width, 3] to float32 [n, features]."""


@dataclass(frozen=True)
class TokenizeResult:
    """What the step reports."""

    train_samples: int
    heldout_samples: int
    dropped: int
    """Rows that were left out of both splits; `shards/dropped.parquet` names each with its reason."""
    tokenizers_digest: str
    lineage: str
    reused: bool
    metrics: dict[str, float]


def tokenize(
    settings: TokenizerSettings,
    curated: Path,
    validation: Path,
    evaluation_set: Path,
    parent_tokenizers: Path | None,
    tokenizers: Path,
    shards: Path,
) -> TokenizeResult:
    """Write `tokenizers/` and `shards/` from the validated table.

    The parent's tokenizers are reused unless there are none or `settings.retrain`. The held-out split is the
    evaluation set. Raises `DigestMismatchError` where the table is not the one that passed `validation` or the set not
    the one that was frozen, `DataError` where the table did not pass or a split has no usable row. What is left out,
    a caption of too many tokens say, is kept in `shards/dropped.parquet`.
    """
    table_sha256 = require_validated(curated, validation)
    frozen = load_evaluation_set(evaluation_set)

    from components.tokenize.encode import record_layout, write_split
    from components.tokenize.features import write_features
    from components.tokenize.tokenizers import reconstruction_quality, reuse_tokenizers, train_tokenizers
    from model.data.shards import sample_ids, write_manifest
    from model.tokenizers.bundle import record_metrics

    reused = parent_tokenizers is not None and not settings.retrain
    if parent_tokenizers is not None and reused:
        bundle = reuse_tokenizers(parent_tokenizers, tokenizers)
    else:
        bundle = train_tokenizers(settings, curated, tokenizers)

    write_features(bundle.visual, settings.image_size, tokenizers / FEATURES_FILE)
    counts, dropped = {}, DroppedRows()
    layout = record_layout(settings, bundle)
    with atomic_path(shards) as temporary:
        for split, table in ((TRAIN, curated), (HELDOUT, evaluation_set)):
            counts[split] = write_split(settings, bundle, table, temporary, split, dropped)
        dropped.write(temporary)
        write_manifest(
            temporary,
            layout,
            counts,
            dropped={split: dropped.reasons(split) for split in counts},
            groups={HELDOUT: group_numbers(evaluation_set, frozen, sample_ids(temporary, HELDOUT))},
            table_sha256=table_sha256,
            tokenizers_digest=bundle.digest,
            text_vocabulary=bundle.text.vocabulary,
            visual_levels=list(bundle.visual.config.levels),
            image_size=settings.image_size,
        )

    unseen = captioned_images(evaluation_set, settings.image_size, drop=lambda _id, _reason: None)
    metrics = reconstruction_quality(bundle.visual, (samples.images for samples in unseen))
    record_metrics(tokenizers, metrics)
    return TokenizeResult(
        counts[TRAIN], counts[HELDOUT], len(dropped), bundle.digest, bundle.lineage, bool(reused), metrics
    )
