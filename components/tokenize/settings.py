"""Settings section `tokenizer`."""

from pydantic import Field

from common.settings import Section
from model.tokenizers.settings import VisualTokenizerConfig, VisualTrainingSettings
from model.tokenizers.text import SMALLEST_VOCABULARY


class TokenizerSettings(Section):
    """How the data becomes tokens."""

    retrain: bool = Field(default=False, description="true begins a new lineage, false reuses the parent's tokenizers")
    text_vocabulary: int = Field(
        default=384, ge=SMALLEST_VOCABULARY, le=65_536, description="most tokens of the text tokenizer"
    )
    text_length: int = Field(
        default=16, ge=4, description="tokens of a prompt, padding included; longer captions are dropped"
    )
    image_size: int = Field(
        default=64, ge=16, multiple_of=8, description="images are scaled and cropped to this many pixels a side"
    )
    detail_stages: int = Field(
        default=1,
        ge=1,
        le=8,
        description="grids of details that follow the sketch, each of twice the rows and columns; the sketch is the image "
        "halved as often",
    )
    visual: VisualTokenizerConfig = VisualTokenizerConfig()
    visual_training: VisualTrainingSettings = VisualTrainingSettings()
    training_images: int = Field(
        default=4000, ge=1, description="images, drawn at random, that the visual tokenizer is trained on"
    )
