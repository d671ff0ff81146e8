"""Mutants of kernels/."""

LOOP = "tests/kernels/test_recurrent_loop.py::test_every_barrier_is_needed_and_none_is_missing"

BARRIER = "            target = barrier(counter, target + programs)\n"

GROUPS = (
    ("kernels/recurrent_loop/triton.py", LOOP, (
        ("nobody waits for q, k and v", f"{BARRIER}            t = pid\n", "            t = pid\n"),
        ("nobody waits for what was attended", f"{BARRIER}            project(\n                a, a,",
         "            project(\n                a, a,"),
        ("nobody waits for the state", f"{BARRIER}    store_states(", "    store_states("),
    )),
)  # fmt: skip
