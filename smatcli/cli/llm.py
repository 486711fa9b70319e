"""`smat llm`: sparse interpolated experts (SIMoE) and baselines inside a causal language model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smatcli.cli.options import check_checkpoint

if TYPE_CHECKING:
    from smatcli.engine.llm.evaluation import LlmEvaluation
    from smatcli.llm.data.rows import Example

app = typer.Typer(help="Tune language models on instructions: SIMoE, full fine-tuning, LoRA, sparse upcycling.", no_args_is_help=True)

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run directory of smat llm train.")]
Which = Annotated[str, typer.Option("--which", help="Checkpoint: best or last.")]
Device = Annotated[str | None, typer.Option("--device", help="Device: auto, cpu, cuda, cuda:1. Default: the recipe's.")]


@app.command("prepare", no_args_is_help=True)
def prepare(
    rows: Annotated[list[Path], typer.Argument(metavar="ROWS...", help="JSON Lines, task files of Super-NaturalInstructions, or folders.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for rows.jsonl and data.json.")],
    show: Annotated[int, typer.Option("--show", min=0, help="Print the tokens of so many examples; trained ones are in [brackets].")] = 0,
    model: Annotated[str | None, typer.Option("--model", help="Folder of the model whose tokenizer --show uses. Default: bytes.")] = None,
) -> None:
    """Check instruction rows and write them into one folder.

    A line has prompt and answer (or completion, response), or messages with role and content; task, category, references and choices are
    optional. Rows with an empty answer are counted and dropped; an invalid line is an error that names file and line.
    """
    from smatcli.errors import UserError
    from smatcli.llm.data.sources import write_prepared

    if model is not None and not show:
        raise UserError("--model is for --show; add --show 3")
    examples, counts = write_prepared(rows, out)
    dropped = "".join(f", {number} dropped ({reason})" for reason, number in counts.dropped.items())
    typer.echo(f"{counts.read} rows read, {counts.kept} kept{dropped}")
    if show:
        _show_tokens(examples[:show], model)
    typer.echo(f"{out}/data.json")


@app.command("train", no_args_is_help=True)
def train(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a packaged one.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe values, e.g. train.steps=500 method.experts=4.", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint, if it exists.")] = False,
) -> None:
    """Train a method on instruction rows. Without model.path, a tiny Llama is pre-trained first and saved in RUN/base.

    The run directory gets metrics.jsonl and checkpoints of the trained tensors. On SIGINT, SIGTERM or SIGUSR1 the update is finished and a
    checkpoint is saved.
    """
    from smatcli.config import load_recipe

    loaded = load_recipe(recipe, overrides or [], kind="llm")  # before torch is imported, so that a bad recipe is reported at once
    from smatcli.engine.llm.training import train as run_training
    from smatcli.runs.reporter import auto_reporter

    typer.echo(f"{run_training(loaded, auto_reporter(), resume).path}/metrics.jsonl")


@app.command("eval", no_args_is_help=True)
def evaluate(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run directories; further ones are compared to the first.")],
    data: Annotated[str | None, typer.Option("--data", help="Rows to measure on. Default: data.heldout of the recipe.")] = None,
    examples: Annotated[int | None, typer.Option("--examples", min=1, help="Most examples per task. Default: eval.examples.")] = None,
    generate: Annotated[
        bool | None,
        typer.Option("--generate/--no-generate", help="Also score generated answers. Default: eval.generate."),
    ] = None,
    which: Which = "best",
    device: Device = None,
) -> None:
    """Measure runs on held-out rows: NLL per answer token, exact match and ROUGE-L, by task and category.

    Writes RUN/eval/heldout/ (results.json, tasks.csv, answers.jsonl) and prints the categories with their mean. Further runs are
    compared to the first by a paired bootstrap over tasks.
    """
    from smatcli.engine.llm.loading import open_language_run

    check_checkpoint(which)
    folders = list(dict.fromkeys(runs))
    for folder in folders:
        open_language_run(folder)  # all of them before the first one is measured
    from smatcli.engine.llm.evaluation import LlmEvalOptions
    from smatcli.engine.llm.evaluation import evaluate as run_evaluation
    from smatcli.runs.reporter import auto_reporter

    options = LlmEvalOptions(data, examples, generate, which, device)
    _show_results(folders, [run_evaluation(folder, options, auto_reporter()) for folder in folders])


@app.command("generate", no_args_is_help=True)
def generate(
    run: Run,
    prompts: Annotated[list[str], typer.Option("--prompt", help="Prompt; repeatable.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Most tokens of an answer.")] = 128,
    beams: Annotated[int, typer.Option("--beams", min=1, max=64, help="Beams; 1 is greedy.")] = 1,
    which: Which = "best",
    device: Device = None,
) -> None:
    """Answer prompts, one answer per line: the router reads the prompt once, and the experts are merged for it."""
    from smatcli.engine.llm.loading import load_language_run

    check_checkpoint(which)
    from smatcli.engine.llm.generation import as_example
    from smatcli.engine.llm.generation import generate as answer
    from smatcli.runs.reporter import auto_reporter

    examples = [as_example(prompt) for prompt in prompts]
    for text in answer(load_language_run(run, which, device, auto_reporter()), examples, tokens, len(prompts), beams):
        typer.echo(text)


@app.command("export", no_args_is_help=True)
def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", help="New folder.")],
    form: Annotated[str, typer.Option("--form", help="dense: a plain transformers folder with the weights of one prompt.")] = "dense",
    prompt: Annotated[str | None, typer.Option("--prompt", help="Prompt that determines the weights, for a method with a router.")] = None,
    which: Which = "best",
) -> None:
    """Write a transformers folder that needs no smat: weights merged in fp32, for a prompt if the method depends on it."""
    from smatcli.errors import UserError, nearest

    check_checkpoint(which)
    if form != "dense":
        raise UserError(f"--form: {form!r} is not supported{nearest(form, ['dense'])}; use dense")
    from smatcli.engine.llm.exporting import export_dense
    from smatcli.engine.llm.loading import load_language_run
    from smatcli.runs.reporter import auto_reporter

    export_dense(load_language_run(run, which, "cpu", auto_reporter()), prompt, out)
    typer.echo(out)


def _show_tokens(examples: "list[Example]", model: str | None) -> None:
    from smatcli.llm.data.tokens import Renderer

    if model is None:
        from smatcli.llm.data.bytes import byte_tokenizer

        tokenizer = byte_tokenizer()
    else:
        from smatcli.llm.base_model import load_tokenizer

        tokenizer = load_tokenizer(model)
    renderer = Renderer(tokenizer)
    for example in examples:
        tokens = renderer.tokens(example)
        text, open_bracket = "", False
        for token, trained in zip(tokens.ids, tokens.trained, strict=True):
            if trained != open_bracket:
                text += "[" if trained else "]"
                open_bracket = trained
            text += str(tokenizer.decode([token]))
        typer.echo(f"{text}{']' if open_bracket else ''}\n  {len(tokens.ids)} tokens, {tokens.answers} trained, prompt {tokens.prompt}")


def _show_results(names: list[str], results: "list[LlmEvaluation]") -> None:
    from rich.table import Table

    from smatcli.cli.output import console
    from smatcli.engine.llm.evaluation import METRICS, compare
    from smatcli.runs.results import LANGUAGE_RESULTS

    titles = {"nll": "NLL per answer token", "exact": "exact match (%)", "rouge": "ROUGE-L (%)"}
    for metric in METRICS:
        if any(result.body["macro"][metric] is None for result in results):
            continue
        scale = 1 if metric == "nll" else 100
        table = Table(title=titles[metric], title_justify="left")
        table.add_column("category")
        for name in names:
            table.add_column(Path(name).name, justify="right")
        rows = [{c["category"]: c[metric] for c in result.body["categories"]} for result in results]
        for category in dict.fromkeys(category for row in rows for category in row):
            table.add_row(category or "-", *(f"{scale * row[category]:.3f}" if category in row else "-" for row in rows))
        table.add_row("mean", *(f"{scale * result.body['macro'][metric]:.3f}" for result in results), style="bold")
        console().print(table)
        for name, result in zip(names[1:], results[1:], strict=True):
            gap = compare(results[0], result, metric)
            typer.echo(
                f"{Path(names[0]).name} - {Path(name).name}: {scale * gap['difference']:+.3f} "
                f"[{scale * gap['low']:+.3f}, {scale * gap['high']:+.3f}] over {gap['tasks']:.0f} tasks (95 %, paired bootstrap)"
            )
    for result in results:
        typer.echo(result.folder / LANGUAGE_RESULTS)
