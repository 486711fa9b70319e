"""Execute a launched job: train, evaluate or tune one run, and record its state in a file. Importing it does not import torch."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from smatcli.config import Loaded
from smatcli.config.schema import TrainRecipe
from smatcli.errors import SmatError
from smatcli.launch.job_files import JobFiles
from smatcli.launch.points import eval_overrides
from smatcli.runs.reporter import PlainReporter, Reporter
from smatcli.runs.signals import Interrupted


def execute(files: JobFiles) -> None:
    """Run the job specified in `files`. With torch.distributed, only the first process writes the state."""
    with recorded(files) if os.environ.get("RANK", "0") == "0" else nullcontext():
        loaded, evaluated = files.read_spec()
        run_recipe(loaded, PlainReporter(), resume=True, evaluated=evaluated)


def run_recipe(loaded: Loaded, reporter: Reporter, *, resume: bool, evaluated: bool) -> None:
    """Train or tune a run, or continue it with `resume`. Then, if `evaluated`, meta-test it with the adaptations of the recipe."""
    recipe = loaded.recipe
    if recipe.kind == "tune":
        from smatcli.engine.tune.tuning import tune

        tune(loaded, reporter, resume=resume)
        return
    from smatcli.engine.train.trainer import train

    run = train(loaded, reporter, resume=resume)
    if evaluated:
        from smatcli.engine.evaluate.evaluation import EvalOptions, evaluate

        assert isinstance(recipe, TrainRecipe)
        evaluate(run.path, overrides=eval_overrides(recipe), options=EvalOptions(device=recipe.device), reporter=reporter)


@contextmanager
def recorded(files: JobFiles) -> Iterator[None]:
    """Record in the state file that the work has started, and how it ended."""
    files.note_state("running")
    state, error_line = "done", ""
    try:
        yield
    except Interrupted as error:
        state, error_line = "interrupted", str(error)
        raise
    except BaseException as error:
        state, error_line = "failed", describe(error)
        raise
    finally:
        files.note_state(state, error_line)


def describe(error: BaseException) -> str:
    """Return an error as one line."""
    return str(error) if isinstance(error, SmatError) else f"{type(error).__name__}: {error}"


def report_error(error: BaseException) -> int:
    """Print an error on stderr as one line, as the command line does, and return its exit code."""
    line = " ".join(str(error).split()) if isinstance(error, SmatError) else describe(error)
    print(f"smat: {line}", file=sys.stderr, flush=True)
    return error.exit_code if isinstance(error, SmatError) else 1
