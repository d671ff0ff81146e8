"""Checkpoints in lm-eval: its Hugging Face model with thoughts between context and continuation.

Generation thinks after the context, as `model.generate` does. Log-likelihoods are of the continuation after the
thoughts about the context; with no latents nothing is put between, so they are those of `--model hf`. A request without
context, and rolling log-likelihoods, have nothing to think about and get no thoughts.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from copy import copy
from hashlib import blake2b, file_digest
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

import latent  # noqa: F401  its checkpoints are known to transformers from here on
from latent import hub
from latent.hf import LatentForCausalLM

log = logging.getLogger(__name__)
OURS = {path.stem for path in (Path(__file__).parent / "tasks").glob("*.yaml")}
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # of a model on the hub


class LatentLM(HFLM):
    """`--model latent --model_args pretrained=RUN_OR_DIR_OR_NAME,num_latents=K`, and every argument of `--model hf`.

    `num_latents` (or `num_recurrences`) defaults to what the checkpoint was trained with. A plain causal LM opens too,
    with none. Raises ValueError for a folder that is no checkpoint, a foreign tokenizer, and more latents than the
    positions hold.
    """

    def __init__(self, pretrained: str, num_latents: int | None = None, num_recurrences: int | None = None, **kwargs):
        if num_latents is not None and num_recurrences is not None:
            raise ValueError("num_latents and num_recurrences are one setting: give one of them")
        steps = num_recurrences if num_latents is None else num_latents
        if steps is not None and (steps != int(steps) or steps < 0):
            raise ValueError(f"num_latents must be a whole number, at least 0, got {steps:g}")
        steps = None if steps is None else int(steps)  # lm-eval reads -3 as a float
        folder = Path(pretrained)
        if folder.is_dir() and not plain(folder):
            pretrained = str(hub.find(folder))
        elif not folder.is_dir() and not NAME.fullmatch(pretrained):
            raise ValueError(f"{pretrained} is neither a folder nor a name on the hub")
        same = ("batch_size", "max_batch_size", "device")  # what changes no answer
        self.settings = {k: str(v) for k, v in sorted(kwargs.items()) if k not in same}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        kwargs = {"backend": "causal", "device": device, **kwargs}
        with hub.quiet():
            super().__init__(pretrained=pretrained, **kwargs)
        self.thinks = isinstance(self.model, LatentForCausalLM)
        if self.thinks:
            hub.check_tokenizer(pretrained, self.tokenizer, self.model.config)
        elif steps:
            raise ValueError(f"{pretrained} is a plain causal LM: num_latents must be 0, got {steps}")
        self.num_latents: int = (self.model.num_latents if steps is None else steps) if self.thinks else 0
        if self.thinks:
            # a context is text, as for the judge, and nothing spelt in it a control token; a chat template has its own
            self.tokenizer.split_special_tokens = not self.model.config.chat
            if self.model.config.chat:
                log.warning("this checkpoint was trained on questions in a chat template: give --apply_chat_template")
            self.model.thinking(self.num_latents)
            if self.model.method.parallel_answer is not None and self.num_latents == 0:
                raise ValueError("a loop along the depth needs at least one recurrence, got 0")
            if self.max_length < 1:
                raise ValueError(
                    f"num_latents={self.num_latents} leaves no room for text: the model has "
                    f"{self.model.method.backbone.positions} positions"
                )

    thinks, doing = False, "text"  # until the model is there: HFLM's constructor asks for max_length

    @property
    def max_length(self) -> int:
        """Tokens of context and text together. Thoughts take their positions first, where there are any."""
        if not self.thinks or self._max_length:
            return super().max_length
        method, k = self.model.method, self.num_latents
        positions = method.backbone.positions
        if self.doing == "text":
            return positions - method.reserved(k) - 1  # 1: the think token
        if self.doing == "rolling" or k == 0:
            return positions
        return positions - method.reserved(k) + k  # the placeholders are counted as tokens, and take no positions

    @contextmanager
    def _for(self, doing: str):
        self.doing = doing
        try:
            yield
        finally:
            self.doing = "text"

    def loglikelihood(self, requests, disable_tqdm: bool = False):
        with self._for("likelihood"):
            return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
        with self._for("rolling"):
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def apply_chat_template(self, *args, **kwargs) -> str:
        """As of any model; the template's control tokens are then read as such."""
        self.tokenizer.split_special_tokens = False
        return super().apply_chat_template(*args, **kwargs)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        longest = self.model.method.parallel_answer if self.thinks else None
        if longest is not None and len(continuation_ids) > longest:
            raise ValueError(f"this model reads off {longest} tokens, {continuation!r:.40} has {len(continuation_ids)}")
        if self.num_latents and context_ids:
            context_ids = context_ids + self.model.thinking(self.num_latents, context_ids[-1])
        return context_ids, continuation_ids

    def _model_call(self, inps, attn_mask=None, labels=None):
        if not self.thinks:
            return super()._model_call(inps, attn_mask, labels)
        mixed = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
            # what lm-eval pads with, on the right, is read by nothing; an end token may stand before a text
            mask = None if self.model.config.eos_token_id is None else torch.ones_like(inps)
            return self.model(inps, attention_mask=mask, prompt_logits=False).logits

    def _model_generate(self, context, max_length, stop, **generation_kwargs):
        if self.thinks:
            generation_kwargs["num_latents"] = self.num_latents
        return super()._model_generate(context, max_length, stop, **generation_kwargs)

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """As of any model. A request for more tokens than there are positions, or one of our tasks, gets what the
        checkpoint was made to write at most, as from the judge."""
        if not self.thinks:
            return super().generate_until(requests, disable_tqdm)
        requests = [copy(r) for r in requests]
        for r in requests:
            context, how = r.args
            limit = normalize_gen_kwargs(dict(how), self.max_gen_toks)["max_gen_toks"]
            if limit >= self.max_length or r.task_name in OURS:  # there the judge's budget counts
                limit = min(limit, self.model.generation_config.max_new_tokens or limit)
            rest = {k: v for k, v in how.items() if k not in ("max_new_tokens", "max_tokens", "max_completion_tokens")}
            r.arguments = (context, {**rest, "max_gen_toks": min(limit, self.model.longest or limit)})
        return super().generate_until(requests, disable_tqdm)

    def get_model_info(self) -> dict:
        """For the results file: also the method and the latents it was given."""
        method = type(self.model.method).__name__ if self.thinks else "none"
        return super().get_model_info() | {"method": method, "num_latents": self.num_latents}

    def set_cache_hook(self, cache_hook) -> None:
        """Refuse a cache of answers that were given under other settings: lm-eval's keys hold the request alone."""
        db = getattr(cache_hook, "dbdict", None)
        if db is not None:
            mine, key = self.fingerprint(), "fingerprint of the model"
            theirs = db.get(key)
            if theirs != mine and (theirs is not None or len(db) > 0):
                raise ValueError(
                    f"--use_cache {db.filename} holds answers of another checkpoint or of other settings: "
                    "give another path"
                )
            db[key] = mine
        super().set_cache_hook(cache_hook)

    def fingerprint(self) -> str:
        """Hash of the checkpoint's files and of all settings that change answers."""
        digest = blake2b(repr((self.num_latents, self.pretrained, self.settings)).encode(), digest_size=16)
        if Path(str(self.pretrained)).is_dir():
            for path in sorted(p for p in Path(self.pretrained).iterdir() if p.is_file() and p.suffix != ".md"):
                with path.open("rb") as f:
                    digest.update(file_digest(f, "blake2b").digest())
        return digest.hexdigest()


def plain(folder: Path) -> bool:
    """Whether a folder holds a causal LM of another make."""
    if not (folder / "config.json").exists():
        return False
    about = hub.read_json(folder / "config.json")
    return about.get("class") != "Run" and about.get("model_type") != "latent"
