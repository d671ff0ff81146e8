"""What a method is, as everything else sees it: how a backbone thinks, and what it is taught."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from kernels.errors import UserError, unwritten
from latent.backbone import Backbone
from latent.halting import Settled, StopHead
from latent.methods.config import MethodConfig
from latent.methods.terms import Mean
from latent.taps import Call
from latent.text import Batch
from latent.thought import Chooser, Prompt, Thought

# what goes into latent step i (from 0), changed by a diagnostic; again for every pass where latents are read in several
Edit = Callable[[int, Tensor], Tensor]


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class Method(nn.Module, Generic[ConfigT]):
    """How a backbone thinks. Subclasses write `think` and `terms`.

    `steps` is the number of latent steps when answering, `stride` the positions that each takes. `stop`: what decides
    when to stop, None where nothing does. `parallel_answer`: tokens of an answer that is read off in parallel, None
    where the text is written one by one. `critic`: in RL with one, what reads the expected reward off a hidden state.
    `made_from`: the config that `build` makes it from again; of a control it is not `config`. `fresh`: how names of
    parameters begin that may start afresh, or stay behind, where a run starts from the weights of another; all others
    must be there in the same shape. `on_host`: buffers that stay on the CPU, for the host decides by them.
    """

    config: ConfigT
    made_from: MethodConfig
    stop: StopHead | Settled | None
    fresh: ClassVar[tuple[str, ...]] = ("stop.", "policy.", "critic.", "closing")
    on_host: ClassVar[tuple[str, ...]] = ()
    __getattr__ = nn.Module.__getattr__  # the same, but a name that no one declares is an error to mypy

    def __init__(self, config: ConfigT, backbone: Backbone):
        super().__init__()
        self.config = self.made_from = config
        self.backbone = backbone
        self.steps, self.stride = 0, 0
        self.parallel_answer: int | None = None
        self.stop = None
        self.critic: nn.Module | None = None

    def _apply(self, fn, recurse=True):
        kept = {name: self._buffers[name] for name in self.on_host}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and not buffer.is_meta:
                self._buffers[name] = buffer.to(moved.dtype)
        return self

    @property
    def title(self) -> str:
        """What its config is called, a control's own."""
        return type(self.made_from).__name__

    @property
    def trained_steps(self) -> int:
        """Latent steps of `think` unless told otherwise: fewer than `steps` before a curriculum has ended."""
        return self.steps

    @property
    def mean_trained_steps(self) -> float:
        """Latent steps of a row in training, on average."""
        return self.steps

    @property
    def lr_scales(self) -> Mapping[str, float]:
        """How names of parameters begin that learn at a multiple of the learning rate, and the multiple."""
        return {}

    @property
    def in_last_stage(self) -> bool:
        """Whether training has come to what is to be learned in the end; False before a curriculum's last stage."""
        return True

    def least_updates(self, chain: int) -> int:
        """The fewest updates before the last stage of a curriculum, given the tokens of the longest chain."""
        return 0

    def think(
        self, prompt: Prompt, choose: Chooser, group: int = 1, steps: int | None = None, edit: Edit | None = None
    ) -> Thought:
        """Think about P prompts, G rollouts each: a thought for P * G rollouts, rollout p * G + g.

        `choose` makes the random choices. `steps` overrides the number of latent steps; 0 is no-CoT. `edit(i, x)` may
        change what goes into latent step i: the fed-back embeddings (P, D), or the looped state (P, T, D). Raises
        ValueError where prompt and thoughts need more positions than the model has.
        """
        raise unwritten(self, "think")

    def reserved(self, steps: int) -> int:
        """Positions between a prompt and its text that `steps` latent steps take."""
        return 0

    def passes(self, used: float, tokens: float) -> float:
        """Forward passes that must follow one another in an answer of `tokens` after `used` latent steps."""
        raise unwritten(self, "passes")

    def flops(self, prompt: float, used: float, tokens: float) -> float:
        """Forward FLOPs of one answer: 2 a weight and position, 4 d a pair of positions that attend, the head where
        read.

        Padding is not counted; the last layer is, in full, although only part of it is read.
        """
        n, per_layer = prompt + used + tokens - 1, self.layer_flops
        attention = 4 * self.backbone.width * n * (n + 1) / 2
        return n * sum(per_layer) + len(per_layer) * attention + self.head_flops * tokens

    @property
    def layer_flops(self) -> list[int]:
        """Of each layer's weights, a position."""
        return [2 * sum(p.numel() for p in block.parameters() if p.ndim == 2) for block in self.backbone.blocks]

    @property
    def head_flops(self) -> int:
        return 2 * self.backbone.width * self.backbone.vocab

    def sequences(self, chain: float, answer: float) -> list[tuple[float, float]]:
        """What training reads of a problem, given the tokens of chain and answer: latent steps, and tokens of the text
        after them, on average. The first is what answering reads; each begins with the prompt."""
        if self.parallel_answer is not None:
            return [(self.mean_trained_steps, self.parallel_answer)]
        return [(self.mean_trained_steps, answer + chain * self.made_from.chain_share)]

    def kept(self, prompt: float, used: float, text: float) -> float:
        """Positions times layers that training keeps for backward of one row."""
        return (prompt + used + text) * len(self.backbone.blocks)

    def target_step(self, latent: int, chain: int) -> int:
        """Which of a chain's steps latent `latent` should have reached in training, at most `chain`; of 0, the state
        before the first latent."""
        return min(latent, chain)

    def of_latent(self, calls: list[Call], step: int) -> Call:
        """Of the calls that a tap saw while `think` ran, the position of a latent step; 0 = the last one before.

        Rows are the prompts. Raises UserError for a step that was not thought or not kept.
        """
        first, *later = calls
        if step == 0:
            return first.at(-1)
        for call in later:
            if step <= call.length:
                return call.at(step - 1)
            step -= call.length
        raise UserError(f"the tap ends {step} latent steps before the one asked for")

    def lens(self, states: Tensor, layer: int | None = None) -> Tensor:
        """States (..., D) as the head reads them: those of a trace, or of a tapped layer."""
        return states if layer is None or layer == self.backbone.depth else self.backbone.norm(states)

    def steps_written(self, chain: int) -> int:
        """How many of a chain's steps the text still holds before the answer."""
        return 0

    def tokens_written(self, tokens: int, steps: int) -> int:
        """The same in tokens, of a chain of so many tokens in so many steps."""
        return -(-tokens * self.steps_written(steps) // steps)

    def positions_needed(self, prompt: int, steps: list[int], answer: int) -> int:
        """Positions that a problem needs at most, given the tokens of its prompt, its chain's steps and its answer."""
        raise unwritten(self, "positions_needed")

    def check_chain(self, steps: list[int], answer: int) -> None:
        """Raise UserError for a chain and answer, given the tokens of each, that `terms` cannot be trained on."""

    def check_chains(self, chains: list[list[int]]) -> None:
        """Raise UserError for training problems, given the tokens of each one's steps, that teach nothing together."""

    def terms(self, batch: Batch) -> tuple[list[Mean], dict[str, Mean]]:
        """The training loss, the weighted sum of the terms' means, and what to log.

        Each term has a count of its own (tokens of the text, tokens of the steps), and as many terms come back for
        every share of a batch, so that they can be summed over processes.
        """
        raise unwritten(self, "terms")

    def counts(self, batch: Batch) -> list[int | Tensor]:
        """The counts of the terms that `terms` would give of this batch, with the same draws, before any is computed.

        A batch that is cut into micro-batches divides each part by the count of the whole. This computes the terms to
        see; a method that can tell from the ids alone says so itself.
        """
        with torch.no_grad(), torch.random.fork_rng():
            return [term.count for term in self.terms(batch)[0]]

    def forward(self, verb: str | Callable, *args, **kwargs):
        """The one door for what is to be learned from: `terms` by name, or a function of the method, e.g. `score`.

        Engines that share parameters or gradients over processes hang on a module's `forward`; what is called past it
        is not seen by them.
        """
        return getattr(self, verb)(*args, **kwargs) if isinstance(verb, str) else verb(self, *args, **kwargs)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch that is all there is, a scalar, and what to log."""
        terms, logged = self.terms(batch)
        first, *others = (term.weight * term.taken() for term in terms)
        return sum(others, first), {name: mean.taken().detach() for name, mean in logged.items()}

    def begin_update(self) -> bool:
        """Told before every supervised update: here a curriculum goes on, so that a model that is judged after an
        update is in the stage that it was trained in.

        Returns whether the optimizer's moments are forgotten first.
        """
        return False

    def learned(self, logged: dict[str, Tensor]) -> dict[str, Tensor]:
        """Told after `terms` what was logged, over all processes. Returns what else to log."""
        return {}

    def written(self, steps: list[int]) -> int:
        """Tokens of a chain, given those of its steps, that the text still holds once training has ended."""
        return 0
