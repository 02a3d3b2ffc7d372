"""Settings of ingest."""

from pydantic import Field

from common.settings import Section
from components.images import MOST_PIXELS
from components.ingest.digit_world.settings import DigitWorldSettings

BUILT_IN = "digit-world"


class LimitSettings(Section):
    """What a member may be; anything beyond goes to quarantine, unread where its size tells."""

    max_pixels: int = Field(
        default=50_000_000, ge=1, le=MOST_PIXELS, description="width x height, read from the image's header"
    )
    max_member_bytes: int = Field(default=64 << 20, ge=1, le=1 << 30, description="encoded size of one image")
    max_text_bytes: int = Field(default=1 << 20, ge=1, le=64 << 20, description="size of one .txt or .json")
    max_caption_chars: int = Field(default=2000, ge=1, le=1_000_000)


class EvaluationSettings(Section):
    """How the evaluation set is chosen from a user's own data. The digit world has its own rule."""

    fraction: float = Field(default=0.05, gt=0, le=0.5, description="share of the samples to hold out")
    minimum_rows: int = Field(default=64, ge=1, description="hold out at least so many, but never more than a fifth")
    minimum_side: int = Field(default=16, ge=1, description="smaller images are not held out")
    near_duplicate_rms: float = Field(
        default=5.0,
        ge=0,
        le=64,
        description="two pictures are near-duplicates when their 16x16 thumbnails differ by less (grey levels)",
    )
    hold_out_captions: bool = Field(default=True, description="samples with the same caption stay on one side")


class IngestSettings(Section):
    """Where the data is, what is accepted, and what is held out."""

    source: str = Field(default=BUILT_IN, min_length=1, description="'digit-world', or the path of a file or folder")
    tolerate_empty_shards: bool = Field(
        default=False, description="go on where a tar or Parquet file gives no sample at all"
    )
    digit_world: DigitWorldSettings = DigitWorldSettings()
    limits: LimitSettings = LimitSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
