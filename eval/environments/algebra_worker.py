"""What algebra.py runs: pairs of expressions in, one JSON line each; whether math-verify finds them equal out."""

import json
import logging
import sys

DECIMALS = 12  # its own 6 take 1.414214 for the square root of 2
MEMORY = 4 << 30  # bytes: a tower of powers ends this process, not the machine


def main() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # no such limits on this system
        pass
    out, sys.stdout = sys.stdout, sys.stderr  # the library may print
    logging.disable(logging.WARNING)  # it warns of limits that the parent keeps
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    how = [LatexExtractionConfig()]
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        said, gold = (parse(f"${text}$", how, parsing_timeout=None) for text in json.loads(line))
        print(
            json.dumps(bool(said and gold and verify(gold, said, float_rounding=DECIMALS, timeout_seconds=None))),
            file=out,
            flush=True,
        )


if __name__ == "__main__":
    main()
