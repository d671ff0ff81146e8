"""Checkpoints in lm-eval: its Hugging Face model, with thoughts between a context and what follows it.

Every request with a context follows one rule. The context is read as in training, with the think token last; then come
the thoughts; then the text, which is written or scored. This holds for zero latents as well, because a model without
latents was trained after the same token. Requests without a context, and rolling log-likelihoods, have nothing to think
about and are read as they are.

A text is what the judge would read: as many tokens as the checkpoint's longest answer needs, up to its end token,
unless the request says otherwise. Defaults of our tasks (`task_defaults.py`) do not count as said.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections import defaultdict
from contextlib import contextmanager
from copy import copy
from hashlib import blake2b, file_digest
from pathlib import Path

import torch
from jinja2 import TemplateError
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from tqdm import tqdm

import latent  # noqa: F401  makes its checkpoints known to transformers
from eval import gen_kwargs
from eval.environments.base import iterate
from eval.lm_requests import Request, Written, latent_steps, requested
from kernels.errors import UserError, first_line, memory_for
from latent import hub
from latent.cli import hint
from latent.codec import Codec
from latent.files import is_ours
from latent.generate import Reasoner
from latent.hf import LatentForCausalLM

log = logging.getLogger(__name__)
LESS = "a smaller --batch_size needs less"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class LatentLM(HFLM):
    """`--model latent --model_args pretrained=RUN_OR_DIR_OR_NAME,num_latents=K`, and every argument of `--model hf`.

    `pretrained` may also be a `Reasoner`, or a `LatentForCausalLM` with its `tokenizer`. `num_latents` (or
    `num_recurrences`) defaults to what the checkpoint was trained with; `--gen_kwargs` override it for texts and for
    likelihoods. A plain causal LM opens too, with no latents. Raises UserError for a folder that is no checkpoint, a
    foreign tokenizer, and more latents than the positions hold.
    """

    def __init__(self, pretrained=None, num_latents: int | None = None, num_recurrences: int | None = None, **kwargs):
        steps = latent_steps(num_latents, num_recurrences)
        if pretrained is None:
            raise UserError("--model_args pretrained=RUN_OR_FOLDER_OR_NAME is needed")
        for name in kwargs.keys() - inspect.signature(HFLM.__init__).parameters.keys():
            if meant := hint(name, ("num_latents", "num_recurrences")):
                raise UserError(f"--model_args has no {name!r}{meant}")
        if (rows := str(kwargs.get("batch_size", 1))).lstrip("-").isdigit() and int(rows) < 1:
            raise UserError(f"batch_size must be at least 1, or auto, got {rows}")
        if not isinstance(longest := kwargs.get("max_length"), int | None):
            raise UserError(f"max_length must be a whole number, got {longest!r:.40}")
        if isinstance(pretrained, Reasoner):
            kwargs.setdefault("tokenizer", hub.ready_tokenizer(pretrained.codec))
            pretrained = hub.as_hf_model(pretrained)
        if isinstance(pretrained, str | Path):
            pretrained = str(pretrained)
            folder = Path(pretrained)
            if folder.is_dir() and not is_plain_model(folder):
                pretrained = str(hub.find_checkpoint(folder))
            elif not folder.is_dir() and (not HUB_NAME.fullmatch(pretrained) or is_among_runs(folder)):
                raise UserError(f"{pretrained} is neither a folder nor a name on the hub")
            kwargs = {"device": "cuda" if torch.cuda.is_available() else "cpu", **kwargs}
        no_effect = ("batch_size", "max_batch_size", "device", "tokenizer")  # on answers; the tokenizer is checked
        self.settings = {k: str(v) for k, v in sorted(kwargs.items()) if k not in no_effect}
        with hub.without_progress_bars(), LatentForCausalLM.without_warning():
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
        # A context is text, as for the judge: a control token that is spelt in it is letters. A chat template writes
        # control tokens of its own.
        self.tokenizer.split_special_tokens = not self.model.config.chat
        self.codec = Codec(self.tokenizer, self.model.config.fixed_answer)
        if isinstance(self.think_end_token, int):
            raise UserError("think_end_token must be text, not a token's number")
        if self.model.config.chat:
            log.warning("this checkpoint was trained on questions in a chat template: give --apply_chat_template")
        self._check_steps(self.num_latents)

    thinks, doing = False, "text"  # HFLM's constructor asks for max_length before the model is there

    def _check_steps(self, steps: int) -> None:
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
        """The latents of a request with settings `how`. Raises UserError for a number that the model cannot have."""
        steps = latent_steps(how.get("num_latents"), how.get("num_recurrences"))
        if self.thinks:
            self._check_steps(self.num_latents if steps is None else steps)
        elif steps:
            raise UserError(f"this is a plain causal LM: num_latents must be 0, got {steps}")
        return self.num_latents if steps is None else steps

    def _positions(self, steps: int) -> int:
        """Positions that the thoughts leave for context and text."""
        return self.model.method.backbone.positions - self.model.method.reserved(steps)

    @property
    def max_length(self) -> int:
        """Tokens of context and text together: the positions that the thoughts leave."""
        if not self.thinks or self._max_length:
            return super().max_length
        if self.doing == "rolling":
            return self.model.method.backbone.positions
        if self.doing == "likelihood":  # lm-eval counts the placeholders as tokens, though they take no positions
            return self._positions(self.num_latents) + self.num_latents
        return self._positions(self.num_latents)  # the think token takes one more, the last token written takes none

    @contextmanager
    def _during(self, doing: str, steps: int):
        opened_with, self.doing, self.num_latents = self.num_latents, doing, steps
        try:
            with memory_for("reading likelihoods", LESS):
                yield
        finally:
            self.doing, self.num_latents = "text", opened_with

    def loglikelihood(self, requests, disable_tqdm: bool = False):
        """As for any model, after the number of thoughts that `--gen_kwargs` ask for."""
        with self._during("likelihood", self._steps_of(gen_kwargs.steps_of_likelihoods())):
            return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
        gen_kwargs.steps_of_likelihoods()  # raises for a setting that no task takes
        with self._during("rolling", self.num_latents):
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def apply_chat_template(self, chat_history, *args, **kwargs) -> str:
        """As for any model. Control tokens that are spelt in the turns are marked: `_read` reads them as letters.

        Raises UserError for a chat that the template refuses.
        """
        if self.thinks:
            chat_history = [turn | {"content": self.codec.marked(turn["content"])} for turn in chat_history]
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError("--apply_chat_template: this checkpoint's tokenizer has no chat template")
        try:
            return super().apply_chat_template(chat_history, *args, **kwargs)
        except TemplateError as e:  # what a template says of a chat that it has no place for
            raise UserError(f"--apply_chat_template: {first_line(e)} (--num_fewshot, --system_instruction)") from None

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of the context with its think token and placeholders, and of the continuation, each encoded by itself."""
        if not self.thinks:
            return super()._encode_pair(context, continuation)
        context_ids, continuation_ids = self._read(context), list(self.codec.step(continuation))
        longest = self.model.method.parallel_answer
        if longest is not None and len(continuation_ids) > longest:
            raise UserError(f"this model reads off {longest} tokens, {continuation!r:.40} has {len(continuation_ids)}")
        return context_ids + self.model.thinking_ids(self.num_latents, context_ids[-1]), continuation_ids

    def _read(self, context: str) -> list[int]:
        """A context's ids, as the judge reads a question; a chat comes with the template that lm-eval has applied."""
        if not self.model.config.chat:
            return list(self.codec.question(context)[:-1])
        ids = self.codec.rendered(context)
        begun = ids[: len(self.codec.begin)] == self.codec.begin
        return [*(() if begun else self.codec.begin), *ids]

    def _model_call(self, inps, attn_mask=None, labels=None):
        if not self.thinks:
            return super()._model_call(inps, attn_mask, labels)
        with torch.no_grad(), self._autocast():
            # lm-eval pads on the right, where nothing reads it. The mask is not inferred: text may hold an end token.
            mask = None if self.model.config.eos_token_id is None else torch.ones_like(inps)
            return self.model(inps, attention_mask=mask, prompt_logits=False).logits

    def _autocast(self):
        mixed = self.mixed_precision_dtype
        return torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None)

    @memory_for("writing texts", LESS)
    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """The text after each context, as a `Written` where the model thinks."""
        if not self.thinks:
            return super().generate_until([self._without_latents(r) for r in requests], disable_tqdm)
        planned = [self._requested(*r.args) for r in requests]
        alike = defaultdict(list)  # requests that one call of `generate` can answer
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
                    self._add_cost(requests[i].task_name, text)
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                bar.update(len(part))
        bar.close()
        return [texts[i] for i in range(len(requests))]

    def _without_latents(self, request):
        """A request to a plain causal LM, without the settings that only a thinking model has."""
        context, how = request.args
        self._steps_of(how)  # raises where it asks for latents
        request = copy(request)
        request.arguments = (context, {k: v for k, v in how.items() if k not in gen_kwargs.STEPS})
        return request

    def _requested(self, context: str, how: dict) -> Request:
        steps = self._steps_of(how)
        return requested(self.model, self._read(context), steps, self._max_length or self._positions(steps), how)

    def _written(self, batch: list[Request]) -> list[Written]:
        """The texts that answer requests of equal settings."""
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

    def _add_cost(self, task: str | None, text: Written) -> None:
        spent = self.spent[task or "all"]
        spent[:] = [a + b for a, b in zip(spent, (1, text.used, text.tokens, text.flops))]

    def get_model_info(self) -> dict:
        """What lm-eval writes into its results, with the method, its latents, and the mean cost of a text by task."""
        method = self.model.method.title if self.thinks else "none"
        cost = {
            task: {"texts": int(n), "latents": used / n, "tokens": tokens / n, "mflop": flops / n / 1e6}
            for task, (n, used, tokens, flops) in self.spent.items()
        }
        return super().get_model_info() | {"method": method, "num_latents": self.num_latents, "cost": cost}

    def set_cache_hook(self, cache_hook) -> None:
        """Raise UserError for a cache of another checkpoint or other settings: lm-eval's keys hold only requests."""
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
        """Hash of the checkpoint (its files, or its weights in memory) and of all settings that change answers."""
        on_disk = isinstance(self.pretrained, str)
        name = self.pretrained if on_disk else self.model.config.to_json_string()
        # requests for likelihoods do not hold these
        steps = {k: v for k, v in gen_kwargs.gen_kwargs().items() if k in gen_kwargs.STEPS}
        digest = blake2b(repr((self._steps_of(steps), name, self.settings)).encode(), digest_size=16)
        if on_disk and Path(self.pretrained).is_dir():
            for path in sorted(p for p in Path(self.pretrained).iterdir() if p.is_file() and p.suffix != ".md"):
                with path.open("rb") as f:
                    digest.update(file_digest(f, "blake2b").digest())
        elif not on_disk:
            for tensor in self.model.state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def is_among_runs(place: Path) -> bool:
    """Whether a place that does not exist is named within a folder of runs, as runs/ID with a slip in it."""
    return len(place.parts) > 1 and any(place.parent.glob("*/metrics.jsonl"))


def is_plain_model(folder: Path) -> bool:
    """Whether a folder holds a checkpoint that is not ours, to open as lm-eval opens any."""
    return (folder / "config.json").exists() and not is_ours(folder)
