"""Are the latents used, and what is in them? The suite that critics of latent reasoning ask for, on any checkpoint.

Interventions change what goes into a latent step (the fed-back embedding, or the looped state of a loop along the
depth) and let everything after it be computed anew; stops stay where the untouched run stopped. All of them act within
a batch, among the rows that think that step: the donor of a problem is another one of its batch. Readings look at the
states and change nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from eval.environments.base import Environment, Problem, iterate
from eval.judge import verify
from kernels.errors import UserError
from latent.generate import Reasoner, decode, rollout, score
from latent.methods.base import Edit
from latent.taps import Call, numbered
from latent.thought import Greedy, Thought

INTERVENTIONS = ("removed", "zeroed", "mean", "noise", "shuffled", "other problem")


class StopWhere(Greedy):
    """Greedy, but row b stops after `used_B[b]` latents."""

    def __init__(self, used_B: Tensor):
        super().__init__(used_B=used_B)

    def __call__(self, kind: str, dist: Distribution, live_B: Tensor, h_UD: Tensor | None = None) -> Tensor:
        if kind != "halt":
            return super().__call__(kind, dist, live_B)
        assert isinstance(dist, Bernoulli)
        return self.settled(live_B).to(dist.logits.dtype)


@dataclass
class Untouched:
    """A batch answered as trained: texts, verdicts, the thought, and what went into each latent step."""

    problems: list[Problem]
    texts: list[str]
    correct: list[int]
    thought: Thought
    inputs: list[Tensor] = field(default_factory=list)

    @cached_property
    def donors(self) -> Tensor:
        """For each row another: the next round the batch with as many latents and another text, if there is one."""
        n, said, used = len(self.texts), self.texts, self.thought.used_B.tolist()
        found = []
        for b in range(n):
            ahead = [(b + j) % n for j in range(1, n)]
            found.append(
                next(
                    (d for d in ahead if used[d] >= used[b] and said[d] != said[b]),
                    next((d for d in ahead if used[d] and said[d] != said[b]), (b + 1) % n),
                )
            )
        return torch.tensor(found)

    def given(self, latent: int) -> Tensor:
        """What the donors' latents had as input; the last of a donor that thought fewer."""
        last = (self.thought.used_B - 1).clamp(min=0).tolist()
        rows = [self.inputs[min(latent, last[d])][d] for d in self.donors.tolist()]
        return torch.stack(rows)

    def thinking(self, latent: int) -> Tensor:
        """Which rows think a latent, from 0."""
        return (self.thought.used_B > latent).nonzero()[:, 0]


def answer(
    reasoner: Reasoner, problems: list[Problem], choose: Greedy, steps: int | None = None, edit: Edit | None = None
) -> tuple[list[str], Thought]:
    """Greedy texts, and the thoughts before them."""
    method, codec = reasoner.method, reasoner.codec
    prompt = codec.prompt([p.question for p in problems], method.backbone.device)
    thought = method.think(prompt, choose, steps=steps, edit=edit)
    return codec.texts(decode(method, thought, Greedy(), reasoner.max_tokens, codec.end)), thought


def hits(env: Environment, problems: list[Problem], texts: list[str]) -> list[int]:
    """1 where a text is right."""
    return [int(verify(env, p, t).correct) for p, t in zip(problems, texts)]


def kept_in(inputs: list[Tensor]) -> Edit:
    """An edit that changes nothing: it keeps what goes into each latent step."""

    def edit(i: int, x: Tensor) -> Tensor:
        inputs.append(x)
        return x

    return edit


def untouched(reasoner: Reasoner, env: Environment, problems: list[Problem], batch: int) -> Iterator[Untouched]:
    """The problems answered as trained, a batch at a time."""
    for part in iterate(problems, batch):
        inputs: list[Tensor] = []
        texts, thought = answer(reasoner, part, Greedy(), edit=kept_in(inputs))
        yield Untouched(part, texts, hits(env, part, texts), thought, inputs)


