"""The Hugging Face face: any method as a causal LM whose latent steps are placeholder tokens.

k ids `<latent>` after a prompt mean: think k steps here. `forward` resolves them by the method's own `think`, whose
states stand at their columns, so logits after the last of them are those of the text; `generate` only appends them and
takes them out again. Sampling, beams, streaming and log-likelihoods are then stock code. A placeholder's logit is -inf,
and no row of the embedding is read for it.

A loop along the depth is called the same way: k placeholders are k recurrences, and the answer, which it reads off in
parallel, is handed out token by token.
"""

import sys
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from kernels.errors import UserError
from latent import bundle, methods
from latent.backbone import Backbone, check_finite
from latent.cache import Context
from latent.generate import longest_text
from latent.hf_config import LatentConfig
from latent.hf_ends import Length, Seen, Strings, Stripped
from latent.hf_mask import mask_of, without_closing
from latent.methods.base import Method
from latent.thought import Greedy, Prompt

log = logging.get_logger(__name__)
UNTHOUGHT = (
    "a checkpoint that thinks is opened as a plain model: log-likelihoods would be of texts that do not follow <think> "
    "and its thoughts, as they did in training; in lm-eval open it with --model latent"
)
UNPROMPTED = (
    "a row to train on has no <think>: it is read as text that nothing was thought before, although `generate` thinks; "
    "end prompts in <think> and as many <latent> as are to be thought"
)
# the name that this release of transformers has for a cache
CACHE = "cache" if any(f.name == "cache" for f in fields(CausalLMOutputWithPast)) else "past_key_values"


