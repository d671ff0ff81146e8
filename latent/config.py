"""Settings of the backbone and of halting, as frozen dataclasses. It imports no torch, so that `--help` is fast."""

from dataclasses import dataclass
from typing import Literal

from kernels.errors import UserError

Told = Literal["answer", "chain", "chains", "search", "frontier"]
TOLD: dict[Told, str] = {
    "answer": "the answer",
    "chain": "one chain",
    "chains": "all best chains",
    "search": "a chain of all branches",
    "frontier": "the frontier",
}
"""What a model is taught beside a problem's question: the answer alone, or before it the oracle's chain; a best chain
drawn anew each time among all that tie; a chain that lists every branch of the search; the distribution over where the
search may stand after each step."""
Frontier = tuple[tuple[str, float], ...]
"""The words where a search may stand after a step, and their probabilities."""


@dataclass(frozen=True)
class ModelConfig:
    """The backbone: a Hugging Face causal LM, pretrained or made from scratch."""

    pretrained: str | None = None
    """Hub name or directory of a causal LM. Fields from family to vocab_size then do not apply."""
    family: Literal["gpt2", "llama", "qwen3"] = "gpt2"
    """Architecture of a model made from scratch."""
    n_layer: int = 2
    """Decoder layers."""
    n_embd: int = 64
    """Width D of the residual stream."""
    n_head: int = 4
    """Attention heads H."""
    n_positions: int = 64
    """Largest number of positions: prompt, thoughts and text together."""
    stock: bool = False
    """Made as transformers makes the family: embeddings tied to the head, small ones, GELU in GPT-2; instead of what
    trains fastest on fresh data."""
    dropout: float = 0.0
    """Dropout of a GPT-2 made from scratch, on embeddings, attention and residuals."""
    vocab_size: int = 2048
    """Size of a BPE vocabulary that is trained on the data. Symbol tasks have a vocabulary of their own."""
    chat_template: bool = False
    """Put questions into the pretrained tokenizer's chat template, as the user's turn."""
    lora_rank: int = 0
    """Rank of LoRA adapters, trained instead of a pretrained backbone's weights; 0 = none."""
    lora_alpha: float = 32.0
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    lora_dropout: float = 0.0
    """Dropout before the adapters in supervised training."""
    bf16: bool = False
    """Sample, train and judge in bfloat16 (autocast); weights and optimizer stay in fp32."""
    recompute: bool = False
    """Gradient checkpointing: keep only each layer's input until backward, and compute the layer twice."""

    def __post_init__(self):
        for name in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size"):
            at_least(self, name, 1)
        at_least(self, "lora_rank", 0)
        for name in ("dropout", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.lora_dropout and not self.lora_rank:
            raise UserError("model.lora_dropout is of adapters: say --model.lora-rank")
        if self.dropout and self.family != "gpt2":
            raise UserError(f"model.dropout is of gpt2, the family is {self.family}")
        for name in ("lora_rank", "chat_template"):
            if getattr(self, name) and self.pretrained is None:
                raise UserError(f"model.{name} needs a pretrained backbone (--model.pretrained)")
        if self.n_embd % (2 * self.n_head):
            raise UserError(
                f"model.n_embd must be an even multiple of model.n_head, got {self.n_embd} and {self.n_head}"
            )


@dataclass(frozen=True)
class Fixed:
    """Always use all latents."""


@dataclass(frozen=True)
class LearnedStop:
    """A Bernoulli stop after each hidden state, sampled in RL and recorded as a decision."""

    bias: float = -3.0
    """Logit of stopping before any training: -3 stops one time in twenty."""


@dataclass(frozen=True)
class Converged:
    """Stop where thinking has converged, by a rule without parameters. Supervised training does not use it."""

    by: Literal["second_difference", "kl", "entropy"] = "second_difference"
    """What measures convergence: the difference between the last two changes of the state (root mean square over its
    entries, arXiv:2509.23314), KL (nats) between the next-token distributions of the last two states
    (arXiv:2502.05171), or the entropy (nats) of the last one (Cold Stop, arXiv:2505.15778). For an answer that is read
    in parallel it is taken at the last token."""
    below: float = 0.1
    """The measure must fall below this; for kl arXiv:2502.05171 uses 5e-4, for entropy the authors' scripts .01, with
    256 hits."""
    hits: int = 2
    """Number of steps in a row for which it must."""

    def __post_init__(self):
        at_least(self, "hits", 1)
        if not self.below > 0:
            raise UserError(f"method.halt.below must be positive, got {self.below}")


Halt = Fixed | LearnedStop | Converged
HALTS: dict[str, type[Halt]] = {"fixed": Fixed, "learned": LearnedStop, "converged": Converged}


def at_least(config, name: str, least: int) -> None:
    """Raise UserError for a field that is no number, or below its least value."""
    value = getattr(config, name)
    if not isinstance(value, int | float) or not value >= least:
        raise UserError(f"{name} must be at least {least}, got {value!r}")


def one_of(config, name: str, choices: tuple[str, ...]) -> None:
    """Raise UserError for a field that is none of its choices: flags check that, and code need not."""
    value = getattr(config, name)
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
