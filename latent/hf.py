"""A method as a Hugging Face causal LM whose latent steps are placeholder tokens.

k ids `<latent>` after a prompt mean: think k steps here. `forward` resolves them by the method's own `think`
(`hf_reading.py`), so that the logits after the last of them are those of the text; `generate` appends them and takes
them out again (`hf_generation.py`). Sampling, beams, streaming and log-likelihoods are stock code. A placeholder's
logit is -inf, and it has no row in the embedding.

A loop along the depth is called the same way: k placeholders are k recurrences, and the answer, which it reads in
parallel, is handed out token by token.
"""

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from kernels.errors import UserError
from latent import bundle, methods
from latent.backbone import Backbone
from latent.hf_cache import CACHE, LatentCache, LatentOutput
from latent.hf_config import LatentConfig
from latent.hf_generation import LatentGenerationMixin
from latent.hf_padding import check_mask, inferred_mask, without_closing_token
from latent.hf_reading import read_on, read_whole
from latent.make import check_finite
from latent.methods.base import Method

log = logging.get_logger(__name__)
OPENED_AS_PLAIN_MODEL = (
    "a checkpoint that thinks is opened as a plain model: log-likelihoods would be of texts that do not follow <think> "
    "and its thoughts, as they did in training; in lm-eval open it with --model latent"
)
NO_THINK_TOKEN = (
    "a row to train on has no <think>: it is read as text that nothing was thought before, although `generate` thinks; "
    "end prompts in <think> and as many <latent> as are to be thought"
)

_OF_GENERATE = "`generate` takes it; in input_ids as many <latent> after <think> say how often to think"
_STATES = "last_hidden_state comes back with the logits, and a tap gives the other states (latent/README.md)"
NOT_TAKEN = {
    "position_ids": "positions follow from the attention mask",
    "inputs_embeds": "thoughts follow from input_ids",
    "num_latents": _OF_GENERATE,
    "num_recurrences": _OF_GENERATE,
    "output_hidden_states": _STATES,
    "output_attentions": _STATES,
}
"""Arguments that a caller may expect `forward` to take, each with what to do instead."""


