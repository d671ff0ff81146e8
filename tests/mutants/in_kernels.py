"""Mutants of kernels/."""

LOOP = "tests/kernels/test_recurrent_loop.py::test_every_barrier_is_needed_and_none_is_missing"

REPLAYED = "tests/kernels/test_recurrent_loop.py::test_calls_of_a_kind_that_comes_often_are_a_graph"
BARRIER = "            target = barrier(counter, target + programs)\n"

TEXT = "tests/latent/test_text_graph.py::test_a_rollout_is_that_of_its_noise"
GRAPHS = "tests/latent/test_text_graph.py::test_one_graph_serves_every_text_of_its_kind"

CHAINS = "tests/kernels/test_chain_graphs.py::test_every_number_is_that_of_the_steps_themselves"
SHARED = "tests/kernels/test_chain_graphs.py::test_chains_that_live_at_once_do_not_share_a_workspace"

GROUPS = (
    ("kernels/latent_chain/replay.py", CHAINS, (
        ("states are those of the chain before", "        self._ahead.replay()\n        return", "        return"),
        ("gradients are those of the chain before", "        self._back.replay()\n        return", "        return"),
        ("positions after a step are attended", "        self.visible[s + 1 :] = False\n", ""),
        ("every step has the first one's position", "self.at.s_1.fill_(s)", "self.at.s_1.fill_(0)"),
    )),
    ("kernels/latent_chain/replay.py", SHARED, (
        ("a workspace is lent twice", "            self._free.remove(known[-1])\n", ""),
        ("a workspace is free while its chain lives", "        end = weakref.finalize(chain, self._back,",
         "        self._back(work, self._reads)\n        end = weakref.finalize(chain, print,"),
    )),
    ("kernels/decode_step/cache.py", GRAPHS, (
        ("whatever a scan computes is one graph", "key = (steps, scan.key, mixed,", "key = (steps, None, mixed,"),
        ("a weight that lies elsewhere is read where it lay", "inputs.shapes, reads)", "inputs.shapes)"),
    )),
    ("kernels/decode_step/cache.py", TEXT, (
        ("all tokens take the first one's noise", "tuple(g[i] for g in here.given)", "tuple(g[0] for g in here.given)"),
        ("nothing is carried on", "x, carry, new = scan(h, carry,", "x, _, new = scan(h, carry,"),
        ("a graph is captured and never replayed", "            chain.graph.replay()\n", ""),
    )),
    ("kernels/recurrent_loop/__init__.py", REPLAYED, (
        ("recurrences are those of the call before", "        self.graph.replay()\n", ""),
        ("inputs are those of the first call", "                mine.copy_(theirs)\n", "                pass\n"),
        ("states are written over by the next call", "return self.states.clone()", "return self.states"),
        ("calls with and without a mask are one kind", "*(None if x is None else (x.shape",
         "*(None if x is not constant_BTD else (x.shape"),
    )),
    ("kernels/recurrent_loop/triton.py", LOOP, (
        ("nobody waits for q, k and v", f"{BARRIER}            t = pid\n", "            t = pid\n"),
        ("nobody waits for what was attended", f"{BARRIER}            project(\n                a, a,",
         "            project(\n                a, a,"),
        ("nobody waits for the state", f"{BARRIER}    store_states(", "    store_states("),
    )),
)  # fmt: skip
