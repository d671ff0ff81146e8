"""A training step, rollouts and an answer on one device, beside what the same loop takes in transformers.

All arms think the same latents on the same weights, and are checked against each other before they are timed:

* ours: `Method.think`, `rollout` and `decode`, with whatever kernels `auto` takes;
* ours, a token at a time: the same, but that each token is chosen between two replays, and not within a graph of eight;
* transformers, cached: the loop written with the library's own forward and cache, eager, as its users write it;
* transformers, whole prefix: everything before a latent or a token is computed again for it, and answers are written
  one row at a time, as published loops do it (github.com/facebookresearch/coconut: its `generate`);
* transformers, generate: as many tokens as the loop has latents and tokens, by the library's own `generate`: a chain
  of thought of that length.

On a GPU training runs in fp32 weights under autocast to bfloat16, and what is only read is in bfloat16. Arms alternate
from round to round; every time is taken from idle to idle, on a GPU between two events of its stream. A training step
is measured twice: of one shape throughout, and of prompts that are padded to the longest and texts, both of another
length in each step, where all arms do without cuDNN's attention, which plans anew for each shape.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import tee
from statistics import median, quantiles
from time import perf_counter
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import unplanned
from kernels.errors import UserError
from latent import methods
from latent.config import ModelConfig
from latent.generate import decode, episode
from latent.hf_cache import CACHE
from latent.make import config_from_scratch, from_config
from latent.methods import Sim
from latent.methods.sequence import AlongSequence
from latent.methods.terms import text_loss
from latent.text import Text
from latent.thought import Chooser, Greedy, Prompt, Sample
from train.estimate import config_of_shape

Shape = Literal["tiny", "gpt2", "qwen3-0.6b"]
NAMES = {"gpt2": "gpt2", "qwen3-0.6b": "Qwen/Qwen3-0.6B"}


@dataclass(frozen=True)
class Sizes:
    """Tokens of a prompt and of a text, latents between them; rows in training, prompts and group of rollouts, rows of
    answers. Those of GSM8K in Coconut's setting."""

    prompt: int = 151
    latents: int = 6
    text: int = 17
    train: int = 32
    prompts: int = 16
    group: int = 16
    answers: tuple[int, ...] = (1, 64)


TINY = Sizes(prompt=9, latents=2, text=3, train=4, prompts=2, group=3, answers=(1, 3))


def compare(shape: Shape, device: str, rounds: int) -> Iterator[dict]:
    """The rows to print, as `rounds` rounds give them. Raises UserError without such a device, RuntimeError where arms
    differ."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU here; --device cpu --what rivals --shape tiny tries it out")
    torch.manual_seed(0)
    sizes, place = TINY if shape == "tiny" else Sizes(), torch.device(device)
    with place:  # random weights are drawn where they are wanted
        method = methods.build(Sim(n_latent=sizes.latents, told="answer"), from_config(_config(shape)))
    assert isinstance(method, AlongSequence)  # as Sim's is
    method.eval()  # no dropout: the arms are to compute the same
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    told = {"shape": shape, "device": name, "dtype": "bf16" if device == "cuda" else "fp32"}
    parts = [partial(training, method, sizes, rounds, ragged=ragged) for ragged in (False, True)]
    parts += [partial(rollouts, method, sizes, rounds)]
    parts += [partial(answers, method, sizes, batch, rounds) for batch in sizes.answers]
    yield from (row | told for part in parts for row in part())


def _config(shape: Shape):
    if shape != "tiny":
        return config_of_shape(NAMES[shape])
    return config_from_scratch(ModelConfig(n_layer=2, n_embd=32, n_head=2, n_positions=64), 61, 0, None)


def ids_of(method: AlongSequence, rows: int, length: int) -> Tensor:
    return torch.randint(1, method.backbone.vocab, (rows, length), device=method.backbone.device)


@dataclass(frozen=True)
class Step:
    """What a training step reads: prompts (B, T), which of their positions are no padding (None = all), and texts."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    text_BT: Tensor


