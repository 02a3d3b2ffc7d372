"""The command line: `emuflow run`, `serve`, `generate`, `status`, `history`, `lineage`, `gate`, `measure`, `promote`,
`canary`, `rollback`, `audit`, `plan`, `compile`, `import`, `data`, `bench`.

Exit codes: 0 done (promoted, or rejected as it should be), 1 failed, 2 wrong use, 128 + n ended by signal n.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from common.errors import EmuflowError, UsageError
from common.home import Home
from pipelines.cli_bench import bench_app
from pipelines.cli_canary import canary_app
from pipelines.cli_lineage import lineage_app
from pipelines.cli_options import DEFAULT_HOME, HomeOption, SetOption, console
from pipelines.cli_release import release_app

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Make the built-in data.")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(lineage_app)
app.add_typer(release_app)
app.add_typer(canary_app, name="canary")

PresetOption = Annotated[
    str | None, typer.Option("--preset", help="quickstart (without it), smoke, or a YAML file of your own.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
_DEFAULT_PRESET = "quickstart"


@app.command()
def run(
    preset: PresetOption = None,
    data: Annotated[Path | None, typer.Option("--data", help="Your data; without it, the digit world.")] = None,
    overrides: SetOption = None,
    home: HomeOption = DEFAULT_HOME,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last run, which did not finish.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Draw other data, weights and order.")] = None,
) -> None:
    """Validate, curate, tokenize, train, calibrate, export, benchmark, gate, promote."""
    from pipelines import local
    from pipelines.display import closing_table
    from pipelines.settings import load, seed_overrides

    if resume:
        foreign = [name for name in overrides or [] if not name.startswith("platform.")]
        if preset is not None or data is not None or seed is not None or foreign:
            raise UsageError(
                "a resumed run keeps its settings and its data",
                where="--resume",
                fix="leave --preset, --data, --seed and every --set but platform.… out, or start a new run",
            )
        record = local.resume(Home(home), overrides or [], console)
    else:
        if data is not None and not data.exists():
            raise UsageError("there is no such file or folder", where=f"--data {data}")
        preset = preset or _DEFAULT_PRESET
        settings = load(preset, [*(seed_overrides(seed) if seed is not None else []), *(overrides or [])], data)
        record = local.run(settings, preset=preset, home=Home(home), console=console)
    console.print(closing_table(vars(record), record.steps), crop=False)


@app.command()
def gate(
    run_id: Annotated[str | None, typer.Argument(metavar="RUN", help="Else the last run.")] = None,
    overrides: SetOption = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the page into this folder.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """What would another policy decide on a run's measurements? Nothing is recorded or promoted."""
    from pipelines.display import verdict_table
    from pipelines.gating import try_policy

    verdict = try_policy(Home(home), run_id, overrides or [], report)
    if as_json:
        sys.stdout.write(verdict.model_dump_json(indent=2) + "\n")
        return
    console.print(verdict_table(verdict.model_dump(mode="json")), crop=False)
    for reason in verdict.reasons:
        console.print(f"- {reason}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def plan(
    preset: Annotated[str, typer.Option("--preset", help="The model's shape: nano to emu3.5-34b.")] = "emu3.5-34b",
    gpus: Annotated[int, typer.Option(min=1, help="How many.")] = 1024,
    gpu: Annotated[str, typer.Option(help="a100, h100 or h200.")] = "h100",
    tokens: Annotated[float, typer.Option(min=1, help="To be trained on.")] = 1e12,
    sequence: Annotated[int, typer.Option(min=1, help="Tokens of one sequence.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of one step.")] = 2048,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="T,P,D",
            help="Show this one, too: tensor, pipeline, data parallel; then the micro-batch, what is computed again "
            "(none, selective or full) and ZeRO's stage (z0 to z3), as in 2,1,512,2,full,z3.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What trains: emuflow, this project's own engine, or megatron, which has more features.")
    ] = "emuflow",
    price: Annotated[float | None, typer.Option(min=0, help="US dollars of one GPU hour.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the scaling curve of 8 to 4,096 GPUs into this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What would a training take: memory, step time, MFU, days and cost of the best layouts."""
    from model.parallel.plan.search import best_plans
    from model.parallel.plan.search import plan as plan_of
    from pipelines import planning

    shape, card, trainer = planning.choose(preset, sequence, gpu, price, engine)
    plans = best_plans(shape, card, gpus, batch, engine=trainer)
    given = plan_of(shape, planning.parse_layout(layout, gpus, batch, trainer), card) if layout else None
    points = planning.draw_scaling(plot, shape, card, batch, trainer) if plot else []
    if as_json:
        found = {"best": [planning.describe(each, tokens) for each in plans]}
        found |= {"given": planning.describe(given, tokens)} if given else {}
        found |= (
            {"scaling": [dict(zip(("gpus", "tokens_per_s", "mfu"), point, strict=True)) for point in points]}
            if points
            else {}
        )
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    planning.show(console, plans, given, tokens)


@app.command()
def status(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """The champion and the last run."""
    from pipelines.status import read_status, status_table

    found = read_status(Home(home))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        console.print(status_table(found), crop=False)


@app.command()
def history(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Every run with its verdict, and every package that came to a stage: when, by whom, why, on what evidence."""
    from pipelines.status import history_tables, read_history

    found = read_history(Home(home))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        console.print(history_tables(found))


@app.command()
def serve(
    model: Annotated[
        str, typer.Option("--model", help="champion, candidate (of the last run), or a digest.")
    ] = "champion",
    home: HomeOption = DEFAULT_HOME,
    grpc_port: Annotated[int, typer.Option(help="0: any free port.")] = 8001,
    http_port: Annotated[int, typer.Option(help="0: any free port.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="0: any free port.")] = 8002,
    host: Annotated[
        Literal["127.0.0.1", "0.0.0.0"],
        typer.Option(help="0.0.0.0 inside a container: whoever reaches its ports may ask."),
    ] = "127.0.0.1",
    stalled_after: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", help="Start a server again of which a copy stands still for so long."),
    ] = 60.0,
    remote: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="gRPC of a Triton that runs already, in the place of ours.")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --remote: DIR/models is that server's model repository.")
    ] = None,
    accelerator: Annotated[
        str, typer.Option(help="With --remote: none, or what computes on its GPU, onnxruntime or tensorrt.")
    ] = "none",
    engine_cache: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="With tensorrt: a folder on that server's machine for compiled engines."),
    ] = None,
    control_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --remote: holds HEADER=VALUE, where that server's model control asks."),
    ] = None,
) -> None:
    """Serve a model with Triton on this machine's loopback until Ctrl-C; a promotion is followed without a restart."""
    from pipelines.serving import serve_model, serve_on_remote

    if (remote is None) != (repository is None):
        raise UsageError("--remote and --repository go together", where="emuflow serve")
    if remote is not None and repository is not None:
        serve_on_remote(
            Home(home),
            model,
            remote,
            repository,
            console,
            accelerator=accelerator,
            engine_cache=engine_cache,
            control_key=control_key,
        )
        return
    if accelerator != "none" or engine_cache is not None or control_key is not None:
        raise UsageError(
            "--accelerator, --engine-cache and --control-key are for a server of --remote", where="emuflow serve"
        )
    serve_model(
        Home(home),
        model,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        console=console,
        host=host,
        stalled_after_s=stalled_after,
    )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help='For example "a red seven left of a green two".')],
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG file to write.")],
    endpoint: Annotated[str | None, typer.Option(help="HOST:PORT of Triton's gRPC; else the server of --home.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same image.")] = None,
    steps: Annotated[int | None, typer.Option(help="Parallel passes over the sketch.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the sketch; 0 is greedy.")] = None,
    guidance: Annotated[float | None, typer.Option(help="1 is none; more follows the prompt more closely.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HEIGHTxWIDTH", help="One of the model's sizes; else the largest.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Show each stage as it comes, and keep it: out.coarse.png, then out.png.")
    ] = False,
    response: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Keep the answer for `emuflow lineage FILE`.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Ask a running server for an image."""
    from pipelines.asking import Options, Received, generate_image, keep_answer

    def tell(received: Received) -> None:
        stage = received.result.stage
        times = f"{received.elapsed_ms:.1f} ms, {received.result.timings[stage]:.1f} ms on the server"
        console.print(f"{stage}: {received.file} ({times})", soft_wrap=True, highlight=False)

    options = Options(seed=seed, steps=steps, temperature=temperature, guidance=guidance, size=size)
    answer = generate_image(
        Home(home), prompt, output, endpoint=endpoint, options=options, on_preview=tell if stream else None
    )
    if response is not None:
        keep_answer(response, prompt, options, answer, previews=stream)
    if stream:
        tell(answer)
    console.print(f"{output} (seed {answer.result.seed}, model {answer.result.version[:12]})")


@app.command(name="compile")
def compile_command(
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the pipeline's IR goes.")],
    preset: PresetOption = None,
    overrides: SetOption = None,
    image: Annotated[str | None, typer.Option(help="The steps' image: NAME@sha256:DIGEST.")] = None,
    triton_image: Annotated[str | None, typer.Option(help="The image of export and benchmark, likewise.")] = None,
    allow_tags: Annotated[bool, typer.Option("--allow-tags", help="Take images by a tag, which can move.")] = False,
    measuring: Annotated[
        bool, typer.Option("--measure", help="The graph that measures an exported package again.")
    ] = False,
) -> None:
    """Compile the pipeline for Kubeflow Pipelines."""
    from pipelines.cluster import compile_pipeline
    from pipelines.settings import load

    if output.suffix not in (".yaml", ".yml", ".json"):
        raise UsageError("the file's name ends with .yaml or .json", where=f"--output {output}")
    preset = preset or _DEFAULT_PRESET
    compile_pipeline(
        load(preset, overrides or []),
        output,
        preset=preset,
        image=image,
        triton_image=triton_image,
        allow_tags=allow_tags,
        measuring=measuring,
    )
    console.print(f"{output}")


@app.command(name="import")
def import_command(
    folder: Annotated[Path, typer.Argument(help="config.json and safetensors, as Hugging Face keeps Qwen3 or Emu3.5.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The new checkpoint folder.")],
) -> None:
    """Take over a checkpoint in Hugging Face's form."""
    from model.transformer.huggingface import import_checkpoint

    if not folder.is_dir():
        raise UsageError("there is no such folder", where=str(folder))
    if output.exists():
        raise UsageError("the output exists already", where=f"--output {output}", fix="name a new folder")
    made = import_checkpoint(folder, output)
    shape = made.config
    console.print(
        f"{output}: {shape.parameter_count:,} parameters, {shape.num_hidden_layers} layers of {shape.hidden_size}, "
        f"vocabulary {shape.vocab_size:,}, {made.shards} files",
        highlight=False,
        soft_wrap=True,
    )


@data_app.command(name="digit-world")
def digit_world(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    scenes: Annotated[int | None, typer.Option(min=1, help="Training scenes.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write scenes of handwritten digits with captions as WebDataset tars."""
    from components.ingest.digit_world.build import write_digit_world
    from components.ingest.digit_world.settings import DigitWorldSettings

    chosen = DigitWorldSettings.parse({"seed": seed, **({"scenes": scenes} if scenes else {})})
    made = write_digit_world(folder, chosen)
    console.print(
        f"{made.folder}: {len(made.tars)} tars, {made.training_scenes} training and {made.evaluation_scenes} evaluation scenes"
    )


def main() -> None:
    """The `emuflow` command."""
    from common.redaction import redact_text
    from pipelines.signals import Interrupted

    try:
        app()
    except EmuflowError as error:
        Console(stderr=True, highlight=False).print(redact_text(str(error)), style="red", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except Interrupted as interruption:
        ended = f"\n{interruption}: every process has ended. {interruption.way_on}".rstrip()
        Console(stderr=True).print(ended, soft_wrap=True)
        sys.exit(interruption.exit_code)


if __name__ == "__main__":
    main()
