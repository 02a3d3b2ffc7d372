"""The graph of a measurement: what an earlier run exported is measured beside the champion of now, judged and promoted.

What its steps need of that run is imported; they are the end of `retrain.py`, too.
"""

from typing import Any

from kfp import dsl

from components.benchmark.component import benchmark
from components.gate.component import gate
from components.promote.component import promote

NAME = "emuflow-measure"


def measure_and_promote(
    *,
    benchmark_settings: str,
    gate_settings: str,
    promotion_settings: str,
    champion: str,
    package_store: str,
    key_folder: str,
    serving: str,
    exported: Any,
    evaluation_set: Any,
    tokenizers: Any,
    judge: Any,
) -> None:
    """The tasks that end a graph, from its parameters and from outputs of its earlier tasks. Never cached on a cluster: what
    measures, decides or promotes does so each time."""
    measured = benchmark(
        settings=benchmark_settings,
        champion=champion,
        package_store=package_store,
        key_folder=key_folder,
        exported=exported,
        evaluation_set=evaluation_set,
        tokenizers=tokenizers,
        judge=judge,
    )
    decided = gate(settings=gate_settings, measurements=measured.outputs["measurements"])

    promoted = promote(
        settings=promotion_settings,
        package_store=package_store,
        key_folder=key_folder,
        serving=serving,
        verdict=decided.outputs["verdict"],
        exported=exported,
    )
    for task in (measured, decided, promoted):
        task.set_caching_options(enable_caching=False)


def pipeline() -> Any:
    """The graph as a KFP pipeline."""

    @dsl.pipeline(name=NAME, description="Measure an exported package against the champion of now, and promote it.")
    def measure(
        benchmark_settings: str,
        gate_settings: str,
        promotion_settings: str,
        # What the run that exported the package left: the artifacts' addresses.
        exported: str,
        evaluation_set: str,
        tokenizers: str,
        trained_judge: str,
        # Empty: there is none.
        champion: str = "",
        package_store: str = "/emuflow/packages",
        key_folder: str = "/emuflow/keys",
        serving: str = "/emuflow/serving",
    ) -> None:
        measure_and_promote(
            benchmark_settings=benchmark_settings,
            gate_settings=gate_settings,
            promotion_settings=promotion_settings,
            champion=champion,
            package_store=package_store,
            key_folder=key_folder,
            serving=serving,
            exported=dsl.importer(artifact_uri=exported, artifact_class=dsl.Artifact).output,
            evaluation_set=dsl.importer(artifact_uri=evaluation_set, artifact_class=dsl.Dataset).output,
            tokenizers=dsl.importer(artifact_uri=tokenizers, artifact_class=dsl.Model).output,
            judge=dsl.importer(artifact_uri=trained_judge, artifact_class=dsl.Model).output,
        )

    return measure