def intervened(reasoner: Reasoner, was: Untouched, kind: str, seed: int) -> list[str]:
    """The texts of a batch after an intervention on every latent step."""
    rng = torch.Generator(device="cpu").manual_seed(seed)

    def edit(i: int, x: Tensor) -> Tensor:
        source, live = was.inputs[i], was.thinking(i)
        match kind:
            case "zeroed":
                return torch.zeros_like(x)
            case "mean":
                return source[live].mean(0, keepdim=True).expand_as(x)
            case "noise":
                noise = torch.randn(x.shape, generator=rng).to(x)
                return noise * source.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
            case "shuffled":  # every latent by an order of its own
                mixed = source.clone()
                mixed[live] = source[live[torch.randperm(len(live), generator=rng).to(live.device)]]
                return mixed
            case "other problem":
                return was.given(i)
        raise UserError(f"intervention must be one of {', '.join(INTERVENTIONS)}, got {kind!r}")

    if kind == "removed":
        return answer(reasoner, was.problems, Greedy(), steps=0)[0]
    return answer(reasoner, was.problems, StopWhere(was.thought.used_B), edit=edit)[0]


def patched(reasoner: Reasoner, was: Untouched, latent: int) -> list[str]:
    """The texts of a batch with one latent step's input, from 0, taken from the donor."""
    edit = lambda i, x: was.given(i) if i == latent else x  # noqa: E731
    return answer(reasoner, was.problems, StopWhere(was.thought.used_B), edit=edit)[0]


