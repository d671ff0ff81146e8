"""The config of a checkpoint as a `transformers` config: the backbone's, the method's, and the special tokens."""

from __future__ import annotations

from transformers import PreTrainedConfig

from kernels.errors import UserError

FORMAT = 2  # of a checkpoint; 1 was not a Hugging Face folder
CODE = "modeling_latent"  # the module that opens a checkpoint without this package


class LatentConfig(PreTrainedConfig):
    """The contents of `config.json`.

    `backbone`: the causal LM's config. `method`: the method's config, with class names. `latent_id`: the placeholder of
    one latent step in `input_ids`. `think_id`: the token that ends a prompt. `num_latents`: latent steps of a call that
    does not say how many, None = as trained. `answer_tokens`, `chain_tokens`, `chain_steps`: bounds on the text.
    `fixed_answer`: the length of answers that no end token closes; `closing_id`: the token that other tools may close
    them with, which is read as padding. `chat`: it was trained on questions in the tokenizer's chat template.
    `vocabulary`: a hash of the tokenizer's vocabulary.
    """

    model_type = "latent"
    keys_to_ignore_at_inference = ["past_key_values", "cache", "last_hidden_state"]  # noqa: RUF012  Trainer gathers logits

    def __init__(
        self,
        backbone: dict | None = None,
        method: dict | None = None,
        latent_id: int | None = None,
        think_id: int | None = None,
        closing_id: int | None = None,
        num_latents: int | None = None,
        fixed_answer: int | None = None,
        chat: bool = False,
        answer_tokens: int = 0,
        chain_tokens: int = 0,
        chain_steps: int = 1,
        vocabulary: str | None = None,
        format: int = FORMAT,
        **kwargs,
    ):
        if not isinstance(format, int) or format > FORMAT:
            raise UserError(f"the checkpoint has format {format}, this version reads up to {FORMAT}")
        self.backbone, self.method = backbone or {}, method or {}
        self.latent_id, self.think_id, self.num_latents = latent_id, think_id, num_latents
        self.closing_id = closing_id
        self.fixed_answer, self.chat, self.answer_tokens = fixed_answer, chat, answer_tokens
        self.chain_tokens, self.chain_steps = chain_tokens, chain_steps
        self.vocabulary, self.format = vocabulary, format
        kwargs.setdefault("architectures", ["LatentForCausalLM"])
        kwargs.setdefault(
            "auto_map", {"AutoConfig": f"{CODE}.LatentConfig", "AutoModelForCausalLM": f"{CODE}.LatentForCausalLM"}
        )
        body = self.backbone_config() if self.backbone else None
        for ours, theirs in (
            ("vocab_size", "vocab_size"),
            ("hidden_size", "hidden_size"),
            ("num_hidden_layers", "num_hidden_layers"),
            ("num_attention_heads", "num_attention_heads"),
            ("max_position_embeddings", "max_position_embeddings"),
            ("pad_token_id", "pad_token_id"),
            ("eos_token_id", "eos_token_id"),
        ):
            kwargs.setdefault(ours, getattr(body, theirs, None))
        kwargs["tie_word_embeddings"] = False  # the backbone ties its own
        super().__init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, *args, **kwargs) -> None:
        """Does nothing: the model writes the file that opens a checkpoint."""

    def backbone_config(self) -> PreTrainedConfig:
        """The config of the causal LM."""
        from transformers import AutoConfig

        rest = dict(self.backbone)
        return AutoConfig.for_model(rest.pop("model_type"), **rest)


if __name__ == "latent.hf_config":  # not where a checkpoint brought its own copy of this file
    from transformers import AutoConfig

    AutoConfig.register(LatentConfig.model_type, LatentConfig, exist_ok=True)
