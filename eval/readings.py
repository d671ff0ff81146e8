"""What is in the latents? Readings of their states, which change nothing: lens, probes, distances, samples."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from statistics import fmean

import torch
from torch import Tensor

from eval.environments.base import Environment, Problem, iterate
from eval.judge import verify
from kernels.errors import UserError
from latent.generate import Reasoner, rollout, score
from latent.taps import Call, numbered
from latent.thought import Greedy, Thought


@dataclass
class States:
    """The states of problems' thoughts (N, K + 1, D), the first from before any latent, and how many latents were used.

    `layer`: the layer whose hidden states they are; None: the thoughts that the loop goes on with.
    """

    problems: list[Problem]
    states_NKD: Tensor
    used_N: Tensor
    layer: int | None = None

    def after(self, i: int) -> tuple[Tensor, list[int]]:
        """The states (n, D) after latent i, of the problems that used at least i, and the numbers of these problems."""
        rows = (self.used_N >= i).nonzero()[:, 0]
        return self.states_NKD[rows, i], rows.tolist()


@torch.inference_mode()
def trace(reasoner: Reasoner, problems: list[Problem], batch: int = 250, layer: int | None = None) -> States:
    """Think about problems and keep the states. States beyond a row's last latent mean nothing.

    `layer`: keep that layer's hidden states (numbered as in `latent/taps.py`) at each latent step instead of the
    thoughts; the state before the loop is zero where only the loop runs the layer. Raises UserError for a layer that
    does not exist, or that does not run in the loop.
    """
    states, used, backbone = [], [], reasoner.method.backbone
    if layer is not None:
        (layer,) = numbered((layer,), backbone.depth)
    for part in iterate(problems, batch):
        prompt = reasoner.codec.prompt([p.question for p in part], backbone.device)
        if layer is None:
            thought = reasoner.method.think(prompt, Greedy())
            states.append(thought.states_UKD)
        else:
            with backbone.tap(layers=(layer,)) as tapped:
                thought = reasoner.method.think(prompt, Greedy())
            states.append(_layer_states(reasoner, tapped.calls, layer, thought))
        used.append(thought.used_U)
    longest = max(s.shape[1] for s in states)
    padded = [torch.nn.functional.pad(s, (0, 0, 0, longest - s.shape[1])) for s in states]
    return States(problems, torch.cat(padded), torch.cat(used), layer)


def _layer_states(reasoner: Reasoner, calls: list[Call], layer: int, thought: Thought) -> Tensor:
    """A layer's states (P, K + 1, D) at the position of each latent step, the first from before any."""
    before, *later = (reasoner.method.of_latent(calls, i).states.get(layer) for i in range(thought.states_UKD.shape[1]))
    in_loop = [h for h in later if h is not None]
    if len(in_loop) < len(later):
        raise UserError(f"layer {layer} does not run in the latent steps of {type(reasoner.method).__name__}")
    if before is None:
        before = torch.zeros_like(thought.states_UKD[:, :1])
    return torch.cat([before, *in_loop], 1)


@torch.inference_mode()
def lens(reasoner: Reasoner, env: Environment, states: States) -> list[dict]:
    """The next-token distribution that the head reads off each state (logit lens, nostalgebraist 2020), by latent.

    Means over problems of: `top`, the probability of the likeliest token; `entropy` (nats); `support`, exp(entropy),
    the number of tokens in superposition. `oracle`: the share of problems whose likeliest token begins the chain's step
    that the latent stands for; `elsewhere`: the share where it begins that step of the next problem. Where the
    environment has a frontier, `frontier`: the mean probability of the words where a search may stand after that step,
    and `frontier_share`, their share of the words of all steps. Problems where the first tokens of these words also
    begin other words of the search are left out.
    """
    method = reasoner.method
    searches = [frontiers(reasoner, env, p) for p in states.problems]
    rows = []
    for i in range(states.states_NKD.shape[1]):
        h_ND, which = states.after(i)
        if not which:
            break
        p_NV = method.backbone.head(method.lens(h_ND, states.layer)).softmax(-1)
        entropy_N = torch.special.entr(p_NV).sum(-1)
        row = {
            "latent": i,
            "n": len(which),
            "top": p_NV.max(-1).values.mean().item(),
            "entropy": entropy_N.mean().item(),
            "support": entropy_N.exp().mean().item(),
        }
        if i:
            best, own, elsewhere, mass, share = p_NV.argmax(-1).tolist(), [], [], [], []
            for b, n in enumerate(which):
                problem = states.problems[n]
                other = states.problems[(n + 1) % len(states.problems)]
                steps = step_of(reasoner, problem, i), step_of(reasoner, other, i)
                if steps[0] and steps[1]:
                    own.append(best[b] == steps[0][0])
                    elsewhere.append(best[b] == steps[1][0])
                depth = method.target_step(i, max(i, len(problem.steps))) - 1
                if 0 <= depth < len(searches[n]):
                    here, anywhere = searches[n][depth], {w: t for each in searches[n] for w, t in each.items()}
                    if not set(here.values()) & {token for word, token in anywhere.items() if word not in here}:
                        mass.append(p_NV[b, sorted(set(here.values()))].sum().item())
                        share.append(len(here) / len(anywhere))
            row |= {"oracle": fmean(own), "elsewhere": fmean(elsewhere)} if own else {}
            row |= {"frontier": fmean(mass), "frontier_share": fmean(share)} if mass else {}
        rows.append(row)
    return rows


