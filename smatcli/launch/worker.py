"""What a launched job does, as files: the recipe as it was when the job was made, and what became of it; nothing here needs torch."""

import os
import sys

from smatcli.errors import SmatError
from smatcli.launch.job_files import JobFiles


def execute(files: JobFiles) -> None:
    """Do a job in this process: train (or continue), then evaluate where that is asked for; its state file follows.

    Raises what the engines raise. With several processes (torch.distributed) only the first one writes the state.
    """
    from smatcli.config.schema import TrainRecipe
    from smatcli.runs.reporter import PlainReporter
    from smatcli.runs.signals import Interrupted

    writer = int(os.environ.get("RANK", "0")) == 0
    if writer:
        files.note_state("running")
    ending = ("failed", "")
    try:
        loaded, evaluated = files.read_spec()
        from smatcli.engine.evaluate.evaluation import evaluate
        from smatcli.engine.train.trainer import train
        from smatcli.launch.points import eval_overrides

        reporter = PlainReporter()
        if loaded.recipe.kind == "tune":
            from smatcli.engine.tune.tuning import tune

            run = tune(loaded, reporter, resume=True)
        else:
            run = train(loaded, reporter, resume=True)
        if evaluated:
            assert isinstance(loaded.recipe, TrainRecipe)
            evaluate(run.path, overrides=eval_overrides(loaded.recipe), device=loaded.recipe.device, reporter=reporter)
        ending = ("done", "")
    except Interrupted as error:
        ending = ("interrupted", str(error))
        raise
    except SmatError as error:
        ending = ("failed", str(error))
        raise
    except BaseException as error:
        ending = ("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        if writer:
            files.note_state(*ending)


def say_error(error: BaseException) -> int:
    """The error's line on stderr, as the command line prints it, and its exit code."""
    known = isinstance(error, SmatError)
    print(f"smat: {' '.join(str(error).split())}" if known else f"smat: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return error.exit_code if isinstance(error, SmatError) else 1
