"""The graph: data in, a verdict out. Each task is named after the folder under `components/` that does it."""

import os
from typing import Any

from kfp import dsl

from components.adapt.component import adapt
from components.calibrate.component import calibrate
from components.curate.component import curate
from components.export.component import export
from components.ingest.component import ingest
from components.judge.component import judge
from components.tokenize.component import tokenize
from components.train.component import train
from components.validate.component import validate
from pipelines.measure import measure_and_promote

NAME = "emuflow-retrain"
RUN_ID = os.environ.get("EMUFLOW_RUN_ID") or dsl.PIPELINE_JOB_ID_PLACEHOLDER
"""Of the run on this machine; on a cluster the platform puts its own in."""


def pipeline(*, adapted: bool = False) -> Any:
    """The graph as a KFP pipeline; `adapted` puts the step `adapt` after the training of a next-token checkpoint."""

    @dsl.pipeline(name=NAME, description="Retrain, shrink, measure against the champion, and promote what is proven.")
    def retrain(
        # One section of the settings for each step, as JSON (`pipelines/settings.py`).
        data_settings: str,
        validation_settings: str,
        curation_settings: str,
        tokenizer_settings: str,
        model_settings: str,
        training_settings: str,
        adaptation_settings: str,
        calibration_settings: str,
        decoding_settings: str,
        export_settings: str,
        judge_settings: str,
        benchmark_settings: str,
        gate_settings: str,
        promotion_settings: str,
        launcher_settings: str,
        # What the retraining starts from (empty: from nothing).
        champion: str = "",
        parent_tokenizers: str = "",
        parent_checkpoint: str = "",
        parent_evaluation_set: str = "",
        # Who made this run, as JSON: what `serving.package.manifest.Provenance` holds and no step knows.
        provenance: str = "",
        # Where things are kept that outlive the run.
        work: str = "/emuflow/work",
        cache: str = "/emuflow/cache",
        data_docs: str = "/emuflow/data-docs",
        package_store: str = "/emuflow/packages",
        key_folder: str = "/emuflow/keys",
        serving: str = "/emuflow/serving",
    ) -> None:
        data = ingest(settings=data_settings, parent_evaluation_set=parent_evaluation_set, work=work, run_id=RUN_ID)
        samples, evaluation_set = data.outputs["samples"], data.outputs["evaluation_set"]

        raw_validation = validate(
            settings=validation_settings, stage="raw", table=samples, data_docs=data_docs
        ).outputs["validation"]

        curated = curate(
            settings=curation_settings, samples=samples, evaluation_set=evaluation_set, validation=raw_validation
        ).outputs["curated"]

        validation = validate(
            settings=validation_settings, stage="curated", table=curated, data_docs=data_docs
        ).outputs["validation"]

        tokens = tokenize(
            settings=tokenizer_settings,
            parent_tokenizers=parent_tokenizers,
            curated=curated,
            validation=validation,
            evaluation_set=evaluation_set,
        )
        tokenizers, shards = tokens.outputs["tokenizers"], tokens.outputs["shards"]

        checkpoint = train(
            settings=training_settings,
            model=model_settings,
            parent_checkpoint=parent_checkpoint,
            work=work,
            run_id=RUN_ID,
            launcher=launcher_settings,
            shards=shards,
            tokenizers=tokenizers,
        ).outputs["checkpoint"]
        if adapted:
            checkpoint = adapt(
                settings=adaptation_settings,
                work=work,
                run_id=RUN_ID,
                launcher=launcher_settings,
                trained=checkpoint,
                shards=shards,
                tokenizers=tokenizers,
            ).outputs["checkpoint"]

        engine = calibrate(settings=calibration_settings, checkpoint=checkpoint, shards=shards).outputs["engine"]

        exported = export(
            settings=export_settings,
            decoding=decoding_settings,
            provenance=provenance,
            run_id=RUN_ID,
            key_folder=key_folder,
            package_store=package_store,
            engine=engine,
            curated=curated,
            evaluation_set=evaluation_set,
        ).outputs["exported"]

        trained_judge = judge(settings=judge_settings, cache=cache, evaluation_set=evaluation_set).outputs[
            "trained_judge"
        ]

        measure_and_promote(
            benchmark_settings=benchmark_settings,
            gate_settings=gate_settings,
            promotion_settings=promotion_settings,
            champion=champion,
            package_store=package_store,
            key_folder=key_folder,
            serving=serving,
            exported=exported,
            evaluation_set=evaluation_set,
            tokenizers=tokenizers,
            judge=trained_judge,
        )

        # A cluster's cache outlives a run, and the source's path does not tell whether its data is new.
        data.set_caching_options(enable_caching=False)

    return retrain