def step_of(reasoner: Reasoner, problem: Problem, latent: int) -> tuple[int, ...]:
    """The ids of the chain's step that a latent stands for; none where it stands for none yet."""
    step = reasoner.method.target_step(latent, len(problem.steps))
    return reasoner.codec.step(problem.steps[step - 1]) if step else ()


def frontiers(reasoner: Reasoner, env: Environment, problem: Problem) -> list[dict[str, int]]:
    """The words where a search may stand after each step, with their first tokens; none where there is no search."""
    return [{word: reasoner.codec.step(f" {word}")[0] for word, _ in words} for words in env.frontiers(problem)]


@torch.inference_mode()
def probe(reasoner: Reasoner, train: States, test: States, ridge: float = 1e-2) -> list[dict]:
    """Linear probes from each state to the chain's step, with selectivity (Hewitt and Liang 2019, arXiv:1909.03368).

    A probe is ridge regression onto one token of the step that the latent stands for; there is one for each place in
    the step. `accuracy` is over places and problems, `majority` that of always answering the commonest token. The
    control task has no structure: each step's text is given tokens at random, from those that occur at the place.
    `selectivity` is what the probe gains over the majority beyond its gain on the control task,
    (accuracy - majority) - (control - control's majority), on steps that occur in both sets; it is left out where there
    are fewer than 20. Problems without steps are left out; a latent that stands for no step has no numbers. Raises
    UserError where no problem is left.
    """
    rows: list[dict] = []
    for i in range(1, test.states_NKD.shape[1]):
        both = [targets(reasoner, states, i) for states in (train, test)]
        if not all(len(steps) for _, steps in both):
            rows.append({"latent": i})
            continue
        seen = set(both[0][1])
        probed, majority, control, gains = [], [], [], []
        for place in range(max(map(len, seen))):
            (a, steps_a), (b, steps_b) = (with_place(*side, place) for side in both)
            if not steps_a or not steps_b:
                continue
            ids = [s[place] for s in steps_a]
            at_random = {s: ids[_random_number(s, place) % len(ids)] for s in sorted(seen)}
            again = [n for n, s in enumerate(steps_b) if s in seen]
            by_probe, by_majority = _hits(a, ids, b, [s[place] for s in steps_b], ridge)
            probed += by_probe
            majority += by_majority
            want = [at_random[steps_b[n]] for n in again]
            by_control, its_majority = _hits(a, [at_random[s] for s in steps_a], b[again], want, ridge)
            control += by_control
            gains += [by_probe[n] - by_majority[n] - c + m for n, c, m in zip(again, by_control, its_majority)]
        row = {"latent": i, "accuracy": fmean(probed), "majority": fmean(majority)}
        if len(control) >= 20:
            row |= {"control": fmean(control), "selectivity": fmean(gains)}
        rows.append(row)
    while rows and "accuracy" not in rows[-1]:
        rows.pop()
    if not rows:
        raise UserError("a probe needs the oracle's steps, and no problem has any")
    return rows


