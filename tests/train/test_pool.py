"""Runs in processes: failures are named, at once, and nothing else is lost."""

import os
import time
from dataclasses import replace

from latent.methods import NoCoT
from train import pool
from train.presets import PRESETS

RUN = replace(PRESETS["no-cot"](), method=NoCoT())
RUNS = {str(seed): replace(RUN, seed=seed) for seed in range(4)}


def work(run, say):
    """Seed 0 dies, 1 raises what no user should see, the others talk for a while."""
    if run.seed == 0:
        os._exit(7)
    if run.seed == 1:
        raise KeyError("lost")
    for i in range(30):
        say({"done": i})
        time.sleep(0.05)
    return {"seed": run.seed}


def test_a_dead_worker_is_noticed_while_others_talk():
    seen = []
    failed = pool.in_processes(RUNS, work, 2, lambda name, event: seen.append((name, event)))
    assert failed == {"0": "its process ended with code 7; run again to go on", "1": "KeyError: 'lost'"}
    ended = [name for name, event in seen if "error" in event or "finished" in event]
    assert ended.index("0") < 2 and set(ended) == set(RUNS)
    talk = [name for name, event in seen if "done" in event]
    assert talk.count("2") == talk.count("3") == 30
    assert ("3", {"finished": RUNS["3"].id, "seed": 3}) in seen


def test_what_starts_from_a_failed_run_is_not_begun():
    runs = {"0": RUNS["0"], "after": replace(RUN, seed=9, init=RUNS["0"].id)}
    failed = pool.in_processes(runs, work, 1, lambda name, event: None)
    assert failed["after"] == "its start, 0, failed"
