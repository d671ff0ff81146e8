"""What algebra.py runs: pairs of expressions in, one JSON line each; whether math-verify finds them equal out.

Its argument is the processor time of a question, in whole seconds, after which the system ends this process.
"""

import json
import logging
import sys
from importlib import import_module
from math import ceil
from types import ModuleType

DECIMALS = 12  # its own 6 take 1.414214 for the square root of 2
MEMORY = 4 << 30  # bytes: a tower of powers ends this process, not the machine


resource: ModuleType | None
try:
    resource = import_module("resource")
except ImportError:  # no such limits on this system: the parent's patience is the only one
    resource = None


def allow(seconds: int) -> None:
    """Let this process use the processor for some seconds more."""
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (ceil(used.ru_utime + used.ru_stime) + seconds, hard))


def main() -> None:
    if resource is not None and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out, sys.stdout = sys.stdout, sys.stderr  # the library may print
    logging.disable(logging.WARNING)  # it warns of limits that the parent keeps
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    how = [LatexExtractionConfig()]
    verify(parse("$(x+1)^2$", how, parsing_timeout=None), parse("$x$", how, parsing_timeout=None), timeout_seconds=None)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        allow(int(sys.argv[1]))
        said, gold = (parse(f"${text}$", how, parsing_timeout=None) for text in json.loads(line))
        print(
            json.dumps(bool(said and gold and verify(gold, said, float_rounding=DECIMALS, timeout_seconds=None))),
            file=out,
            flush=True,
        )


if __name__ == "__main__":
    main()
