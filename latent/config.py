"""Every choice about the model, as frozen dataclasses. No torch here, so that `--help` answers at once."""

from dataclasses import dataclass, field
from typing import Literal

from kernels.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """The backbone: a Hugging Face causal LM, pretrained or made from scratch."""

    pretrained: str | None = None
    """Hub name or directory of a causal LM; the fields below then do not apply."""
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
    vocab_size: int = 2048
    """Size of a BPE vocabulary trained on the data (symbol tasks bring their own)."""
    chat_template: bool = False
    """Put questions into a pretrained tokenizer's chat template, as the user's turn."""
    lora_rank: int = 0
    """Rank of adapters on every linear layer, trained instead of a pretrained backbone's weights; 0 = none."""
    lora_alpha: float = 32.0
    """Scale of the adapters: they count alpha / rank times."""
    bf16: bool = False
    """Compute supervised updates in bfloat16 (autocast); weights, optimizer and evaluation stay in fp32."""
    recompute: bool = False
    """Gradient checkpointing: keep only each layer's input until backward, and compute it twice."""

    def __post_init__(self):
        for name in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size"):
            _at_least(self, name, 1)
        _at_least(self, "lora_rank", 0)
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
    """Stop where thinking has settled, by a rule without parameters. Supervised training does not ask it."""

    by: Literal["second_difference", "kl"] = "second_difference"
    """How much the last step's change differs from the one before (root mean square over the state's entries,
    arXiv:2509.23314), or KL (nats) between the next-token distributions of the last two states (arXiv:2502.05171);
    of an answer read off in parallel, at its last token."""
    below: float = 0.1
    """What it must fall below; for kl arXiv:2502.05171 takes 5e-4."""
    hits: int = 2
    """How often in a row."""

    def __post_init__(self):
        _at_least(self, "hits", 1)
        if not self.below > 0:
            raise UserError(f"method.halt.below must be positive, got {self.below}")


@dataclass(frozen=True)
class NoCoT:
    """Control: answer at once."""


@dataclass(frozen=True)
class CoT:
    """Control: write the teacher's chain in tokens, then the answer."""

    every: int = 1
    """Write one step in so many, and not the last, which the answer repeats: a chain at the budget of latents."""

    def __post_init__(self):
        _at_least(self, "every", 1)


@dataclass(frozen=True)
class _Sequence:
    """What the methods that loop along the sequence share."""

    n_latent: int = 8
    """Latents k; 0 is no-CoT."""
    stride: int = 1
    """Positions a latent stands for: latent i sits where the last token of step i would have been, and the text after
    the thoughts begins at stride * k, whatever was used. 1 = contiguous."""
    feedback: Literal["hidden", "norm", "project", "soft"] = "hidden"
    """What is fed back: the last hidden state (Coconut), that at the embeddings' scale, an MLP of it (CODI), or the
    mean input embedding under its next-token distribution (soft tokens)."""
    halt: Fixed | LearnedStop | Converged = field(default_factory=Fixed)
    """When to stop thinking."""

    def __post_init__(self):
        _at_least(self, "n_latent", 0)
        _at_least(self, "stride", 1)


@dataclass(frozen=True)
class Coconut(_Sequence):
    """Coconut (arXiv:2412.06769): a curriculum replaces the chain's steps by latents, one stage at a time."""

    latents_per_step: int = 1
    """Latents c that stand for one step."""
    advance_at: float = 0.9
    """Go to the next stage when the moving average of teacher-forced exact match exceeds this ..."""
    stage_steps: int = 0
    """... or after this many updates in a stage (0 = never by count)."""
    first_stage: int = 0
    """Stage to begin with: 1 for weights that have been trained on whole chains."""
    earlier: float = 0.2
    """Share of batches drawn from earlier stages."""

    def __post_init__(self):
        super().__post_init__()
        _at_least(self, "latents_per_step", 1)
        _at_least(self, "stage_steps", 0)
        if not 0 <= self.first_stage <= self.n_latent // self.latents_per_step + 1:
            raise UserError(f"method.first_stage must be one of the stages, got {self.first_stage}")
        if self.n_latent % self.latents_per_step:
            raise UserError(
                f"method.n_latent must be a multiple of method.latents_per_step, "
                f"got {self.n_latent} and {self.latents_per_step}"
            )
        if not 0 <= self.earlier <= 1:
            raise UserError(f"method.earlier must be in [0, 1], got {self.earlier}")


@dataclass(frozen=True)
class Sim(_Sequence):
    """SIM-CoT (arXiv:2509.20317): while training, a decoder must read step i off latent i."""

    step_weight: float = 1.0
    """Weight of the step decoder's loss."""
    step_tokens: int = 4
    """Longest step that the train-only decoder can write, in tokens."""

    def __post_init__(self):
        super().__post_init__()
        _at_least(self, "step_tokens", 1)


@dataclass(frozen=True)
class Recurrent:
    """Recurrent depth (Huginn, arXiv:2502.05171): prelude -> core, looped with the input injected again -> coda."""

    prelude: int = 1
    """Layers before the loop."""
    core: int = 1
    """Layers in the loop."""
    coda: int = 0
    """Layers after the loop."""
    n_recurrence: int = 8
    """Recurrences r when answering."""
    r_min: int = 4
    """Fewest recurrences in training, drawn uniformly ..."""
    r_max: int = 12
    """... up to this many."""
    answer_tokens: int = 4
    """Answer tokens, read in parallel off the last positions."""
    supervise: Literal["steps", "answer"] = "steps"
    """What recurrence i is trained on: the step it should have reached, or the answer alone."""
    halt: Fixed | LearnedStop | Converged = field(default_factory=Fixed)
    """When to stop the loop."""

    def __post_init__(self):
        for name in ("core", "n_recurrence", "r_min", "answer_tokens"):
            _at_least(self, name, 1)
        for name in ("prelude", "coda"):
            _at_least(self, name, 0)
        _at_least(self, "r_max", self.r_min)


@dataclass(frozen=True)
class Pause:
    """Control: learned tokens where a method has thoughts, all read in one pass (pause tokens, arXiv:2310.02226)."""

    of: Coconut | Sim = field(default_factory=Coconut)
    """The method whose training and number of latents it has; its `feedback` does not apply."""


@dataclass(frozen=True)
class FixedEmbedding:
    """Control: as many passes in sequence as a method has thoughts, a constant embedding fed back in each."""

    of: Coconut | Sim = field(default_factory=Coconut)
    """The method whose training and number of latents it has; its `feedback` does not apply."""


MethodConfig = NoCoT | CoT | Coconut | Sim | Pause | FixedEmbedding | Recurrent


def pack(config) -> dict:
    """A method's config as JSON, class names included."""
    return {"class": type(config).__name__} | {
        k: pack(v) if hasattr(v, "__dataclass_fields__") else v for k, v in vars(config).items()
    }


def unpack(data: dict):
    """The inverse of `pack`. Raises UserError for a class or a field that this version does not have."""
    cls = globals().get(data.get("class"))
    if not hasattr(cls, "__dataclass_fields__"):
        raise UserError(f"this version has no method {data.get('class')!r}")
    try:
        return cls(**{k: unpack(v) if isinstance(v, dict) else v for k, v in data.items() if k != "class"})
    except TypeError as e:
        raise UserError(f"a config of {cls.__name__} does not fit this version: {e}") from None


def _at_least(config, name: str, least: int) -> None:
    value = getattr(config, name)
    if value < least:
        raise UserError(f"{name} must be at least {least}, got {value}")
