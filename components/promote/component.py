"""KFP interface of the promote step."""

from kfp.dsl import Artifact, Input

from components.interface import component


@component()
def promote(
    settings: str,
    package_store: str,
    key_folder: str,
    serving: str,
    verdict: Input[Artifact],
    exported: Input[Artifact],
):
    """Register the candidate with its evidence; where the verdict is PASS, promote it as far as the settings say."""
    import os
    from pathlib import Path

    from components.promote.promote import promote as run
    from components.promote.settings import PromotionSettings
    from components.step import EXPERIMENTS_URL_VARIABLE, release_url, step

    with step("promote", settings) as record:
        record.result = run(
            PromotionSettings.parse_json(settings),
            Path(verdict.path),
            Path(exported.path),
            Path(package_store),
            Path(key_folder),
            release_url(),
            Path(serving),
            experiments_url=os.environ.get(EXPERIMENTS_URL_VARIABLE),
        )
