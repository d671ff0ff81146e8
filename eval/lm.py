"""Checkpoints in lm-eval: its Hugging Face model with thoughts between context and what follows.

One rule for every request with a context: it is read as in training, the think token last, then come the thoughts, then
the text, which is written or scored. That holds for no latents too, as a model without them was trained after the same
token. A request without context, and rolling log-likelihoods, have nothing to think about: they are read as they are.

A text is the judge's: as many tokens as the checkpoint needs for its longest answer, up to its end token, unless the
request says otherwise. What tasks of ours say for models of other makes is `Usual`, and does not count as said.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from tqdm import tqdm

import latent  # noqa: F401  its checkpoints are known to transformers from here on
from eval import asked
from eval.environments.base import iterate
from eval.usual import Usual
from kernels.errors import UserError
from latent import hub
from latent.generate import Reasoner
from latent.hf import LatentForCausalLM
from latent.text import Codec

log = logging.getLogger(__name__)
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # of a model on the hub
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval's order


class Written(str):
    """A text, and what it cost: latent steps used, tokens written, the end token included, and forward FLOPs."""

    used: int
    tokens: int
    flops: float


@dataclass
class _Request:
    """A context as ids, at most `limit` tokens to write after `steps` thoughts, and how."""

    ids: list[int]
    steps: int
    limit: int
    until: list[str]
    how: dict


class LatentLM(HFLM):
    """`--model latent --model_args pretrained=RUN_OR_DIR_OR_NAME,num_latents=K`, and every argument of `--model hf`.

    `pretrained` may also be a `Reasoner`, or a `LatentForCausalLM` with its `tokenizer`. `num_latents` (or
    `num_recurrences`) defaults to what the checkpoint was trained with, and is a request's own where `--gen_kwargs` say
    so, for a text or for the likelihood of one. A plain causal LM opens too, with none. Raises UserError for a folder
    that is no checkpoint, a foreign tokenizer, and more latents than the positions hold.
    """

    def __init__(self, pretrained, num_latents: int | None = None, num_recurrences: int | None = None, **kwargs):
        steps = _steps(num_latents, num_recurrences)
        if isinstance(pretrained, Reasoner):
            kwargs.setdefault("tokenizer", hub.ready_tokenizer(pretrained.codec))
            pretrained = hub.face(pretrained)
        if isinstance(pretrained, str | Path):
            pretrained = str(pretrained)
            folder = Path(pretrained)
            if folder.is_dir() and not plain(folder):
                pretrained = str(hub.find(folder))
            elif not folder.is_dir() and not NAME.fullmatch(pretrained):
                raise UserError(f"{pretrained} is neither a folder nor a name on the hub")
            kwargs = {"device": "cuda" if torch.cuda.is_available() else "cpu", **kwargs}
        same = ("batch_size", "max_batch_size", "device", "tokenizer")  # what changes no answer, or is checked
        self.settings = {k: str(v) for k, v in sorted(kwargs.items()) if k not in same}
        with hub.quiet(), LatentForCausalLM.without_warning():
            super().__init__(pretrained=pretrained, **{"backend": "causal", **kwargs})
        self.thinks = isinstance(self.model, LatentForCausalLM)
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)  # by task: texts, latents, tokens, FLOPs
        if self.thinks:
            hub.check_tokenizer(pretrained, self.tokenizer, self.model.config)
        elif steps:
            raise UserError(f"{pretrained} is a plain causal LM: num_latents must be 0, got {steps}")
        self.num_latents: int = (self.model.num_latents if steps is None else steps) if self.thinks else 0
        if not self.thinks:
            return
        # a context is text, as for the judge, and nothing spelt in it a control token; a chat template has its own
        self.tokenizer.split_special_tokens = not self.model.config.chat
        self.codec = Codec(self.tokenizer, self.model.config.fixed_answer)
        if isinstance(self.think_end_token, int):
            raise UserError("think_end_token must be text, not a token's number")
        if self.model.config.chat:
            log.warning("this checkpoint was trained on questions in a chat template: give --apply_chat_template")
        self._check(self.num_latents)

    thinks, doing = False, "text"  # until the model is there: HFLM's constructor asks for max_length

    def _check(self, steps: int) -> None:
        """Raise UserError for a number of latents that the model does not have, or has no room for."""
        self.model.thinking_ids(steps)
        if self.model.method.parallel_answer is not None and steps == 0:
            raise UserError("a loop along the depth needs at least one recurrence, got 0")
        if self._positions(steps) < 2:
            raise UserError(
                f"num_latents={steps} leaves no room for text: the model has "
                f"{self.model.method.backbone.positions} positions"
            )

    def _steps_of(self, how: dict) -> int:
        """The number of latents of a request that says `how`. Raises UserError for one that the model cannot have."""
        steps = _steps(how.get("num_latents"), how.get("num_recurrences"))
        if self.thinks:
            self._check(self.num_latents if steps is None else steps)
        elif steps:
            raise UserError(f"this is a plain causal LM: num_latents must be 0, got {steps}")
        return self.num_latents if steps is None else steps

    def _positions(self, steps: int) -> int:
        """Positions that are left beside the thoughts."""
        return self.model.method.backbone.positions - self.model.method.reserved(steps)

    @property
    def max_length(self) -> int:
        """Tokens of context and text together. Thoughts take their positions first, where there are any."""
        if not self.thinks or self._max_length:
            return super().max_length
        if self.doing == "rolling":
            return self.model.method.backbone.positions
        if self.doing == "likelihood":  # the placeholders are counted as tokens, and take no positions
            return self._positions(self.num_latents) + self.num_latents
        return self._positions(self.num_latents)  # the think token takes one, the last token written none

    @contextmanager
    def _for(self, doing: str, steps: int):
        opened_with, self.doing, self.num_latents = self.num_latents, doing, steps
        try:
            yield
        finally:
            self.doing, self.num_latents = "text", opened_with

    def loglikelihood(self, requests, disable_tqdm: bool = False):
        """As of any model, after as many thoughts as `--gen_kwargs` say where they do."""
        with self._for("likelihood", self._steps_of(asked.steps_of_likelihoods())):
            return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
        asked.steps_of_likelihoods()  # refuses what no task takes
        with self._for("rolling", self.num_latents):
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def apply_chat_template(self, chat_history, *args, **kwargs) -> str:
        """As of any model; control tokens that are spelt in the turns are marked, and read as letters by `_read`."""
        if self.thinks:
            chat_history = [turn | {"content": self.codec.marked(turn["content"])} for turn in chat_history]
        return super().apply_chat_template(chat_history, *args, **kwargs)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The context as generation reads it, its thoughts, and the continuation by itself, as training reads it."""
        if not self.thinks:
            return super()._encode_pair(context, continuation)
        context_ids, continuation_ids = self._read(context), list(self.codec.step(continuation))
        longest = self.model.method.parallel_answer
        if longest is not None and len(continuation_ids) > longest:
            raise UserError(f"this model reads off {longest} tokens, {continuation!r:.40} has {len(continuation_ids)}")
        return context_ids + self.model.thinking_ids(self.num_latents, context_ids[-1]), continuation_ids

    def _read(self, context: str) -> list[int]:
        """A context's ids, as the judge reads a question; of a chat, whose template lm-eval puts in, what it gave."""
        if not self.model.config.chat:
            return list(self.codec.question(context)[:-1])
        ids = self.codec.rendered(context)
        begun = ids[: len(self.codec.begin)] == self.codec.begin
        return [*(() if begun else self.codec.begin), *ids]

    def _model_call(self, inps, attn_mask=None, labels=None):
        if not self.thinks:
            return super()._model_call(inps, attn_mask, labels)
        with torch.no_grad(), self._autocast():
            # what lm-eval pads with, on the right, is read by nothing; an end token may stand before a text
            mask = None if self.model.config.eos_token_id is None else torch.ones_like(inps)
            return self.model(inps, attention_mask=mask, prompt_logits=False).logits

    def _autocast(self):
        mixed = self.mixed_precision_dtype
        return torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None)

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """The text after each context, a `Written` each where the model thinks."""
        if not self.thinks:
            return super().generate_until([self._without_latents(r) for r in requests], disable_tqdm)
        planned = [self._planned(*r.args) for r in requests]
        alike = defaultdict(list)
        for i, p in enumerate(planned):
            alike[repr((p.steps, p.limit, p.until, sorted(p.how.items())))].append(i)
        batch = self._detect_batch_size() if self.batch_size == "auto" else int(self.batch_size)
        texts: dict[int, Written] = {}
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running generate_until requests")
        for members in alike.values():
            members.sort(key=lambda i: -len(planned[i].ids))
            for part in iterate(members, batch):
                for i, text in zip(part, self._written([planned[i] for i in part])):
                    texts[i] = text
                    self._spend(requests[i].task_name, text)
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                bar.update(len(part))
        bar.close()
        return [texts[i] for i in range(len(requests))]

    def _without_latents(self, request):
        """A request to a model of another make, to which latents mean nothing."""
        context, how = request.args
        self._steps_of(how)  # raises where there are to be some
        request = copy(request)
        request.arguments = (context, {k: v for k, v in how.items() if k not in asked.STEPS})
        return request

    def _planned(self, context: str, how: dict) -> _Request:
        """A request as this model takes it.

        A limit that it names is kept, and the context cut from the left where both do not fit, as lm-eval does; one
        that no text could reach in these positions counts as none. Without one it is what the checkpoint needs, as
        far as there is room, and a context that leaves none is a ValueError.
        """
        if "max_length" in how:
            raise UserError("max_length is not taken, as thoughts are not counted: give max_gen_toks")
        rest = {k: v for k, v in how.items() if k not in (*asked.STEPS, "until", *LIMITS)}
        steps = self._steps_of(how)
        until = how.get("until") or []
        until = [] if isinstance(until, Usual) else [until] if isinstance(until, str) else list(until)
        said = next((how[name] for name in LIMITS if how.get(name) is not None), None)
        ids = self._read(context)
        if not ids:
            raise UserError("a context of no tokens cannot be gone on with")
        think = self.model.thinking_ids(0, ids[-1])
        room = (self._max_length or self._positions(steps)) + 1 - len(ids) - len(think)
        needs = self.model.generation_config.max_new_tokens
        if said is None or isinstance(said, Usual) or int(said) >= room + len(ids):
            if room < 1:
                raise UserError(f"a context of {len(ids)} tokens and {steps} thoughts leave no room for text")
            limit = min(needs, room)
        else:
            limit = int(said) if self.model.text_limit is None else min(int(said), self.model.text_limit)
            if limit < 1:
                raise UserError(f"max_gen_toks must be at least 1, got {said}")
            if limit > room:
                log.warning("a context of %d tokens is cut from the left to %d", len(ids), len(ids) + room - limit)
                ids = ids[limit - room :]
        how = {k: v for k, v in normalize_gen_kwargs(rest).items() if k not in ("until", "max_gen_toks")}
        if not how.get("do_sample"):
            how.pop("temperature", None)
        return _Request(ids, steps, limit, [s for s in until if s], how)

    def _written(self, batch: list[_Request]) -> list[Written]:
        """The texts of requests that are to be answered alike."""
        first, model, pad = batch[0], self.model, self.tokenizer.pad_token_id
        longest = max(len(r.ids) for r in batch)
        ids_BT = torch.tensor([[pad] * (longest - len(r.ids)) + r.ids for r in batch], device=self.device)
        mask_BT = torch.tensor([[0] * (longest - len(r.ids)) + [1] * len(r.ids) for r in batch], device=self.device)
        stop = {}
        if first.until:
            stop["stopping_criteria"] = stop_sequences_criteria(self.tokenizer, first.until, longest, len(batch))
        with self._autocast():
            out = model.generate(
                ids_BT,
                attention_mask=mask_BT,
                num_latents=first.steps,
                max_new_tokens=first.limit,
                pad_token_id=pad,
                return_dict_in_generate=True,
                **stop,
                **first.how,
            )
        texts = []
        for r, row, used in zip(batch, out.sequences[:, longest:].tolist(), out.latents_used.tolist()):
            end = model.config.eos_token_id
            done = end in row
            row = row[: row.index(end)] if done else row
            text = self.codec.text(row)
            texts.append(made := Written(postprocess_generated_text(text, first.until, self.think_end_token)))
            made.used, made.tokens = used, len(row) + done
            prompt = len(r.ids) + len(model.thinking_ids(0, r.ids[-1]))
            made.flops = model.method.flops(prompt, used, made.tokens)
        return texts

    def _spend(self, task: str | None, text: Written) -> None:
        spent = self.spent[task or "all"]
        spent[:] = [a + b for a, b in zip(spent, (1, text.used, text.tokens, text.flops))]

    def get_model_info(self) -> dict:
        """For the results file: also the method, the latents it was given, and the mean cost of a text by task."""
        method = self.model.method.title if self.thinks else "none"
        cost = {
            task: {"texts": int(n), "latents": used / n, "tokens": tokens / n, "mflop": flops / n / 1e6}
            for task, (n, used, tokens, flops) in self.spent.items()
        }
        return super().get_model_info() | {"method": method, "num_latents": self.num_latents, "cost": cost}

    def set_cache_hook(self, cache_hook) -> None:
        """Refuse a cache of answers that were given under other settings: lm-eval's keys hold the request alone."""
        db = getattr(cache_hook, "dbdict", None)
        if db is not None:
            mine, key = self.fingerprint(), "fingerprint of the model"
            theirs = db.get(key)
            if theirs != mine and (theirs is not None or len(db) > 0):
                raise UserError(
                    f"--use_cache {db.filename} holds answers of another checkpoint or of other settings: "
                    "give another path"
                )
            db[key] = mine
        super().set_cache_hook(cache_hook)

    def fingerprint(self) -> str:
        """Hash of the checkpoint and of all settings that change answers: of its files, or of weights in memory."""
        known = isinstance(self.pretrained, str)
        name = self.pretrained if known else self.model.config.to_json_string()
        said = {k: v for k, v in asked.gen_kwargs().items() if k in asked.STEPS}  # stands in no likelihood's request
        digest = blake2b(repr((self._steps_of(said), name, self.settings)).encode(), digest_size=16)
        if known and Path(self.pretrained).is_dir():
            for path in sorted(p for p in Path(self.pretrained).iterdir() if p.is_file() and p.suffix != ".md"):
                with path.open("rb") as f:
                    digest.update(file_digest(f, "blake2b").digest())
        elif not known:
            for tensor in self.model.state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def _steps(num_latents, num_recurrences) -> int | None:
    """The number of latent steps that is asked for, None where nothing is. Raises UserError for what is no number."""
    if num_latents is not None and num_recurrences is not None:
        raise UserError("num_latents and num_recurrences are one setting: give one of them")
    steps = num_recurrences if num_latents is None else num_latents
    if steps is None:
        return None
    try:
        whole = int(steps)  # lm-eval reads -3 as a float
        if whole != float(steps) or whole < 0:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"num_latents must be a whole number, at least 0, got {_said(steps)}") from None
    return whole


def _said(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def plain(folder: Path) -> bool:
    """Whether a folder holds a causal LM of another make."""
    if not (folder / "config.json").exists():
        return False
    about = hub.read_json(folder / "config.json")
    return about.get("class") != "Run" and about.get("model_type") != "latent"