@torch.inference_mode()
def causal(reasoner: Reasoner, env: Environment, problems: list[Problem], batch: int = 250) -> dict:
    """What the answer depends on: interventions, patches by position, and the number of latents.

    Returns 0/1 results item by item, `intact` and for each intervention `correct` with `changed`, the share of texts
    that differ from the intact ones; for each patched latent, among the `n` rows that think it, `flipped`, the share of
    changed texts, and `donor`, the share that became the donor's of those that were not; and `sweep`, correct results
    by latent steps, as far as the positions go. Raises UserError for a loop along the depth on prompts of different
    lengths, between which no states can be exchanged.
    """
    method = reasoner.method
    trained = method.trained_steps
    prompts = [len(reasoner.codec.question(p.question)) for p in problems]
    if method.parallel_answer is not None and min(prompts) != max(prompts):
        raise UserError("states of a loop along the depth can be exchanged only between prompts of the same length")
    if len(problems) % batch == 1:
        raise UserError(f"{len(problems)} problems in batches of {batch} leave one without another to take from")
    found: dict = {"intact": [], "keys": [p.key for p in problems]}
    kinds: dict[str, dict] = {kind: {"correct": [], "changed": 0.0} for kind in INTERVENTIONS}
    patches: list[dict] = []
    for b, was in enumerate(untouched(reasoner, env, problems, batch)):
        found["intact"] += was.correct
        for kind, so_far in kinds.items():
            texts = intervened(reasoner, was, kind, seed=b)
            so_far["correct"] += hits(env, was.problems, texts)
            so_far["changed"] += differ(texts, was.texts) / len(problems)
        donated = [was.texts[d] for d in was.donors.tolist()]
        for i in range(len(was.inputs)):
            if i == len(patches):
                patches.append({"n": 0, "flipped": 0, "donor": 0, "apart": 0})
            texts, at = patched(reasoner, was, i), patches[i]
            for b in was.thinking(i).tolist():
                at["n"] += 1
                at["flipped"] += texts[b] != was.texts[b]
                at["apart"] += donated[b] != was.texts[b]
                at["donor"] += donated[b] != was.texts[b] and texts[b] == donated[b]
    for at in patches:
        at["flipped"], at["donor"] = at["flipped"] / max(1, at["n"]), at["donor"] / max(1, at.pop("apart"))
    sweep = {}
    for k in range(trained + max(2, trained // 2) + 1):
        written = 0 if method.parallel_answer is not None else reasoner.max_tokens - 1
        if max(prompts) + method.reserved(k) + written > method.backbone.positions:
            break
        sweep[str(k)] = [
            hit
            for part in iterate(problems, batch)
            for hit in hits(env, part, answer(reasoner, part, Greedy(), steps=k)[0])
        ]
    return found | {"interventions": kinds, "patches": patches, "sweep": sweep, "trained": trained}


def differ(texts: list[str], others: list[str]) -> int:
    """How many texts differ."""
    return sum(a != b for a, b in zip(texts, others))


@dataclass
class States:
    """The traces of problems: states (N, K + 1, D), the first before any latent, and how many of them were used.

    `layer`: which layer's hidden states they are, None where they are the thoughts themselves.
    """

    problems: list[Problem]
    states_NKD: Tensor
    used_N: Tensor
    layer: int | None = None

    def at(self, i: int) -> tuple[Tensor, list[int]]:
        """The states after latent i of the problems that used so many (n, D), and which problems they are."""
        rows = (self.used_N >= i).nonzero()[:, 0]
        return self.states_NKD[rows, i], rows.tolist()


@torch.inference_mode()
def trace(reasoner: Reasoner, problems: list[Problem], batch: int = 250, layer: int | None = None) -> States:
    """Think about problems and keep the states; what lies beyond a row's last latent means nothing.

    `layer`: hidden states of that layer (numbered as in `latent/taps.py`) at each latent step instead of the thoughts
    that the loop goes on with; zeros before the loop where only the loop runs the layer. Raises UserError for a layer
    that there is not, or that does not run in the loop.
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
            states.append(_of_layer(reasoner, tapped.calls, layer, thought))
        used.append(thought.used_U)
    longest = max(s.shape[1] for s in states)
    padded = [torch.nn.functional.pad(s, (0, 0, 0, longest - s.shape[1])) for s in states]
    return States(problems, torch.cat(padded), torch.cat(used), layer)


def _of_layer(reasoner: Reasoner, calls: list[Call], layer: int, thought: Thought) -> Tensor:
    """A layer's states (P, K + 1, D) at the position of each latent step, from before the first."""
    before, *later = (reasoner.method.of_latent(calls, i).states.get(layer) for i in range(thought.states_UKD.shape[1]))
    found = [h for h in later if h is not None]
    if len(found) < len(later):
        raise UserError(f"layer {layer} does not run in the latent steps of {type(reasoner.method).__name__}")
    if before is None:
        before = torch.zeros_like(thought.states_UKD[:, :1])
    return torch.cat([before, *found], 1)


@torch.inference_mode()
def lens(reasoner: Reasoner, env: Environment, states: States) -> list[dict]:
    """The head's reading of each state (logit lens, nostalgebraist 2020), from before the first latent on.

    `top`: mean probability of the likeliest token; `entropy`: mean, nats; `support`: mean exp(entropy), the number of
    tokens in superposition; `oracle`: share whose likeliest token begins the step that the latent should have reached,
    and `elsewhere` the next problem's; on graphs `frontier`: mean probability of the nodes that a breadth-first search
    reaches at that step, with `frontier_share`, their share of all nodes that it ever reaches. Problems in which the
    tokens that begin these nodes begin others as well are left out.
    """
    method, codec = reasoner.method, reasoner.codec
    graphs = [searched(reasoner, env, p) for p in states.problems]
    rows = []
    for i in range(states.states_NKD.shape[1]):
        h_ND, which = states.at(i)
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
            best, said, elsewhere, mass, share = p_NV.argmax(-1).tolist(), [], [], [], []
            step_of = lambda p: codec.step(p.steps[method.reaches(i, len(p.steps)) - 1])  # noqa: B023, E731
            for b, n in enumerate(which):
                problem = states.problems[n]
                other = states.problems[(n + 1) % len(states.problems)]
                if problem.steps and other.steps:
                    said.append(best[b] == step_of(problem)[0])
                    elsewhere.append(best[b] == step_of(other)[0])
                levels = graphs[n]
                at = method.reaches(i, max(i, len(problem.steps))) - 1
                if at < len(levels) and not levels[at] & set().union(*levels[:at], *levels[at + 1 :]):
                    mass.append(p_NV[b, sorted(levels[at])].sum().item())
                    share.append(len(levels[at]) / sum(map(len, levels)))
            mean = lambda xs: sum(xs) / len(xs)  # noqa: E731
            row |= {"oracle": mean(said), "elsewhere": mean(elsewhere)} if said else {}
            row |= {"frontier": mean(mass), "frontier_share": mean(share)} if mass else {}
        rows.append(row)
    return rows


def searched(reasoner: Reasoner, env: Environment, problem: Problem) -> list[set[int]]:
    """The first tokens of the nodes that a breadth-first search reaches, level by level; none without a graph."""
    return [{reasoner.codec.step(f" {word}")[0] for word, _ in words} for words in env.frontiers(problem)]


@torch.inference_mode()
def probe(reasoner: Reasoner, train: States, test: States, ridge: float = 1e-2) -> list[dict]:
    """A linear probe from each state to the oracle's step, with selectivity (Hewitt and Liang 2019, arXiv:1909.03368).

    The probe is ridge regression onto the tokens of the step that the latent should have reached, a probe a place;
    `accuracy` is over places and problems, `majority` that of the commonest token. The control task has no structure:
    each step's text has tokens drawn for it from those that occur at the place. `selectivity` is what the probe adds to
    the majority there and here, (accuracy - majority) - (control - control's majority), on steps that occur in both
    sets; it is left out where there are fewer than 20. Problems without steps are left out. Raises UserError where
    none is left.
    """
    found = []
    for i in range(1, test.states_NKD.shape[1]):
        sides = [steps_reached(reasoner, where, i) for where in (train, test)]
        if not all(len(steps) for _, steps in sides):
            if i == 1:
                raise UserError("a probe needs the oracle's steps, and no problem has any")
            break
        seen = set(sides[0][1])
        real, common, chosen, gains = [], [], [], []
        for place in range(max(map(len, seen))):
            (a, steps_a), (b, steps_b) = (long_enough(*side, place) for side in sides)
            if not steps_a or not steps_b:
                continue
            ids = [s[place] for s in steps_a]
            drawn = {s: ids[_drawn(s, place) % len(ids)] for s in sorted(seen)}
            again = [n for n, s in enumerate(steps_b) if s in seen]
            right = _hits(a, ids, b, [s[place] for s in steps_b], ridge)
            real += right[0]
            common += right[1]
            blind = _hits(a, [drawn[s] for s in steps_a], b[again], [drawn[steps_b[n]] for n in again], ridge)
            chosen += blind[0]
            gains += [right[0][n] - right[1][n] - c + m for n, c, m in zip(again, *blind)]
        mean = lambda hits: sum(hits) / len(hits)  # noqa: E731
        row = {"latent": i, "accuracy": mean(real), "majority": mean(common)}
        if len(chosen) >= 20:
            row |= {"control": mean(chosen), "selectivity": mean(gains)}
        found.append(row)
    return found


def steps_reached(reasoner: Reasoner, states: States, latent: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """States after a latent (n, D), and the ids of the step that it should have reached, where there are steps."""
    h_ND, rows = states.at(latent)
    kept = [n for n, row in enumerate(rows) if states.problems[row].steps]
    chains = [states.problems[rows[n]].steps for n in kept]
    return h_ND[kept], [reasoner.codec.step(c[reasoner.method.reaches(latent, len(c)) - 1]) for c in chains]


def long_enough(h_ND: Tensor, steps: list[tuple[int, ...]], place: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """States and steps of those that have a token at a place."""
    kept = [n for n, s in enumerate(steps) if len(s) > place]
    return h_ND[kept], [steps[n] for n in kept]


def _drawn(step: tuple[int, ...], place: int) -> int:
    """A number drawn for a step's text and a place in it."""
    return int.from_bytes(blake2b(repr((step, place)).encode(), digest_size=4).digest())


def _hits(a: Tensor, ids: list[int], b: Tensor, want: list[int], ridge: float) -> tuple[list[int], list[int]]:
    """Where a probe fitted on a first set is right on a second, and where the first set's commonest token is."""
    common = max(sorted(set(ids)), key=ids.count)
    said = linear_probe(a, ids, ridge)(b) if want else []
    return [int(s == t) for s, t in zip(said, want)], [int(common == t) for t in want]


def linear_probe(x_ND: Tensor, ids: list[int], ridge: float = 1e-2) -> Callable[[Tensor], list[int]]:
    """Ridge regression onto one-hot tokens, on standardised states with a bias: states (n, D) -> tokens."""
    known = sorted(set(ids))
    y = torch.zeros(len(ids), len(known), dtype=torch.float64, device=x_ND.device)
    y[torch.arange(len(y)), torch.tensor([known.index(t) for t in ids])] = 1
    mean, std = x_ND.double().mean(0), x_ND.double().std(0).clamp(min=1e-6)
    a, centre = (x_ND.double() - mean) / std, y.mean(0)
    gram = a.T @ a + ridge * len(a) * torch.eye(a.shape[1], dtype=torch.float64, device=a.device)
    weight = torch.linalg.solve(gram, a.T @ (y - centre))
    return lambda x: [known[i] for i in (((x.double() - mean) / std) @ weight + centre).argmax(-1).tolist()]


def collapse(states: States) -> list[dict]:
    """Whether thoughts differ: from the one before, and from problem to problem.

    `moved`: mean |h_i - h_{i-1}| over mean |h_i|; `cosine`: mean cosine of the two; `dimensions`: participation ratio
    (sum of variances squared over the sum of their squares) of the states of latent i across problems.
    """
    rows = []
    for i in range(1, states.states_NKD.shape[1]):
        h_ND, which = states.at(i)
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

    `texts` and `lengths`: mean numbers of distinct texts and of distinct latent counts in a group; `pass_1`,
    `pass_group`: share of right samples, and of groups with one; `flat`: share of groups all right or all wrong;
    `entropy`: mean nats of a decision, by kind; `gap`: largest difference (nats) between a decision's log-probability
    when sampled and when replayed.
    """
    method, codec = reasoner.method, reasoner.codec
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prompt = codec.prompt([p.question for p in problems], method.backbone.device)
        rolled = rollout(method, prompt, group, reasoner.max_tokens, codec.end, 1.0)
    with torch.no_grad():
        replayed = score(method, rolled, 1.0)
    texts, used = codec.texts(rolled.tokens_BT), rolled.used_B.tolist()
    right = hits(env, [p for p in problems for _ in range(group)], texts)
    groups = [slice(i, i + group) for i in range(0, len(texts), group)]
    mean = lambda values: sum(values) / len(groups)  # noqa: E731
    pairs = list(zip(rolled.decisions, replayed))
    return {
        "group": group,
        "n": len(groups),
        "texts": mean([len(set(texts[g])) for g in groups]),
        "lengths": mean([len(set(used[g])) for g in groups]),
        "pass_1": sum(right) / len(right),
        "pass_group": mean([any(right[g]) for g in groups]),
        "flat": mean([len(set(right[g])) == 1 for g in groups]),
        "entropy": {d.kind: d.entropy_BT[d.mask_BT].mean().item() for d, _ in pairs},
        "gap": max(((a.logp_BT - b.logp_BT).abs() * a.mask_BT).max().item() for a, b in pairs),
    }
