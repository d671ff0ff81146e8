"""lm-eval with our models and tasks.

    python -m eval.harness run --model latent --model_args pretrained=RUN_OR_DIR,num_latents=4 --tasks cups

Its own command line, with the model `latent` registered and `eval/tasks` among the places where tasks are looked for.
Where the hub cannot be reached nothing waits for it: what needs it is one line at once.
"""

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import sys
from functools import partial
from pathlib import Path

from eval.cli import do_not_wait_for_the_hub
from kernels.errors import UserError, mendable
from latent.files import check_writable
from latent.startup import FLOORS, HOME

TASKS = Path(__file__).parent / "tasks"


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend, in one line."""
    args = sys.argv[1:] if args is None else args
    do_not_wait_for_the_hub()
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    import latent  # noqa: F401  makes --model latent known to lm-eval

    setup_logging()
    sys.argv = ["python -m eval.harness", *args]
    cli = HarnessCLI()
    try:
        asked = cli.parse_args()
    except SystemExit as e:
        return int(e.code or 0)
    theirs = [asked.include_path] if getattr(asked, "include_path", None) else []
    asked.include_path = [str(TASKS), *theirs]
    from lm_eval import tasks

    everything = tasks.TaskManager
    try:
        if asked.command == "run":
            if path := getattr(asked, "output_path", None):
                check_writable(Path(path), "--output_path", folder=not path.endswith(".json"))
            named = set(" ".join(asked.tasks or ["all"]).replace(",", " ").split())
            if getattr(asked, "cache_requests", None) and named & own_tasks():
                raise UserError("--cache_requests does not see --metadata: leave it out with tasks of ours")
            if not theirs and named <= own_tasks():  # reading the thousands of others takes five seconds
                tasks.TaskManager = partial(everything, include_defaults=False)
        cli.execute(asked)
    except SystemExit as e:
        return 2 if e.code else 0
    except KeyboardInterrupt:
        return 130
    except Exception as e:  # lm-eval, datasets and the hub's client each have errors of their own
        if mendable(e) is None and raised_by_us(e):
            raise
        print(f"error: {explain(e)}", file=sys.stderr)
        return 2
    finally:
        tasks.TaskManager = everything
    return 0


def raised_by_us(error: Exception) -> bool:
    """Whether an error comes from code of ours: then it is a bug, unless it says otherwise."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = Path(trace.tb_frame.f_code.co_filename) if trace else HOME
    return file.is_relative_to(HOME) and file.relative_to(HOME).parts[:1] in [(floor,) for floor in FLOORS]


def own_tasks() -> set[str]:
    """Names of the tasks in `eval/tasks`."""
    return {path.stem for path in TASKS.glob("[!_]*.yaml")}


def explain(error: Exception) -> str:
    """One line on what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    if "local file" not in said and ("OfflineMode" in said or isinstance(error, ConnectionError)):
        said += ": this data set cannot be had without the network; our own tasks take --metadata file=PATH"
    return said


if __name__ == "__main__":
    sys.exit(main())