def targets(reasoner: Reasoner, states: States, latent: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """States (n, D) after a latent, and the ids of the steps that it stands for, of problems that have steps."""
    h_ND, rows = states.after(latent)
    steps = [step_of(reasoner, states.problems[row], latent) for row in rows]
    kept = [n for n, step in enumerate(steps) if step]
    return h_ND[kept], [steps[n] for n in kept]


def with_place(h_ND: Tensor, steps: list[tuple[int, ...]], place: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Those states and steps whose step has a token at a place."""
    kept = [n for n, s in enumerate(steps) if len(s) > place]
    return h_ND[kept], [steps[n] for n in kept]


def _random_number(step: tuple[int, ...], place: int) -> int:
    """A number that is random, but the same for the same step and place."""
    return int.from_bytes(blake2b(repr((step, place)).encode(), digest_size=4).digest())


def _hits(a: Tensor, ids: list[int], b: Tensor, want: list[int], ridge: float) -> tuple[list[int], list[int]]:
    """0/1 on states `b`, whose tokens are `want`: of a probe fitted on `a` and `ids`, and of the commonest of `ids`."""
    common = max(sorted(set(ids)), key=ids.count)
    predicted = linear_probe(a, ids, ridge)(b) if want else []
    return [int(s == t) for s, t in zip(predicted, want)], [int(common == t) for t in want]


def linear_probe(x_ND: Tensor, ids: list[int], ridge: float = 1e-2) -> Callable[[Tensor], list[int]]:
    """Ridge regression onto one-hot tokens, on standardised states with a bias: states (n, D) -> tokens."""
    known = sorted(set(ids))
    if len(known) == 1:  # of a single state there is no spread to standardise by
        return lambda x: known * len(x)
    y = torch.zeros(len(ids), len(known), dtype=torch.float64, device=x_ND.device)
    y[torch.arange(len(y)), torch.tensor([known.index(t) for t in ids])] = 1
    mean, std = x_ND.double().mean(0), x_ND.double().std(0).clamp(min=1e-6)
    a, centre = (x_ND.double() - mean) / std, y.mean(0)
    gram = a.T @ a + ridge * len(a) * torch.eye(a.shape[1], dtype=torch.float64, device=a.device)
    weight = torch.linalg.solve(gram, a.T @ (y - centre))
    return lambda x: [known[i] for i in (((x.double() - mean) / std) @ weight + centre).argmax(-1).tolist()]


def collapse(states: States) -> list[dict]:
    """Whether thoughts differ from the thought before, and from problem to problem.

    `moved`: mean |h_i - h_{i-1}| over mean |h_i|. `cosine`: mean cosine of the two. `dimensions`: the participation
    ratio of the states of latent i across problems, (sum of variances)^2 over the sum of their squares.
    """
    rows = []
    for i in range(1, states.states_NKD.shape[1]):
        h_ND, which = states.after(i)
        if len(which) < 2:
            break
        before_ND = states.states_NKD[which, i - 1]
        values = torch.linalg.svdvals((h_ND - h_ND.mean(0)).double()).square()
        rows.append(
            {
                "latent": i,
                "moved": ((h_ND - before_ND).norm(dim=-1).mean() / h_ND.norm(dim=-1).mean()).item(),
                "cosine": torch.cosine_similarity(h_ND, before_ND, dim=-1).mean().item(),
                "dimensions": (values.sum().square() / values.square().sum().clamp(min=1e-30)).item(),
            }
        )
    return rows


def diversity(reasoner: Reasoner, env: Environment, problems: list[Problem], group: int = 16, seed: int = 0) -> dict:
    """What RL has to learn from: groups of sampled answers at temperature 1.

    `texts` and `lengths`: mean numbers of distinct texts and of distinct latent counts in a group. `pass_1`: share of
    right samples. `pass_group`: share of groups with a right one. `flat`: share of groups that are all right or all
    wrong. `entropy`: mean entropy (nats) of a decision, by kind. `gap`: the largest difference (nats) between a
    decision's log-probability when sampled and when replayed.
    """
    method, codec = reasoner.method, reasoner.codec
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prompt = codec.prompt([p.question for p in problems], method.backbone.device)
        rolled = rollout(method, prompt, group, reasoner.max_tokens, codec.end, 1.0)
    with torch.no_grad():
        replayed = score(method, rolled, 1.0)
    texts, used = codec.texts(rolled.tokens_BT), rolled.used_B.tolist()
    asked = [p for p in problems for _ in range(group)]
    right = [int(verify(env, p, text).correct) for p, text in zip(asked, texts)]
    groups = [slice(i, i + group) for i in range(0, len(texts), group)]
    pairs = list(zip(rolled.decisions, replayed))
    return {
        "group": group,
        "n": len(groups),
        "texts": fmean([len(set(texts[g])) for g in groups]),
        "lengths": fmean([len(set(used[g])) for g in groups]),
        "pass_1": sum(right) / len(right),
        "pass_group": fmean([any(right[g]) for g in groups]),
        "flat": fmean([len(set(right[g])) == 1 for g in groups]),
        "entropy": {d.kind: d.entropy_BT[d.mask_BT].mean().item() for d, _ in pairs},
        "gap": max(((a.logp_BT - b.logp_BT).abs() * a.mask_BT).max().item() for a, b in pairs),
    }