class LatentForCausalLM(PreTrainedModel, LatentGenerationMixin):
    """A method as a causal LM. `method`: a trained one to wrap; without it one is built from the config."""

    config: LatentConfig
    config_class = LatentConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # Trainer then passes `num_items_in_batch`, the labels of the whole batch
    _quiet = False

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
        """Does nothing: `save_pretrained` writes the file that opens a checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs) -> Any:
        """As for any model. Raises UserError where weights are missing or not finite.

        Warns where lm-eval opens the checkpoint as `--model hf`, which scores a continuation right after its context.
        """
        if "lm_eval.models.huggingface" in sys.modules and "config" in kwargs and not cls._quiet:
            log.warning(OPENED_AS_PLAIN_MODEL)
        name = pretrained_model_name_or_path
        opened: Any = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        model, info = opened  # transformers' annotation does not know of the pair
        missing = sorted(map(str, [*info["missing_keys"], *info.get("mismatched_keys", ())]))
        if missing:
            raise UserError(f"{name} lacks weights: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}")
        check_finite(model, name)
        return (model, info) if output_loading_info else model

    @classmethod
    @contextmanager
    def without_warning(cls):
        """Inside, `from_pretrained` does not warn: the caller puts thoughts between a context and its continuation."""
        before, cls._quiet = cls._quiet, True
        try:
            yield
        finally:
            cls._quiet = before

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As for any model; also writes the file that opens the checkpoint without this package."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        bundle.write(save_directory)  # first, because with push_to_hub the next call uploads the folder
        super().save_pretrained(save_directory, *args, **kwargs)

    def _init_weights(self, module) -> None:
        """Does nothing: the backbone draws its own weights, and a method's are drawn when it is built."""

    def get_input_embeddings(self):
        return self.method.backbone.lm.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.method.backbone.lm.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.method.backbone.lm.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.method.backbone.lm.set_output_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs):
        """As for any model, and the backbone's config has as many rows. Raises UserError where none is left for the
        think token."""
        backbone, think = self.method.backbone, self.config.think_id
        if new_num_tokens is not None and think is not None and new_num_tokens <= think:
            raise UserError(f"{new_num_tokens} rows leave none for the think token, whose id is {think}")
        made = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        backbone.vocab = made.weight.shape[0]
        self.config.backbone["vocab_size"] = backbone.lm.config.vocab_size = backbone.vocab
        return made

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        """Keep only each layer's input until backward. The backbone decides how: arguments are ignored."""
        self.method.backbone.recompute = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        self.method.backbone.recompute = False

    # the names of the two in later releases of transformers
    activation_checkpointing_enable = gradient_checkpointing_enable
    activation_checkpointing_disable = gradient_checkpointing_disable

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.method.backbone.recompute

    is_activation_checkpointing = is_gradient_checkpointing

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: LatentCache | None = None,
        cache: LatentCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        prompt_logits: bool = True,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs,
    ) -> LatentOutput:
        """Logits (B, T, V) at every column, at the last `logits_to_keep`, or at these; with `labels` (B, T) the mean
        loss.

        With `num_items_in_batch`, which Trainer gives, the loss is the sum divided by it, so that the labels of all
        accumulation steps count the same, and those of all devices where Trainer averages over them. Labels at
        placeholders, and at the token that closes a text of fixed length, add nothing to the sum.

        Rows may be padded on either side, and each may think a number of steps of its own. Without a mask the padding
        token is padding. Without `prompt_logits` the columns before a thought are left zero, which saves computing
        them. Columns after the last token of an answer that is read in parallel are NaN. Raises UserError for
        arguments in NOT_TAKEN, a mask of another shape, placeholders that do not follow each other, where the positions
        do not suffice, and without a mask where padding cannot be told from text.
        """
        for name, why in NOT_TAKEN.items():
            if kwargs.get(name) is not None and kwargs[name] is not False:
                raise UserError(f"{name} is not taken: {why}")
        past = cache if cache is not None else past_key_values
        if not isinstance(past, LatentCache | None):
            kind = type(past).__name__
            raise UserError(f"past_key_values must be a LatentCache, as a call with use_cache gives, got {kind}")
        if use_cache and past is None:
            past = LatentCache()
        if past is not None and past.columns:
            h_BTD, missing_BT = read_on(self.method, self.config, input_ids, past), None
        else:
            if attention_mask is None:
                attention_mask = inferred_mask(input_ids, self.config)
            check_mask(input_ids, attention_mask)
            think, trains = self.config.think_id, self.training and torch.is_grad_enabled()
            if trains and think is not None and not bool((input_ids == think).any(1).all()):
                log.warning_once(NO_THINK_TOKEN)
            input_ids, attention_mask, labels = without_closing_token(input_ids, attention_mask, labels, self.config)
            last_alone = not isinstance(logits_to_keep, Tensor) and logits_to_keep == 1
            prompt_states = prompt_logits and not last_alone
            h_BTD, missing_BT = read_whole(self.method, self.config, input_ids, attention_mask, past, prompt_states)
        chosen = isinstance(logits_to_keep, Tensor)
        kept = logits_to_keep if chosen else slice(-logits_to_keep or None, None)
        h_BTD = h_BTD[:, kept]
        logits_BTV = self.method.backbone.head(h_BTD)
        if missing_BT is not None and self.method.parallel_answer is not None:
            logits_BTV = logits_BTV.masked_fill(missing_BT[:, kept, None], float("nan"))
        logits_BTV = self._without_latent(logits_BTV)
        loss = None
        if labels is not None:
            if chosen or logits_to_keep:
                raise UserError("labels need all logits: logits_to_keep must be 0")
            loss = self._loss(logits_BTV, labels, num_items_in_batch)
        given_back: dict[str, Any] = {CACHE: past}
        return LatentOutput(loss=loss, logits=logits_BTV, last_hidden_state=h_BTD, **given_back)

    def _without_latent(self, logits_BTV: Tensor) -> Tensor:
        """The logits with -inf for the placeholder, whose id may lie beyond the rows of the head."""
        latent = self.config.latent_id
        if latent is None:
            return logits_BTV
        if latent < logits_BTV.shape[-1]:  # the vocabulary has spare rows
            return logits_BTV.index_fill(-1, torch.tensor(latent, device=logits_BTV.device), float("-inf"))
        return F.pad(logits_BTV, (0, latent + 1 - logits_BTV.shape[-1]), value=float("-inf"))

    def _loss(self, logits_BTV: Tensor, labels_BT: Tensor, labels_in_batch: int | Tensor | None) -> Tensor:
        """Cross-entropy of the next tokens: the mean, or the sum divided by `labels_in_batch`."""
        target_BT, latent = labels_BT[:, 1:], self.config.latent_id
        if latent is not None:
            target_BT = target_BT.masked_fill(target_BT == latent, -100)
        logits_NV, target_N = logits_BTV[:, :-1].flatten(0, 1), target_BT.flatten()
        if labels_in_batch is None:
            return F.cross_entropy(logits_NV, target_N)
        if isinstance(labels_in_batch, Tensor):
            labels_in_batch = labels_in_batch.to(logits_NV.device)
        return F.cross_entropy(logits_NV, target_N, reduction="sum") / labels_in_batch


if __name__ == "latent.hf":  # not where a checkpoint brought its own copy of this file
    AutoModelForCausalLM.register(LatentConfig, LatentForCausalLM, exist_ok=True)