def steps_of(method: AlongSequence, sizes: Sizes, ragged: bool) -> Iterator[Step]:
    """Endless steps: the same one, or of a longest prompt and a text that are half as long at least."""
    place, draw = method.backbone.device, torch.Generator().manual_seed(0)

    def drawn(most: int, n: int = 1) -> Tensor:
        return torch.randint(max(2, most // 2), most + 1, (n,), generator=draw)

    rows, prompt, text, mask_BT = sizes.train, sizes.prompt, sizes.text, None
    step = Step(ids_of(method, rows, prompt), None, ids_of(method, rows, text))
    while True:
        if ragged:
            prompt, text = int(drawn(sizes.prompt)), int(drawn(sizes.text))
            length_B = drawn(prompt, rows)
            length_B[0] = prompt
            mask_BT = (torch.arange(prompt) >= prompt - length_B[:, None]).to(place)
            step = Step(ids_of(method, rows, prompt), mask_BT, ids_of(method, rows, text))
        yield step


def mixed(place: torch.device) -> torch.autocast:
    """Autocast to bfloat16 on a GPU."""
    return torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda")


class Theirs:
    """The latent loop in transformers' own words. `cached`: with its cache; else the whole prefix is read each time."""

    def __init__(self, lm: Any, feedback: Callable[[Tensor], Tensor] | None, cached: bool):
        assert feedback is not None  # there are latents
        self.lm, self.feedback, self.cached = lm, feedback, cached
        self.past: Any = None
        self.read_BTD: Tensor | None = None
        self.mask_BS: Tensor | None = None  # of padded prompts: which positions are no padding

    def read(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Final hidden states of further positions, given as embeddings."""
        t, how = x_BTD.shape[1], {}
        if not self.cached:
            self.read_BTD = x_BTD = x_BTD if self.read_BTD is None else torch.cat([self.read_BTD, x_BTD], 1)
        if self.mask_BS is not None:
            mask_BT = torch.cat([self.mask_BS, self.mask_BS.new_ones(len(x_BTD), t)], 1)
        if mask_BT is not None:
            self.mask_BS, place_BS = mask_BT, (mask_BT.long().cumsum(1) - 1).clamp(min=0)
            how = {"attention_mask": mask_BT, "position_ids": place_BS[:, -x_BTD.shape[1] :]}
        if self.cached:
            how[CACHE] = self.past
        with nullcontext() if self.mask_BS is None else unplanned(x_BTD):
            out = self.lm.get_decoder()(inputs_embeds=x_BTD, use_cache=self.cached, **how)
        self.past = out.get(CACHE)
        return out.last_hidden_state[:, -t:]

    def think(self, ids_BT: Tensor, k: int, mask_BT: Tensor | None = None) -> Tensor:
        """The final hidden state (B, 1, D) after k latents."""
        self.past = self.read_BTD = self.mask_BS = None
        h_BTD = self.read(self.lm.get_input_embeddings()(ids_BT), mask_BT)
        for _ in range(k):
            h_BTD = self.read(self.feedback(h_BTD[:, -1]).to(h_BTD.dtype)[:, None])
        return h_BTD[:, -1:]

    def loss(self, step: Step, k: int) -> Tensor:
        """Cross-entropy of the texts after k latents."""
        h_B1D, text_BT = self.think(step.ids_BT, k, step.mask_BT), step.text_BT
        h_BTD = torch.cat([h_B1D, self.read(self.lm.get_input_embeddings()(text_BT[:, :-1]))], 1)
        logits_BTV = self.lm.get_output_embeddings()(h_BTD).float()
        return F.cross_entropy(logits_BTV.flatten(0, 1), text_BT.flatten())

    @torch.no_grad()
    def write(self, ids_BT: Tensor, k: int, tokens: int, sampled: bool = False) -> Tensor:
        """A text (B, T) after k latents, the likeliest token each time or a sampled one."""
        h_B1D, text = self.think(ids_BT, k), []
        for _ in range(tokens):
            logits_BV = self.lm.get_output_embeddings()(h_B1D[:, -1]).float()
            text.append(torch.multinomial(logits_BV.softmax(-1), 1) if sampled else logits_BV.argmax(-1, keepdim=True))
            if len(text) < tokens:
                h_B1D = self.read(self.lm.get_input_embeddings()(text[-1]))
        return torch.cat(text, 1)


How = Callable[[Chooser], Chooser]  # text is chosen


def each_token(choose: Chooser) -> Chooser:
    """A chooser that does not say how it chooses on the device, and is asked for every token."""
    choose.on_device = None
    return choose


OURS: dict[str, How] = {"ours": lambda choose: choose, "ours, a token at a time": each_token}


def training(method: AlongSequence, sizes: Sizes, rounds: int, ragged: bool) -> list[dict]:
    """Forward, backward and AdamW of a text's loss after the latents."""
    backbone, k, place = method.backbone, sizes.latents, method.backbone.device
    feedback = method.feedback
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.0, fused=True)  # no arm changes what the next one reads

    def ours(step: Step) -> Tensor:
        thought = method.think(Prompt(step.ids_BT, step.mask_BT), Greedy())
        return text_loss(backbone, thought, Text(step.text_BT, None))[0].taken()

    losses: dict[str, Callable[[Step], Tensor]] = {"ours": ours}
    for name, cached in (("transformers, cached", True), ("transformers, whole prefix", False)):
        losses[name] = partial(Theirs(backbone.lm, feedback, cached).loss, k=k)

    def update(loss: Callable[[Step], Tensor], steps: Iterator[Step]) -> Tensor:
        with mixed(place):
            value = loss(next(steps))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    steps = tee(steps_of(method, sizes, ragged), len(losses))  # every arm has the same ones in the same order
    arms = {name: partial(update, loss, same) for (name, loss), same in zip(losses.items(), steps)}
    found = {name: float(arm()) for name, arm in arms.items()}
    limit = 0.05 if place.type == "cuda" else 1e-4
    if not all(abs(loss - found["ours"]) <= limit * abs(found["ours"]) for loss in found.values()):
        raise RuntimeError(f"the arms' losses differ: {found}")
    shape = f"{sizes.prompt} + {k} + {sizes.text} positions"
    what = f"training step, {sizes.train} rows, {f'up to {shape}, ragged' if ragged else shape}"
    return table(what, timed(arms, rounds, place, warm=6 if ragged else 2))


def reading(method: AlongSequence) -> Any:
    """The language model as a user who only reads has it: on a GPU in bfloat16, which autocast need not convert."""
    if method.backbone.device.type != "cuda":
        return method.backbone.lm
    with method.backbone.device:
        lm = type(method.backbone.lm)(method.backbone.lm.config)
    lm.load_state_dict(method.backbone.lm.state_dict())
    return lm.to(torch.bfloat16).eval()


def rollouts(method: AlongSequence, sizes: Sizes, rounds: int) -> list[dict]:
    """Sampled texts after the latents, a group for each prompt."""
    k, n, place, lm = sizes.latents, sizes.prompts * sizes.group, method.backbone.device, reading(method)
    ids_PT = ids_of(method, sizes.prompts, sizes.prompt)
    ids_BT = ids_PT.repeat_interleave(sizes.group, 0)

    @torch.no_grad()
    def ours(chosen: How) -> None:
        with mixed(place):
            episode(method, Prompt(ids_PT), sizes.group, chosen(Sample()), sizes.text, None)

    cached = Theirs(lm, method.feedback, True)
    arms: dict[str, Callable[[], object]] = {
        **{name: partial(ours, chosen) for name, chosen in OURS.items()},
        "transformers, cached": partial(cached.write, ids_BT, k, sizes.text, sampled=True),
        "transformers, generate": partial(generated, lm, ids_BT, k + sizes.text, do_sample=True),
    }
    what = f"{n} rollouts of {sizes.prompts} prompts, {sizes.prompt} + {k} + {sizes.text} positions"
    return table(what, timed(arms, rounds, place))


def answers(method: AlongSequence, sizes: Sizes, batch: int, rounds: int) -> list[dict]:
    """Greedy texts after the latents; by the whole prefix only one row, as they are written one at a time."""
    k, place, lm = sizes.latents, method.backbone.device, reading(method)
    ids_BT, feedback = ids_of(method, batch, sizes.prompt), method.feedback

    def ours(chosen: How) -> Tensor:
        with torch.inference_mode(), mixed(place):
            return decode(method, method.think(Prompt(ids_BT), Greedy()), chosen(Greedy()), sizes.text, None)

    arms: dict[str, Callable[[], Tensor]] = {name: partial(ours, chosen) for name, chosen in OURS.items()}
    for name, cached in (("transformers, cached", True), ("transformers, whole prefix", False)):
        if cached or batch == 1:
            arms[name] = partial(Theirs(lm, feedback, cached).write, ids_BT, k, sizes.text)
    texts = {name: arm() for name, arm in arms.items()}
    arms["transformers, generate"] = partial(generated, lm, ids_BT, k + sizes.text, do_sample=False)
    what = f"answer, batch {batch}, {sizes.prompt} + {k} + {sizes.text} positions"
    rows = table(what, timed(arms, rounds, place))
    for name, text_BT in texts.items():
        same = float((text_BT == texts["ours"]).float().mean())
        if place.type == "cpu" and same < 1:  # in bfloat16 near ties fall otherwise: said, and judged by the reader
            raise RuntimeError(f"{what}: {name} writes another text than ours")
        rows.append({"what": what, "arm": name, "value": same, "unit": "of its tokens are ours"})
    return rows


@torch.no_grad()
def generated(lm: Any, ids_BT: Tensor, tokens: int, do_sample: bool) -> Tensor:
    """As many tokens by the library's own loop."""
    mask_BT = torch.ones_like(ids_BT)
    how = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": do_sample, "pad_token_id": 0}
    return lm.generate(ids_BT, attention_mask=mask_BT, **how)


def timed(
    arms: Mapping[str, Callable[[], object]], rounds: int, place: torch.device, warm: int = 2
) -> dict[str, list[float]]:
    """Seconds of each arm in each round, after some rounds to warm up. Every other round runs backwards."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(rounds + warm):
        for name in list(arms) if i % 2 else list(arms)[::-1]:
            seconds = clocked(arms[name], place)
            if i >= warm:
                times[name].append(seconds)
    return times


def clocked(call: Callable[[], object], place: torch.device) -> float:
    """Seconds that a call takes, from idle to idle."""
    if place.type != "cuda":
        start = perf_counter()
        call()
        return perf_counter() - start
    torch.cuda.synchronize(place)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def table(what: str, times: dict[str, list[float]]) -> list[dict]:
    """Of each arm its median in milliseconds with quartiles, and its median ratio to ours, round by round."""
    rows = []
    for name, seconds in times.items():
        low, _, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
        row = {"what": what, "arm": name, "value": 1000 * median(seconds), "unit": "ms"}
        rows.append(row | {"low": 1000 * low, "high": 1000 * high, "rounds": len(seconds)})
    for name, seconds in times.items():
        if name != "ours":
            ratio = median(theirs / ours for theirs, ours in zip(seconds, times["ours"], strict=True))
            rows.append({"what": what, "arm": f"{name} / ours", "value": ratio, "unit": ""})
    return rows
