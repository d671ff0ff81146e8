"""Where `transformers` models are run: any causal LM as three verbs, `read`, `step` and `head`, and a door, `tap`.

GPT-2, Llama and Qwen3 go through the layer arithmetic of `latent/layers.py`, without the framework's overhead on a
one-position step, and nothing of the last layer is computed that no one reads. Every other family goes through its own
`forward` (`latent/families.py`), and so do these three while a forward hook is on a block or on a module in it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.decode_step import Fed, Feed, Scan, Tensors
from kernels.errors import UserError
from kernels.exit_criterion import step_kl
from kernels.latent_chain import LatentChain
from kernels.linear_logprob import linear_logprob
from kernels.recurrent_loop import RecurrentLoop
from kernels.vocab_mix import vocab_mix
from latent import layers
from latent.cache import Caches, Context
from latent.fused import Fused
from latent.taps import Recording, Tap
from latent.text import positions


class Backbone(nn.Module):
    """A causal LM whose hidden states can be read, fed back and turned into logits.

    `lm` is any `transformers` causal LM with a cache of K and V for every layer. Raises UserError for one without.
    """

    __getattr__ = nn.Module.__getattr__  # the same, but a name that no one declares is an error to mypy
    lm: Any  # a PreTrainedModel, most of which is declared as Tensor | Module

    def __init__(self, lm: nn.Module):
        super().__init__()
        self.lm = lm
        self.decoder = [self.lm.get_decoder()]  # in a list: its parameters are lm's
        self.layers = layers.known_layers(lm)
        self.recompute = False  # gradient checkpointing
        self.fused = Fused(lm, self.layers)
        self._taps: list[Tap] = []  # the open ones
        self._hooks: list[dict] | None = None  # of all modules in the blocks
        config, decoder = self.lm.config, self.decoder[0]
        if not (getattr(decoder, "layers", None) or getattr(decoder, "h", None)):
            raise UserError(f"{type(lm).__name__} is not a causal LM with a K/V cache a layer")
        if not isinstance(getattr(config, "max_position_embeddings", None), int):
            raise UserError(f"{type(lm).__name__} does not say how many positions it has (max_position_embeddings)")
        self.width: int = config.hidden_size
        self.positions: int = config.max_position_embeddings
        self.vocab: int = self.lm.get_output_embeddings().weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self.lm.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm.get_input_embeddings().weight.dtype

    @property
    def blocks(self) -> nn.ModuleList:
        """The family's layer modules."""
        decoder = self.decoder[0]
        return decoder.h if hasattr(decoder, "h") else decoder.layers

    @property
    def hooked(self) -> bool:
        """Whether a forward hook is on a block, or on a module in it: our arithmetic would not call it."""
        if self._hooks is None:
            inner = [m for block in self.blocks for m in block.modules()]
            self._hooks = [hooks for m in inner for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        if not any(self._hooks):  # asked at every position: no loop in Python
            return False
        # transformers leaves hooks of its own where hidden states were once asked of it; they do nothing here
        every = (hook for hooks in self._hooks for hook in hooks.values())
        return any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in every)

    @property
    def watched(self) -> bool:
        """Whether someone looks on, by a tap or a hook: what runs in kernels and graphs is not seen."""
        return bool(self._taps) or self.hooked

    @contextmanager
    def tap(
        self, layers: Sequence[int] | None = None, states: bool = True, kv: bool = False, attentions: bool = False,
        keep: int | None = None,
    ) -> Iterator[Tap]:  # fmt: skip
        """Meanwhile every `read`, `hidden`, `step` and `loop` leaves what it computed in `calls` of the tap.

        `layers`: numbers from 0, the embeddings, to the last block, negative ones from the end; None = all (see
        `latent/taps.py`). `states`: hidden states (B, T, D). `kv`: K and V of the new positions. `attentions`: weights
        over all positions. `keep`: only the last so many of each call's new positions, None = all; what else was
        computed can then be freed.

        With gradient or without, as the calls are made. Fused kernels, which keep nothing, are not used meanwhile
        (`chain`, `apart` and `recur` give None), nor is the training chain; numbers are the same but for rounding.
        Taps may be opened within taps; each gets its own. In a loop along the depth (`loop`) the state of the first
        block's number is what goes into it, the injected constant included, and that of the last block is not normed.
        Raises UserError for layers that there are not and where nothing is asked for.
        """
        tap = Tap(self.depth, layers, states, kv, attentions, keep)
        self._taps.append(tap)
        try:
            yield tap
        finally:
            self._taps.remove(tap)

    @property
    def depth(self) -> int:
        """The number of the last layer."""
        return len(self.blocks)

    @property
    def embedding_rms(self) -> Tensor:
        """Root mean square of the input embeddings' entries (): the scale at which learned inputs begin."""
        return self.lm.get_input_embeddings().weight.detach().square().mean().sqrt()

    def random_embedding(self, *shape: int) -> Tensor:
        """Normal numbers (*shape, D) at the scale of the input embeddings."""
        return self.embedding_rms * torch.randn(*shape, self.width)

    def make_room(self, vocab: int) -> None:
        """Grow the embedding and the head to at least `vocab` rows."""
        if vocab > self.vocab:
            self.lm.resize_token_embeddings(vocab)
            self.vocab = vocab

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token ids -> input embeddings (B, T, D), positions not yet added."""
        return self.lm.get_input_embeddings()(ids_BT)

    def head(self, h_BTD: Tensor) -> Tensor:
        """Final hidden states -> logits (B, T, V), in fp32 or better: what is taken from them are log-probabilities.

        Without gradient on a GPU they are never rounded to the dtype of what is multiplied, as `logprob` does not.
        """
        operands = self.fused.operands(h_BTD) if h_BTD.is_cuda and not torch.is_grad_enabled() else None
        if operands is not None and operands[0].dtype in (torch.bfloat16, torch.float16):
            flat_ND, e_VD = operands[0].flatten(0, -2), operands[1]
            return torch.mm(flat_ND, e_VD.t(), out_dtype=torch.float32).unflatten(0, h_BTD.shape[:-1])
        logits_BTV = self.lm.get_output_embeddings()(h_BTD)
        return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))

    def norm(self, h_BTD: Tensor) -> Tensor:
        """States of an inner layer through the final norm, as the head can read them (logit lens, nostalgebraist 2020).

        Raises UserError for a family whose final norm is not found.
        """
        if self.layers is not None:
            return self.layers.norm(h_BTD)
        from latent import families

        return families.final_norm(self.lm)(h_BTD)

    def logprob(
        self, h_ND: Tensor, ids_N: Tensor, temperature: float = 1.0, entropy: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Log-prob of tokens given their hidden states, entropy (nats) if asked for, and the likeliest token, (N,)."""
        operands = self.fused.operands(h_ND)
        if operands is not None:
            return linear_logprob(*operands, ids_N, temperature, entropy)
        logp_NV = (self.head(h_ND) / temperature).log_softmax(-1)
        entropy_N = -(logp_NV.exp() * logp_NV).sum(-1) if entropy else None
        return logp_NV.gather(-1, ids_N[:, None])[:, 0], entropy_N, logp_NV.detach().argmax(-1)

    def mix(self, h_ND: Tensor, top_k: int | None = None, temperature: float = 1.0) -> Tensor:
        """The mean input embedding (N, D) under the next-token distributions of final hidden states.

        `top_k`: only the likeliest tokens, their probabilities made to sum to 1; None = all.
        """
        operands, table_VD = self.fused.operands(h_ND), self._table()
        if operands is not None and not torch.is_grad_enabled():
            low_ND, e_VD = operands
            tied = table_VD is self.lm.get_output_embeddings().weight  # whose copy in this dtype is there
            low_VD = e_VD if tied else table_VD.to(low_ND.dtype)
            return vocab_mix(low_ND, e_VD, low_VD, temperature, top_k=top_k)[0].to(h_ND.dtype)
        table_VD = table_VD.to(h_ND.dtype)
        z_NV = self.head(h_ND) / temperature
        if top_k is None:
            return z_NV.softmax(-1).to(h_ND.dtype) @ table_VD
        z_NK, ids_NK = z_NV.topk(top_k)
        return (z_NK.softmax(-1).to(h_ND.dtype)[:, None] @ table_VD[ids_NK])[:, 0]

    def average(self, p_NV: Tensor) -> Tensor:
        """The mean input embedding (..., D) under distributions over the vocabulary (..., V), of any precision."""
        table_VD = self._table()
        return p_NV.to(table_VD.dtype) @ table_VD

    def _table(self) -> Tensor:
        """The input embedding (V, D) of every token; some families scale what they look up."""
        table = self.lm.get_input_embeddings()
        return table.weight if type(table) is nn.Embedding else table(torch.arange(self.vocab, device=self.device))

    def step_kl(self, h_ND: Tensor, before_ND: Tensor) -> Tensor:
        """KL (nats) from the next-token distributions that `before_ND` gives to those of `h_ND`, (N,); no gradient."""
        operands = self.fused.operands(h_ND)
        if operands is not None:
            return step_kl(operands[0], before_ND.to(operands[0].dtype), operands[1])
        logp_NV, logq_NV = (self.head(x).log_softmax(-1) for x in (h_ND, before_ND))
        return (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1)

    def read(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, after: Context | None = None
    ) -> tuple[Tensor, Context]:
        """Read left-padded prompts. Returns the last position's final hidden state (B, D) and the context.

        `mask_BT` is False on padding; None where there is none. Positions count from each row's first token, or go on
        from what it has read before, `after`.
        """
        h_BTD, context = self.hidden(ids_BT, mask_BT, keep=1, after=after)
        return h_BTD[:, -1], context

    def hidden(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, keep: int | None = None, after: Context | None = None,
        then_BKD: Tensor | None = None, stride: int = 1, real_B: Tensor | None = None,
    ) -> tuple[Tensor, Context]:  # fmt: skip
        """The same with the final hidden states of at least the last `keep` positions, None = all: (B, T, D).

        `then_BKD`: K more positions in the same pass, given as embeddings, their position ids `stride` apart. `real_B`:
        how many of a row's K are real, None = all; the others, which come last, may lie beyond the model's positions.
        """
        b, t = ids_BT.shape
        x_BTD, pos_BT, before, reach = self.embed(ids_BT), positions(ids_BT, mask_BT), None, t
        ends_B = None if real_B is None else pos_BT[:, -1] + 1 + stride * real_B
        if then_BKD is not None:
            k = then_BKD.shape[1]
            further_K = stride * torch.arange(1, k + 1, device=ids_BT.device)
            x_BTD, pos_BT = torch.cat([x_BTD, then_BKD], 1), torch.cat([pos_BT, pos_BT[:, -1:] + further_K], 1)
            mask_BT = mask_BT if mask_BT is None else torch.cat([mask_BT, mask_BT.new_ones(b, k)], 1)
            t, reach = t + k, t + stride * k
        mask_BS = mask_BT
        if after is not None:
            reach, ends_B = reach + after.reach, None if ends_B is None else ends_B + after.next_B
            pos_BT, before = after.next_B[:, None] + pos_BT, after.layers
            if mask_BT is not None or after.mask_BS is not None:
                both = (
                    ids_BT.new_ones(b, after.size, dtype=torch.bool) if after.mask_BS is None else after.mask_BS,
                    pos_BT.new_ones(b, t, dtype=torch.bool) if mask_BT is None else mask_BT,
                )
                mask_BS = torch.cat(both, 1)
        next_B = pos_BT[:, -1] + 1
        pos_BT = self._within(pos_BT, reach, ends_B)
        h_BTD, past = self._run(x_BTD, pos_BT, before, mask_BS, keep=t if keep is None else keep)
        return h_BTD, Context(past, mask_BS, next_B, reach)

    def step(
        self, x_BTD: Tensor, context: Context, stride: int = 1, real_B: Tensor | None = None
    ) -> tuple[Tensor, Context]:
        """Go on by T positions given as embeddings, their position ids `stride` apart; `real_B` as in `hidden`, of T.

        Returns final hidden states (B, T, D) and the longer context.
        """
        b, t, _ = x_BTD.shape
        span = stride * (t - 1) + 1
        fits = real_B is None or context.reach + span <= self.positions
        if t == 1 and fits and (fused := self.chain(x_BTD[:, 0], context, None, 1, 1)) is not None:
            return fused
        pos_BT = context.next_B[:, None] + stride * torch.arange(t, device=context.next_B.device)
        ends_B = None if real_B is None else context.next_B + stride * (real_B - 1) + 1
        pos_BT = self._within(pos_BT, context.reach + span, ends_B)
        mask_BS = context.mask_BS
        if mask_BS is not None:
            mask_BS = torch.cat([mask_BS, mask_BS.new_ones(b, t)], 1)
        chain: LatentChain | None = None
        if t == 1 and torch.is_grad_enabled() and self.layers is not None and not self.watched:
            if isinstance(context.past, LatentChain):
                chain = context.past
            elif (decoder := self.layers.decoder()) is not None:
                chain = LatentChain.of(
                    decoder, [(c.k, c.v) for c in context.layers], self.recompute, self.fused.mixed(), self.fused.graphs
                )
        past: Caches | LatentChain
        if chain is None:
            h_BTD, past = self._run(x_BTD, pos_BT, context.layers, mask_BS, keep=t)
        else:
            assert self.layers is not None  # or there were no chain
            x_B1D, rope = self.layers.enter(x_BTD, pos_BT)
            rope = rope and tuple(r[:, 0, 0] for r in rope)
            h_BD, past = chain.step(x_B1D[:, 0], rope, mask_BS)
            h_BTD = h_BD[:, None]
        return h_BTD, Context(past, mask_BS, context.next_B + span, context.reach + span)

    def chain(self, h_BD: Tensor, context: Context, feed: Feed, k: int, stride: int) -> tuple[Tensor, Context] | None:
        """k positions in fused kernels, each fed from the state before, the first from `h_BD` (B, D).

        Returns their states (B, K, D) and the longer context. None where they do not apply: under autograd, without a
        GPU, with kernels turned off, for a family or a layer that they do not know, and where a tap is open.
        """
        done = self._scan(h_BD, context, Fed(feed), k, stride, feed, tuple, ())
        return None if done is None else done[:2]

    def write(
        self, h_BD: Tensor, context: Context, text: Scan, k: int, given: Callable[[], Tensors], carry: Tensors
    ) -> tuple[Tensor, Context, Tensors, Tensors] | None:
        """The same for k tokens of text: `text` chooses each from the state before, and embeds it.

        Also returns what it carries on, (B, ...) each, and what it made, (B, K, ...) each. `given`, (K, B, ...) each,
        is asked for where kernels run. None also where the embedding or the head is more than a weight.
        """
        table, head = self.lm.get_input_embeddings(), self.lm.get_output_embeddings()
        if type(table) is not nn.Embedding or type(head) is not nn.Linear:
            return None  # what a graph has captured of adapters would not see that they are switched
        return self._scan(h_BD, context, text, k, 1, head, given, carry)

    def _scan(self, h_BD: Tensor, context: Context, scan: Scan, k: int, stride: int, *args):
        if not k or self.watched:
            return None
        self.check_length(context.reach + k * stride)
        return self.fused.scan(h_BD, context, scan, k, stride, *args)

    def apart(self, context: Context, row_B: Tensor) -> Context | None:
        """The context with a row for each rollout, row_B[b] of it, where text goes on in fused kernels.

        Rollouts that follow their prompts in order, as many each, share K and V of the prompt where copies of it would
        take more than the kernels' caches may. None where it does not apply, as in `chain`.
        """
        if self.watched:
            return None
        decoder = self.fused.decode()
        if decoder is None:
            return None
        if decoder.bytes(len(row_B), context.size) <= decoder.limit:
            return context.rows(row_B)
        rows = len(context.next_B)
        in_order_B = torch.arange(len(row_B), device=row_B.device) * rows // len(row_B)
        if len(row_B) % rows or not torch.equal(row_B, in_order_B):
            return None
        return context.branch(len(row_B) // rows)

    def recur(
        self, constant_BTD: Tensor, carry: nn.Linear, norm: nn.LayerNorm, blocks: range, r: int, pos_BT: Tensor,
        mask_BT: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """States (B, R, T, D) of r recurrences s -> norm(layers(carry(s) + constant)), from zeros, in one launch.

        None where it does not apply, as in `chain`.
        """
        op = "recurrent_loop"
        decoder = self.fused.decoder(op) if r and not self.watched else None
        if decoder is None:
            return None
        weight, affine = carry.weight, (norm.weight, norm.bias)
        core = replace(decoder, layers=decoder.layers[blocks.start : blocks.stop])
        loop = self.fused.ready(op, core, (weight, *affine), lambda: RecurrentLoop(core, weight.t(), affine, norm.eps))
        assert self.layers is not None  # or there were no decoder
        _, ropes = self.layers.places(constant_BTD, pos_BT)
        return loop.at_once(constant_BTD, r, ropes, mask_BT)

    def __getstate__(self):
        """Without open taps."""
        return self.__dict__ | {"_taps": [], "_hooks": None}

    def check_length(self, length: int) -> None:
        """Raise UserError where prompt, thoughts and text together need more positions than there are."""
        if length > self.positions:
            raise UserError(f"prompt, thoughts and text need {length} positions, the model has {self.positions}")

    def _within(self, pos_BT: Tensor, reach: int, ends_B: Tensor | None) -> Tensor:
        """Position ids of rows the longest of which reaches `reach`; what is real of each row ends at `ends_B`.

        What is not real is read at the last position at most, and says nothing. Raises UserError where a row needs more
        than there are.
        """
        if reach <= self.positions or ends_B is None:
            self.check_length(reach)
            return pos_BT
        self.check_length(int(ends_B.max()))  # the host waits for a GPU here alone
        return pos_BT.clamp(max=self.positions - 1)

    def _run(
        self, x_BTD: Tensor, pos_BT: Tensor, past: Caches | None, mask_BS: Tensor | None, keep: int
    ) -> tuple[Tensor, Caches]:
        """The decoder over T new positions: final hidden states of at least the last `keep`, and the layers' caches."""
        t = x_BTD.shape[1]
        mask_BT = mask_BS if mask_BS is None else mask_BS[:, -t:]
        recording = Recording(self._taps, self.depth, pos_BT, mask_BT) if self._taps else None
        recompute = self.recompute and torch.is_grad_enabled()
        if self.layers is None or self.hooked:
            from latent import families

            done = families.forward(self.lm, x_BTD, pos_BT, past, mask_BS, recompute, recording)
        else:
            done = layers.forward(self.layers, x_BTD, pos_BT, past, mask_BS, keep, recompute, recording)
        if recording is not None:
            recording.complete()
        return done

    def loop(
        self, h_BTD: Tensor, blocks: range, pos_BT: Tensor, mask_BT: Tensor | None, constant_BTD: Tensor | None = None
    ) -> Tensor:
        """Some of the layers over a whole causal sequence, without cache: what a loop along the depth repeats.

        `constant_BTD`, the same in every recurrence, is added to `h_BTD` first.
        """
        if self.hooked:
            raise UserError("a loop along the depth calls no forward hooks: take a tap")
        recording = Recording(self._taps, self.depth, pos_BT, mask_BT) if self._taps else None
        recompute = self.recompute and torch.is_grad_enabled()
        h_BTD = layers.loop(self.layers, h_BTD, blocks, pos_BT, mask_BT, constant_BTD, recompute, recording)
        if recording is not None:
            recording.complete()
        return h_BTD
