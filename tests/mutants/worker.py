"""What the command runs, one a copy: lines of JSON in, [seconds, [pytest ids]]; [exit code, what failed first] out.

Every question is answered by a fork of this process. It has imported what the tests need of other packages, which
takes longer than most tests, and nothing of ours: the modules under test are imported after the fork, as they are then.
"""

import json
import os
import signal
import sys
import tempfile
import time

PACKAGES = ("torch", "transformers", "accelerate", "scipy.stats", "hypothesis", "pytest")


def warm() -> None:
    """Import what is the same for all mutants."""
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported, as in conftest.py
    for name in PACKAGES:
        __import__(name)
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401  lazy ones

    here = os.getcwd()
    ours = [name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(here)]
    assert not ours, f"imported before the fork: {ours}"


def answer(limit: float, ids: list[str]) -> tuple[int, str]:
    """Exit code of pytest, and the first test that failed; 1 where it took longer than the limit."""
    with tempfile.TemporaryFile("w+") as out:
        child = os.fork()
        if child == 0:
            os.setsid()  # a group of its own, to be ended with all that it starts
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            import pytest

            code = pytest.ExitCode.INTERNAL_ERROR
            try:
                code = pytest.main(["-x", "-q", "-o", "addopts=", "-p", "no:cacheprovider", *ids])
            finally:  # whatever comes, the fork does not go on as its parent
                sys.stdout.flush()
                os._exit(code)
        until, status = time.monotonic() + limit, None
        try:
            while status is None and time.monotonic() < until:
                done, how = os.waitpid(child, os.WNOHANG)
                status = how if done else time.sleep(0.02)
        finally:
            if status is None:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
        if status is None:
            return 1, f"no end within {limit:g} s"
        out.seek(0)
        lines = out.read().strip().splitlines() or ["nothing said"]
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    said = failed[0].split(" ", 1)[1].split(" - ")[0] if failed else lines[-1]
    return os.waitstatus_to_exitcode(status), said


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # whatever is printed while importing
    warm()
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