class LatentCache(DynamicCache):
    """What has been read and thought, as stock generation wants it: `context`, or the answer already read off.

    `seen` counts columns of `input_ids`, placeholders included.
    """

    is_compileable = False

    def __init__(self):
        super().__init__()
        self.context: Context | None = None
        self.ahead_BTD: Tensor | None = None
        self.used_B: Tensor | None = None  # latent steps used, a row each as they were read
        self.seen = 0

    @property
    def is_sliding(self) -> list[bool]:
        return [False]

    is_linear = is_sliding

    def get_seq_length(self, *_) -> int:
        return self.seen

    def get_max_cache_shape(self, *_) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        held = self.ahead_BTD if self.context is None else self.context.next_B
        assert held is not None  # something has been read
        self.batch_select_indices(torch.arange(len(held)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.context is not None:
            self.context = self.context.rows(indices.to(self.context.next_B.device))
        if self.ahead_BTD is not None:
            self.ahead_BTD = self.ahead_BTD[indices.to(self.ahead_BTD.device)]

    def crop(self, *_) -> None:
        raise UserError("a thought cannot be cropped: assisted generation is not supported")


@dataclass
class LatentOutput(CausalLMOutputWithPast):
    """As of any causal LM, and the states (B, T, D) that the head reads, for trainers with a head of their own."""

    last_hidden_state: Tensor | None = None


@dataclass
class _Row:
    """Columns of one row: those of the prompt, of its placeholders, of the text after them. No thought: steps None."""

    prompt: list[int]
    latents: list[int]
    text: list[int]
    steps: int | None


class LatentForCausalLM(PreTrainedModel, GenerationMixin):
    """A method as a causal LM. `method`: a trained one to wrap; without it, one is made from the config."""

    config_class = LatentConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # Trainer says how many labels the whole batch has
    _known = False

    def __init__(self, config: LatentConfig, method: Method | None = None):
        super().__init__(config)
        trained: list[Any] = [] if method is None else list(method.modules())  # Any: they get a mark of transformers'
        for module in trained:
            module._is_hf_initialized = True  # or post_init would draw the weights anew
        if method is None:
            lm = AutoModelForCausalLM.from_config(config.backbone_config(), trust_remote_code=False)
            method = methods.build(methods.unpack(config.method), Backbone(lm))
        self.method = method
        self.post_init()
        for module in trained:
            del module._is_hf_initialized
        inner = "method.backbone.lm."  # transformers looks for tied weights one level down only
        tied = method.backbone.lm.all_tied_weights_keys
        self.all_tied_weights_keys = {inner + name: inner + to for name, to in tied.items()}

    @classmethod
    def register_for_auto_class(cls, *args, **kwargs) -> None:
        """Nothing: `save_pretrained` writes the file that opens a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs) -> Any:
        """As of any model. Raises UserError where weights are missing or not finite.

        Warns where lm-eval opens it as `--model hf`, which scores continuations without what stands before them.
        """
        if "lm_eval.models.huggingface" in sys.modules and "config" in kwargs and not cls._known:
            log.warning(UNTHOUGHT)
        name = pretrained_model_name_or_path
        opened: Any = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        model, info = opened  # a pair, of which its annotation does not know
        missing = sorted(map(str, [*info["missing_keys"], *info.get("mismatched_keys", ())]))
        if missing:
            raise UserError(f"{name} lacks weights: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}")
        check_finite(model, name)
        return (model, info) if output_loading_info else model

    @classmethod
    @contextmanager
    def known_caller(cls):
        """While this lasts, a checkpoint is opened by somebody who knows how it reads."""
        before, cls._known = cls._known, True
        try:
            yield
        finally:
            cls._known = before

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As of any model, with the file that opens it without this package."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        bundle.write(save_directory)  # first: with push_to_hub the rest uploads the folder
        super().save_pretrained(save_directory, *args, **kwargs)

    def _init_weights(self, module) -> None:
        """Nothing: the backbone draws its own weights, and a method's are drawn when it is built."""

    def get_input_embeddings(self):
        return self.method.backbone.lm.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.method.backbone.lm.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.method.backbone.lm.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.method.backbone.lm.set_output_embeddings(value)

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        """Keep only each layer's input until backward. How is the backbone's own choice: arguments do not apply."""
        self.method.backbone.recompute = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything again."""
        self.method.backbone.recompute = False

    # the names that later releases of transformers have for the two
    activation_checkpointing_enable = gradient_checkpointing_enable
    activation_checkpointing_disable = gradient_checkpointing_disable

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.method.backbone.recompute

    is_activation_checkpointing = is_gradient_checkpointing

    @property
    def num_latents(self) -> int:
        """Latent steps, or recurrences, of a call that does not say."""
        return self.method.trained_steps if self.config.num_latents is None else self.config.num_latents

    @property
    def longest(self) -> int | None:
        """Tokens after which the text ends by itself, None where an end token says so."""
        c = self.config
        if self.method.parallel_answer is not None:
            return self.method.parallel_answer
        if c.fixed_answer is None:
            return None
        return longest_text(self.method, c.answer_tokens, c.chain_tokens, c.chain_steps)

    def thinking(self, steps: int | None, after: int | None = None) -> list[int]:
        """The ids that make a prompt whose last id is `after` think: the think token where it lacks, k placeholders.

        Raises UserError for a negative number.
        """
        k = self.num_latents if steps is None else steps
        if k < 0:
            raise UserError(f"num_latents must be at least 0, got {k}")
        c = self.config
        if k and c.latent_id is None:
            raise UserError("this model has no <latent> token: num_latents must be 0")
        ready = c.think_id is None or after == c.think_id
        return ([] if ready else [c.think_id]) + [c.latent_id] * k

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: LatentCache | None = None,
        cache: LatentCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        prompt_logits: bool = True,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs,
    ) -> LatentOutput:
        """Logits (B, T, V) at every column, or at the last `logits_to_keep`; `labels` (B, T) give the mean loss.

        With `num_items_in_batch`, which Trainer gives, the loss is the sum divided by it: the labels of all
        accumulation steps, and of all devices where Trainer averages over them, count the same. Labels at placeholders,
        and at what closes a text whose length is fixed, add nothing to the sum.

        Rows may be padded on either side, and each may think as often as it likes. Without a mask, the padding token is
        padding. Without `prompt_logits` the columns before a thought are left zero, which saves reading the prompt
        twice. Columns after the last token of an answer that is read off in parallel are NaN. Raises UserError for
        placeholders that do not follow each other, where the positions do not suffice, and without a mask where padding
        cannot be told from text.
        """
        if kwargs.get("position_ids") is not None or kwargs.get("inputs_embeds") is not None:
            raise UserError("position_ids and inputs_embeds are not taken: positions follow from the attention mask")
        past = cache if cache is not None else past_key_values
        if use_cache and past is None:
            past = LatentCache()
        unread_BT = torch.zeros_like(input_ids, dtype=torch.bool)
        if past is not None and past.seen:
            h_BTD = self._go_on(input_ids, past)
        else:
            if attention_mask is None:
                attention_mask = mask_of(input_ids, self.config)
            learns = self.training and torch.is_grad_enabled() and self.config.think_id is not None
            if learns and not bool((input_ids == self.config.think_id).any(1).all()):
                log.warning_once(UNPROMPTED)
            input_ids, attention_mask, labels = without_closing(input_ids, attention_mask, labels, self.config)
            h_BTD = self._whole(input_ids, attention_mask, past, prompt_logits and logits_to_keep != 1, unread_BT)
        if logits_to_keep:
            h_BTD, unread_BT = h_BTD[:, -logits_to_keep:], unread_BT[:, -logits_to_keep:]
        logits_BTV = self.method.backbone.head(h_BTD)
        if self.method.parallel_answer is not None:
            logits_BTV = logits_BTV.masked_fill(unread_BT[:, -logits_BTV.shape[1] :, None], float("nan"))
        latent = self.config.latent_id
        if latent is not None and latent < logits_BTV.shape[-1]:  # a vocabulary with spare rows
            logits_BTV = logits_BTV.index_fill(-1, torch.tensor(latent, device=logits_BTV.device), float("-inf"))
        elif latent is not None:
            logits_BTV = F.pad(logits_BTV, (0, latent + 1 - logits_BTV.shape[-1]), value=float("-inf"))
        loss = None
        if labels is not None:
            if logits_to_keep:
                raise UserError("labels need all logits: logits_to_keep must be 0")
            target = labels[:, 1:].masked_fill(labels[:, 1:] == latent, -100) if latent is not None else labels[:, 1:]
            how = "mean" if num_items_in_batch is None else "sum"
            loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), target.flatten(), reduction=how)
            if num_items_in_batch is not None:
                whole = num_items_in_batch
                loss = loss / (whole.to(loss.device) if isinstance(whole, Tensor) else whole)
        held: dict[str, Any] = {CACHE: past}
        return LatentOutput(loss=loss, logits=logits_BTV, last_hidden_state=h_BTD, **held)

    def _go_on(self, ids_BT: Tensor, past: LatentCache) -> Tensor:
        """Final hidden states of text after what the cache holds."""
        if self.config.latent_id is not None and bool((ids_BT == self.config.latent_id).any()):
            raise UserError("a thought cannot begin after a cached one: give the whole text at once")
        t = ids_BT.shape[1]
        past.seen += t
        if past.ahead_BTD is not None:
            past.ahead_BTD = past.ahead_BTD[:, t:]
            if past.ahead_BTD.shape[1] == 0:
                raise UserError(f"this model reads off {self.method.parallel_answer} tokens, more were asked for")
            return past.ahead_BTD[:, :1]
        backbone = self.method.backbone
        assert past.context is not None  # what has been read and is not read off
        h_BTD, past.context = backbone.step(backbone.embed(ids_BT), past.context)
        return h_BTD

    def _whole(
        self, ids_BT: Tensor, mask_BT: Tensor | None, past: LatentCache | None, prompts: bool, unread_BT
    ) -> Tensor:
        """Final hidden states (B, T, D) of whole rows, at the columns of their ids. Marks what is not read off."""
        strange = (ids_BT >= self.method.backbone.vocab) & (ids_BT != self.config.latent_id)
        if bool(strange.any()):
            raise UserError(
                f"token {int(ids_BT[strange][0])} is not in the model's vocabulary of {self.method.backbone.vocab}"
            )
        mask = None if mask_BT is None or bool(mask_BT.all()) else mask_BT.bool()
        rows = self._rows(ids_BT.tolist(), None if mask is None else mask.tolist())
        backbone = self.method.backbone
        h_BTD = torch.zeros(*ids_BT.shape, backbone.width, device=ids_BT.device, dtype=backbone.dtype)
        groups: dict[int | None, list[int]] = {}
        for b, row in enumerate(rows):
            groups.setdefault(row.steps, []).append(b)
        if past is not None:
            past.seen = ids_BT.shape[1]
            if len(groups) > 1:
                raise UserError("rows that share a cache must think equally often")
        for steps, members in groups.items():
            at = torch.tensor(members, device=ids_BT.device)
            if steps is None:
                m = None if mask is None else mask[at]
                h, context = backbone.hidden(ids_BT[at], m)
                h_BTD = h_BTD.index_copy(0, at, h)
                if past is not None:
                    past.context = context
            else:
                parts = self._fitting([(b, rows[b]) for b in members], steps)
                if past is not None and len(parts) > 1:
                    raise UserError("rows that share a cache must be padded on the left")
                for part in parts:
                    h_BTD = self._thinking_rows(h_BTD, ids_BT, part, steps, past, prompts)
                for b in members:
                    unread_BT[
                        b, rows[b].text[self.method.parallel_answer - 1 :] if self.method.parallel_answer else []
                    ] = True
        return h_BTD

    def _fitting(self, rows: list[tuple[int, _Row]], steps: int) -> list[list[tuple[int, _Row]]]:
        """Rows in parts whose longest prompt and longest text fit into the positions together, as each row does."""
        longest = max(len(row.prompt) for _, row in rows) + max(len(row.text) for _, row in rows)
        if len(rows) == 1 or longest + self.method.reserved(steps) <= self.method.backbone.positions:
            return [rows]
        rows = sorted(rows, key=lambda each: len(each[1].prompt))
        half = len(rows) // 2
        return self._fitting(rows[:half], steps) + self._fitting(rows[half:], steps)

    def _rows(self, ids: list[list[int]], mask: list[list[bool]] | None) -> list[_Row]:
        """Where each row's prompt ends, how often it thinks, and where its text is."""
        latent, think = self.config.latent_id, self.config.think_id
        slots = self.method.trained_steps > 0  # the text then has a place of its own even when nothing is thought
        found = []
        for b, row in enumerate(ids):
            real = [c for c in range(len(row)) if mask is None or mask[b][c]]
            latents = [c for c in real if row[c] == latent] if latent is not None else []
            if latents:
                first, last = real.index(latents[0]), real.index(latents[-1])
                if last - first + 1 != len(latents) or first == 0:
                    raise UserError(f"row {b}: <latent> placeholders must follow a prompt, and each other")
                found.append(_Row(real[:first], latents, real[last + 1 :], len(latents)))
                continue
            ends = [i for i, c in enumerate(real) if row[c] == think] if slots and think is not None else []
            if ends:
                found.append(_Row(real[: ends[-1] + 1], [], real[ends[-1] + 1 :], 0))
            elif self.method.parallel_answer is not None:
                raise UserError("a model that loops along the depth reads nothing without <latent> placeholders")
            else:
                found.append(_Row(real, [], [], None))
        return found

    def _thinking_rows(self, h_BTD, ids_BT, rows: list[tuple[int, _Row]], steps: int, past, prompts: bool) -> Tensor:
        """Rows that think `steps` times: each distinct prompt once, then the texts in parallel."""
        device, backbone = ids_BT.device, self.method.backbone
        ids = ids_BT.tolist()
        asked: dict[tuple, int] = {}
        of = [asked.setdefault(tuple(ids[b][c] for c in row.prompt), len(asked)) for b, row in rows]
        longest = max(map(len, asked))
        left = torch.zeros(len(asked), longest, dtype=torch.long)
        seen = torch.zeros(len(asked), longest, dtype=torch.bool)
        for u, each in enumerate(asked):
            left[u, longest - len(each) :], seen[u, longest - len(each) :] = torch.tensor(each), True
        prompt = Prompt(left.to(device), None if bool(seen.all()) else seen.to(device))
        thought = self.method.think(prompt, Greedy(), steps=steps)
        place_b: list[int] = []
        place_c: list[int] = []
        values: list[Tensor] = []

        def put(which: list[tuple[int, int]], h_ND: Tensor) -> None:
            place_b.extend(b for b, _ in which)
            place_c.extend(c for _, c in which)
            values.append(h_ND)

        of_B = torch.tensor(of, device=device)
        if past is not None:
            past.used_B = thought.used_B[of_B]
        h_B, context = thought.h_UTD[of_B], thought.context
        put([(b, (row.latents or row.prompt)[-1]) for b, row in rows], h_B[:, 0])
        for i in range(1, min(steps, thought.states_UKD.shape[1])):
            put([(b, row.latents[i - 1]) for b, row in rows], thought.states_UKD[of_B, i])
        if prompts:
            h_UTD, _ = backbone.hidden(prompt.ids_BT, prompt.mask_BT)
            where = [
                (b, c, u, longest - len(row.prompt) + i)
                for (b, row), u in zip(rows, of)
                for i, c in enumerate(row.prompt if steps else row.prompt[:-1])
            ]
            if where:
                _, _, us, ts = zip(*where)
                put([(b, c) for b, c, _, _ in where], h_UTD[list(us), list(ts)])
        t = max(len(row.text) for _, row in rows)
        if self.method.parallel_answer is not None:
            for i in range(1, min(t + 1, h_B.shape[1])):
                there = [j for j, (_, row) in enumerate(rows) if len(row.text) >= i]
                put([(rows[j][0], rows[j][1].text[i - 1]) for j in there], h_B[there, i])
            if past is not None:
                past.ahead_BTD = h_B[:, t:]
        else:
            assert context is not None  # a text that is written token by token goes on from it
            if len(asked) < len(rows):
                context = context.rows(of_B)
            if t:
                text = torch.zeros(len(rows), t, dtype=torch.long)
                for j, (b, row) in enumerate(rows):
                    text[j, : len(row.text)] = torch.tensor([ids[b][c] for c in row.text])
                h_BtD, context = backbone.step(backbone.embed(text.to(device)), context)
                spots = [(j, i) for j, (_, row) in enumerate(rows) for i in range(len(row.text))]
                js, ts = zip(*spots)
                put([(rows[j][0], rows[j][1].text[i]) for j, i in spots], h_BtD[list(js), list(ts)])
            if past is not None:
                if any(len(row.text) != t for _, row in rows):
                    raise UserError("rows that share a cache must be padded on the left")
                past.context = context
        at = (torch.tensor(place_b, device=device), torch.tensor(place_c, device=device))
        return h_BTD.index_put(at, torch.cat(values).to(h_BTD.dtype))

    @torch.no_grad()
    def generate(
        self,
        inputs=None,
        generation_config=None,
        *,
        num_latents: int | None = None,
        num_recurrences: int | None = None,
        streamer=None,
        **kwargs,
    ):
        """Stock `generate` after thinking `num_latents` steps, or `num_recurrences` of a loop along the depth.

        A prompt that ends in placeholders thinks as often as they are. What comes back is the prompt and the text;
        placeholders that were appended are gone. With `return_dict_in_generate` it also says `latents_used`, the
        latent steps (or recurrences) of each row, fewer where a halt stopped them.
        """
        ids_BT = inputs if inputs is not None else kwargs.pop("input_ids", None)
        if ids_BT is None or ids_BT.dim() != 2 or ids_BT.shape[1] == 0:
            raise UserError("generate needs input_ids (B, T) with at least one token a row")
        mask_BT = kwargs.pop("attention_mask", None)
        if mask_BT is None:
            mask_BT = mask_of(ids_BT, self.config, ends=True).long()
        given = self._placeholders(ids_BT)
        if not bool(mask_BT[:, -1].all()):
            raise UserError("generate needs prompts padded on the left (tokenizer.padding_side = 'left')")
        last, steps = set(ids_BT[:, -1].tolist()), num_recurrences if num_latents is None else num_latents
        if len(last) > 1 and self.config.think_id in last:
            raise UserError("either all prompts of a batch end in <think>, or none")
        if given:
            if steps is not None:
                raise UserError("the prompts end in <latent> placeholders: num_latents must not be given")
            steps, added = given, []
        else:
            added = self.thinking(steps, last.pop())
            steps = added.count(self.config.latent_id)
        (b, t), n = ids_BT.shape, len(added)
        whole_BT = torch.cat([ids_BT, ids_BT.new_tensor(added).expand(b, n)], 1)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(b, n)], 1)
        kwargs = self._settings(kwargs, generation_config, t, n, steps)
        if streamer is not None:
            kwargs["streamer"] = Stripped(streamer, n)
        out = super().generate(whole_BT, generation_config, attention_mask=mask_BT, **kwargs)
        strip = lambda s: torch.cat([s[:, :t], s[:, t + n :]], 1)  # noqa: E731
        if isinstance(out, Tensor):
            return strip(out)
        out["sequences"] = strip(out["sequences"])
        held = kwargs.get(CACHE)
        if isinstance(held, LatentCache):
            used_B = out["sequences"].new_zeros(b) if held.used_B is None else held.used_B[:: len(held.used_B) // b]
            out["latents_used"] = used_B.repeat_interleave(len(out["sequences"]) // b)
        return out

    def _placeholders(self, ids_BT: Tensor) -> int:
        """How many <latent> each prompt ends in, after <think>. Raises UserError for others, and where they differ."""
        if self.config.latent_id is None:
            return 0
        held_BT = ids_BT == self.config.latent_id
        counts_B = held_BT.sum(1)
        k = int(counts_B[0])
        if not bool(counts_B.any()):
            return 0
        if bool((counts_B != k).any()):
            raise UserError("either all prompts of a batch end in as many <latent>, or none has any")
        t = ids_BT.shape[1]
        if not bool(held_BT[:, t - k :].all()) or k == t or bool((ids_BT[:, t - k - 1] != self.config.think_id).any()):
            raise UserError(
                "a prompt holds <latent> elsewhere than at its end, after <think>: say num_latents instead, and encode "
                "text that may hold the word with split_special_tokens=True"
            )
        return k

    def _settings(self, kwargs: dict, config, t: int, n: int, steps: int) -> dict:
        """Stock arguments for a prompt of t columns and n more that the caller does not see; kwargs before config."""

        def asked(name: str):
            return kwargs[name] if kwargs.get(name) is not None else getattr(config, name, None)

        for name in ("prefill_chunk_size", "guidance_scale", "prompt_lookup_num_tokens", "assistant_model"):
            if asked(name) is not None:
                raise UserError(f"{name} is not supported: a thought is read with its prompt, once")
        if asked("max_length") is not None and asked("max_new_tokens") is None:
            kwargs["max_new_tokens"] = asked("max_length") - t
        kwargs.pop("max_length", None)
        if asked("min_length"):
            kwargs["min_length"] = asked("min_length") + n
        if asked("use_cache") is not False and kwargs.get(CACHE) is None:
            kwargs[CACHE] = LatentCache()
        ends: list[StoppingCriteria] = [Seen(end, t, n) for end in kwargs.pop("stopping_criteria", None) or ()]
        method = self.method
        if self.longest is not None:
            ends.append(Length(t + n + self.longest))
        if method.parallel_answer is None:  # the last token is written and not read
            ends.append(Length(t + n + method.backbone.positions - (t + n - steps + method.reserved(steps)) + 1))
        if asked("stop_strings"):
            tokenizer = kwargs.get("tokenizer")
            if tokenizer is None:
                raise UserError("stop_strings needs the tokenizer: generate(..., stop_strings=..., tokenizer=...)")
            if type(tokenizer.backend_tokenizer.model).__name__ == "WordLevel":
                ends.append(Strings(asked("stop_strings"), kwargs.pop("tokenizer"), t + n))
                kwargs["stop_strings"] = None
        kwargs["stopping_criteria"] = StoppingCriteriaList(ends)
        return kwargs


if __name__ == "latent.hf":  # not where a checkpoint brought its own copy of this file
    AutoModelForCausalLM.register(LatentConfig, LatentForCausalLM, exist_ok=True)
