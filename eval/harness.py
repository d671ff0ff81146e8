"""lm-eval with our models and tasks.

    python -m eval.harness run --model latent --model_args pretrained=RUN_OR_DIR,num_latents=4 --tasks cups

This is lm-eval's own command line, with the model `latent` registered and `eval/tasks` among its task folders. Where
the hub cannot be reached, a task that needs it fails at once, in one line; `--metadata file=PATH` gives our tasks a
local file. eval/README.md has our tasks and their settings.
"""

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import sys
from functools import partial
from pathlib import Path

from kernels.errors import UserError, mendable
from latent.cli import hint, set_offline_if_the_hub_is_unreachable
from latent.files import check_writable
from latent.startup import FLOORS, HOME

TASKS = Path(__file__).parent / "tasks"


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend, in one line."""
    args = sys.argv[1:] if args is None else args
    set_offline_if_the_hub_is_unreachable()
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    import latent  # noqa: F401  makes --model latent known to lm-eval

    setup_logging()
    sys.argv = ["python -m eval.harness", *args]
    cli = HarnessCLI()
    if {"-h", "--help"} & set(args):
        print(__doc__)
    try:
        options = cli.parse_args()
    except SystemExit as e:
        return int(e.code or 0)
    others = [options.include_path] if getattr(options, "include_path", None) else []
    options.include_path = [str(TASKS), *others]
    from lm_eval import tasks

    stock = tasks.TaskManager
    try:
        if options.command == "run":
            if (limit := getattr(options, "limit", None)) is not None and not limit > 0:
                raise UserError(f"--limit must be above 0, got {limit:g}")
            if path := getattr(options, "output_path", None):
                check_writable(Path(path), "--output_path", folder=not path.endswith(".json"))
            named = set(" ".join(options.tasks or ["all"]).replace(",", " ").split())
            if getattr(options, "cache_requests", None) and named & own_tasks():
                raise UserError("--cache_requests does not see --metadata: leave it out with tasks of ours")
            if named <= own_tasks():
                check_metadata(getattr(options, "metadata", None) or {}, named)
                if not others:  # lm-eval's thousands of task files take five seconds to read
                    tasks.TaskManager = partial(stock, include_defaults=False)
        cli.execute(options)
    except SystemExit as e:
        return 2 if e.code else 0
    except KeyboardInterrupt:
        return 130
    except Exception as e:  # lm-eval, datasets and the hub's client raise errors of many types
        if mendable(e) is None and raised_by_us(e):
            raise
        print(f"error: {explain(e)}", file=sys.stderr)
        return 2
    finally:
        tasks.TaskManager = stock
    return 0


def raised_by_us(error: Exception) -> bool:
    """Whether an error was raised in our code; it is then a bug, unless it is a UserError."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = Path(trace.tb_frame.f_code.co_filename) if trace else HOME
    return file.is_relative_to(HOME) and file.relative_to(HOME).parts[:1] in [(floor,) for floor in FLOORS]


def own_tasks() -> set[str]:
    """Names of the tasks in `eval/tasks`."""
    return {path.stem for path in TASKS.glob("[!_]*.yaml")}


def check_metadata(given: dict, named: set[str]) -> None:
    """Raise UserError for a setting that none of the tasks has: lm-eval adds the model's arguments to those of tasks,
    so that a task cannot tell."""
    from eval.tasks.own import settings

    known = own_tasks().union(*map(settings, named))
    if strange := sorted(set(given) - known):
        raise UserError(
            f"--metadata: {', '.join(sorted(named))} has no setting {strange[0]!r}{hint(strange[0], known)}"
        )


def explain(error: Exception) -> str:
    """An error in one line."""
    lines = [line.strip() for line in (mendable(error) or str(error)).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    if "local file" not in message and ("OfflineMode" in message or isinstance(error, ConnectionError)):
        message += ": this data set needs the network; our own tasks also take --metadata file=PATH"
    if message.startswith("Tasks not found: "):
        message += hint(message.removeprefix("Tasks not found: ").split(",")[0].strip(), own_tasks())
    return message


if __name__ == "__main__":
    sys.exit(main())
