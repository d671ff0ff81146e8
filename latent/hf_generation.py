"""Stock `generate` after thinking: placeholders are appended to the prompt, and taken out of what comes back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from kernels.errors import UserError
from latent.generate import longest_text, whole
from latent.hf_cache import CACHE, LatentCache
from latent.hf_callers import (
    AtColumn,
    LogitsOfCallersIds,
    OnCallersIds,
    StopStringsOfWords,
    WithoutAppended,
    callers_ids,
)
from latent.hf_padding import check_mask, inferred_mask
from latent.methods.base import Method

REFUSED = (
    "prefill_chunk_size",
    "guidance_scale",
    "prompt_lookup_num_tokens",
    "assistant_model",
    "past_key_values",
    "cache",
    "cache_implementation",
)
"""Arguments of stock `generate` that read a prompt in parts, again, or into a cache of another kind."""


class LatentGenerationMixin(GenerationMixin):
    """`generate` of a model that thinks first."""

    config: Any  # a LatentConfig; transformers declares its own base class
    method: Method
    forward: Callable[..., Any]

    @property
    def num_latents(self) -> int:
        """Latent steps, or recurrences, of a call that does not say how many."""
        return self.method.trained_steps if self.config.num_latents is None else self.config.num_latents

    @property
    def text_limit(self) -> int | None:
        """Tokens after which a text ends by itself; None where an end token ends it."""
        c = self.config
        if self.method.parallel_answer is not None:
            return self.method.parallel_answer
        if c.fixed_answer is None:
            return None
        return longest_text(self.method, c.answer_tokens, c.chain_tokens, c.chain_steps)

    def thinking_ids(self, steps: int | None, last_id: int | None = None) -> list[int]:
        """The ids to append to a prompt so that it thinks: the think token, unless it is `last_id`, and placeholders.

        `steps`: how many placeholders, None = as trained. Raises UserError for what is no such number.
        """
        k = self.num_latents if steps is None else steps
        k = whole(k, "num_latents", 0)
        c = self.config
        if k and c.latent_id is None:
            raise UserError("this model has no <latent> token: num_latents must be 0")
        has_think = c.think_id is None or last_id == c.think_id
        return ([] if has_think else [c.think_id]) + [c.latent_id] * k

    thinking = thinking_ids  # its first name

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

        A prompt that ends in placeholders thinks as many steps as it has. The result holds the prompt and the text, but
        no placeholder that was appended here. With `return_dict_in_generate` it also has `latents_used`, the latent
        steps (or recurrences) of each row: fewer than asked for where a halting rule stopped them.
        """
        ids_BT = inputs if inputs is not None else kwargs.pop("input_ids", None)
        if not isinstance(ids_BT, Tensor) or ids_BT.dim() != 2 or 0 in ids_BT.shape:
            raise UserError("generate needs input_ids, a tensor (B, T) with at least one token a row")
        mask_BT = kwargs.pop("attention_mask", None)
        if mask_BT is None:
            mask_BT = inferred_mask(ids_BT, self.config, both_sides=True).long()
        check_mask(ids_BT, mask_BT)
        given = self._placeholders(ids_BT)
        if not bool(mask_BT[:, -1].all()):
            raise UserError("generate needs prompts padded on the left (tokenizer.padding_side = 'left')")
        if num_latents is not None and num_recurrences is not None:
            raise UserError("num_latents and num_recurrences are one setting: give one of them")
        last, steps = set(ids_BT[:, -1].tolist()), num_recurrences if num_latents is None else num_latents
        if len(last) > 1 and self.config.think_id in last:
            raise UserError("either all prompts of a batch end in <think>, or none")
        if given:
            if steps is not None:
                raise UserError("the prompts end in <latent> placeholders: num_latents must not be given")
            steps, appended = given, []
        else:
            appended = self.thinking_ids(steps, last.pop())
            steps = appended.count(self.config.latent_id)
        (b, t), n = ids_BT.shape, len(appended)
        whole_BT = torch.cat([ids_BT, ids_BT.new_tensor(appended).expand(b, n)], 1)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(b, n)], 1)
        kwargs = self._stock_arguments(kwargs, generation_config, t, n, steps)
        if streamer is not None:
            kwargs["streamer"] = WithoutAppended(streamer, n)
        out = super().generate(whole_BT, generation_config, attention_mask=mask_BT, **kwargs)
        ids = out if isinstance(out, Tensor) else out["sequences"]
        ids = torch.cat([ids[:, :t], ids[:, t + n :]], 1)
        if isinstance(out, Tensor):
            return ids
        out["sequences"] = ids
        cache = kwargs.get(CACHE)
        if not isinstance(cache, LatentCache):  # told to keep none: thought once more, to see
            cache = LatentCache()
            self.forward(whole_BT, attention_mask=mask_BT, cache=cache, logits_to_keep=1)
        # beams and returned sequences repeat each prompt: every repetition of a prompt thought alike
        used_B = ids.new_zeros(b) if cache.used_B is None else cache.used_B[:: len(cache.used_B) // b]
        out["latents_used"] = used_B.repeat_interleave(len(ids) // b)
        return out

    def _placeholders(self, ids_BT: Tensor) -> int:
        """How many <latent> each prompt ends in. Raises UserError where they differ, or do not follow <think>."""
        if self.config.latent_id is None:
            return 0
        is_latent_BT = ids_BT == self.config.latent_id
        counts_B = is_latent_BT.sum(1)
        k = int(counts_B[0])
        if not bool(counts_B.any()):
            return 0
        if bool((counts_B != k).any()):
            raise UserError("either all prompts of a batch end in as many <latent>, or none has any")
        t = ids_BT.shape[1]
        at_the_end = bool(is_latent_BT[:, t - k :].all())
        if not at_the_end or k == t or bool((ids_BT[:, t - k - 1] != self.config.think_id).any()):
            raise UserError(
                "a prompt holds <latent> elsewhere than at its end, after <think>: say num_latents instead, and encode "
                "text that may hold the word with split_special_tokens=True"
            )
        return k

    def _stock_arguments(self, kwargs: dict, config, t: int, n: int, steps: int) -> dict:
        """The arguments of stock `generate`, whose prompt has n columns more than the t that the caller gave.

        An argument in `kwargs` comes before the one in `config`, as in transformers, and what is neither's is the
        model's own, but for lengths: those are of the texts that it was trained to write.
        """
        lengths = ("max_length", "max_new_tokens")

        def asked(name: str):
            places = (config, *(() if config is not None or name in lengths else (self.generation_config,)))
            given = (kwargs.get(name), *(getattr(place, name, None) for place in places))
            return next((value for value in given if value is not None), None)

        for name in ("num_latents", "num_recurrences"):
            if getattr(config, name, None) is not None:
                raise UserError(f"{name} is an argument of generate, and no setting of a GenerationConfig")
        for name in REFUSED:
            if asked(name) is not None:
                raise UserError(f"{name} is not supported: a thought is read with its prompt, once")
        # lengths that the caller counts with the prompt count without the appended columns
        if asked("max_length") is not None and asked("max_new_tokens") is None:
            if asked("max_length") <= t:
                raise UserError(f"max_length {asked('max_length')} counts the prompt, which has {t} tokens")
            kwargs["max_new_tokens"] = asked("max_length") - t
        kwargs.pop("max_length", None)
        if asked("min_length"):
            kwargs["min_length"] = asked("min_length") + n
        if asked("use_cache") is not False:
            kwargs[CACHE] = LatentCache()
        # what the caller gave is called with the ids that the caller knows of
        criteria: list[StoppingCriteria] = [
            OnCallersIds(each, t, n) for each in kwargs.pop("stopping_criteria", None) or ()
        ]
        if kwargs.get("logits_processor"):
            kwargs["logits_processor"] = LogitsProcessorList(
                [LogitsOfCallersIds(each, t, n) for each in kwargs["logits_processor"]]
            )
        if (allowed := kwargs.get("prefix_allowed_tokens_fn")) is not None:
            kwargs["prefix_allowed_tokens_fn"] = lambda row, ids_T: allowed(row, callers_ids(ids_T, t, n))
        method = self.method
        if self.text_limit is not None:
            criteria.append(AtColumn(t + n + self.text_limit))
        if method.parallel_answer is None:
            left = method.backbone.positions - (t + n - steps + method.reserved(steps))
            criteria.append(AtColumn(t + n + left + 1))  # the last token is written, and takes no position
        if asked("stop_strings"):
            tokenizer = kwargs.get("tokenizer")
            if tokenizer is None:
                raise UserError("stop_strings needs the tokenizer: generate(..., stop_strings=..., tokenizer=...)")
            if type(tokenizer.backend_tokenizer.model).__name__ == "WordLevel":
                criteria.append(StopStringsOfWords(asked("stop_strings"), kwargs.pop("tokenizer"), t + n))
                kwargs["stop_strings"] = None
        kwargs["stopping_criteria"] = StoppingCriteriaList(criteria)
        return kwargs
