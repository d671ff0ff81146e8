"""All settings of a run and of a set of runs, as frozen dataclasses. It imports no torch, so that `--help` is fast."""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal

from eval.environments import EnvConfig
from kernels.errors import UserError
from latent.config import ModelConfig
from latent.methods import MethodConfig
from latent.plain import HOW, check_types, id_of, identity
from train.algorithms import GRPO, Algorithm

LARGEST_FLOAT = 3.4028234663852886e38  # of fp32, in which everything is computed


@dataclass(frozen=True)
class SFT:
    """Supervised training with the method's own loss."""

    steps: int = 1500
    """Updates."""
    batch: int = 64
    """Problems in an update, over all processes."""
    problems: int = 0
    """Problems of the training split to learn from, the same for every arm, drawn with replacement; 0 = all."""
    lr: float = 3e-3
    """Peak learning rate of AdamW."""
    warmup: int = 50
    """Updates of linear warm-up."""
    decay: float = 0.3
    """Share of the updates, at the end, over which the learning rate decays linearly ..."""
    decay_to: float = 0.05
    """... to this fraction of its peak."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    beta2: float = 0.98
    """AdamW's second beta; the first is 0.9."""
    clip: float = 1.0
    """Gradient norm to clip to."""
    stop_at: float = 0.0
    """End the run when `exact`, averaged over the updates of a log line, reaches this value (0 = never)."""
    log_every: int = 100
    """Updates between log lines."""
    save_every: int = 500
    """Updates between checkpoints."""
    keep: int = field(default=2, metadata=HOW)
    """Number of newest checkpoints to keep: where one is damaged the one before it is used."""
    micro_batch: int = field(default=0, metadata=HOW)
    """Rows that a process computes at a time, 0 = all: problems, or in RL rollouts. Gradients are accumulated, so that
    it changes memory and speed, and no result."""
    select: Literal["last", "best"] = "last"
    """Weights that the run ends with: the last, or those of the best validation accuracy, of RL the start's as well."""
    valid_every: int = 0
    """Updates between validations, logged as `valid` (0 = never). With any, there is one at the end, too."""
    valid_items: int = 128
    """Validation problems, spread evenly over the levels."""

    def __post_init__(self):
        for name in ("batch", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.select == "best" and not self.valid_every:
            raise UserError("train.select best needs train.valid_every: how often to validate")
        if self.valid_items < 1:
            raise UserError(f"train.valid_items must be at least 1, got {self.valid_items}")
        for name in ("problems", "steps", "warmup", "valid_every", "micro_batch"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name} must be at least 0, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"train.{name} must be > 0, got {getattr(self, name)}")
        for name in ("decay", "decay_to", "stop_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"train.{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.beta2 < 1:
            raise UserError(f"train.beta2 must be in [0, 1), got {self.beta2}")
        if self.weight_decay < 0:
            raise UserError(f"train.weight_decay must be at least 0, got {self.weight_decay}")


@dataclass(frozen=True)
class RLVR(SFT):
    """RL on verified answers: reward = verdict - latent_cost * latents used. The teacher's chains are not used."""

    steps: int = 300
    batch: int = 64
    """Prompts in an update."""
    lr: float = 3e-4
    warmup: int = 10
    log_every: int = 20
    save_every: int = 100
    group: int = 16
    """Rollouts G of each prompt."""
    latent_cost: float = 0.0
    """Subtracted from the reward for every latent used."""
    stop_lr: float = 4.0
    """Learning rate of the stop head, as a multiple of `lr`."""
    algorithm: Algorithm = field(default_factory=GRPO)
    """Credit of each decision, and the loss."""
    epochs: int = 1
    """Passes over each batch of rollouts."""
    minibatches: int = 1
    """Updates in each pass."""
    clip_low: float = 0.2
    """The importance ratio is clipped to at least 1 - this ..."""
    clip_high: float = 0.28
    """... and at most 1 + this."""
    entropy: float = 0.0
    """Weight of the entropy bonus (nats). Decisions that are drawn from a density have none, and count in the mean."""
    kl: float = 0.0
    """Weight of the KL to the frozen starting policy, over discrete decisions."""
    temperature: float = 1.0
    """Sampling temperature of the text, at which its log-probabilities are taken as well."""
    patience: int = 20
    """Stop with an error after this many updates in a row in which no group had rewards that differ: nothing can be
    learned from such groups."""

    def __post_init__(self):
        super().__post_init__()
        if self.stop_at:
            raise UserError("train.stop_at is of supervised training: RL has no exact match with a gold text")
        for name in ("epochs", "minibatches", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.group < self.algorithm.least_group:
            least, name = self.algorithm.least_group, self.algorithm.name
            raise UserError(f"train.group must be at least {least} with train.algorithm {name}, got {self.group}")
        if self.batch % self.minibatches:
            raise UserError(
                f"train.batch must be a multiple of train.minibatches, got {self.batch}, {self.minibatches}"
            )
        for name in ("clip_low", "clip_high", "entropy", "kl", "stop_lr"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name} must be at least 0, got {getattr(self, name)}")
        if not 1e-6 <= self.temperature <= 1e6:  # what logits are divided by
            raise UserError(f"train.temperature must be in 1e-6..1e6, got {self.temperature}")


@dataclass(frozen=True)
class Judge:
    """The final evaluation, greedy, on held-out problems."""

    items: int = 1000
    """Problems of the main level."""
    level_items: int = 250
    """Problems of each other level, fewer where a level has fewer."""
    batch: int = 256
    """Problems to decode together."""
    sweep: tuple[int, ...] = ()
    """Numbers of latent steps to judge with, besides the trained one; of arms that think."""
    split: Literal["test", "valid"] = "test"
    """Where its problems come from; valid is for a search over settings, and no table of results takes it."""

    def __post_init__(self):
        for name in ("items", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"judge.{name} must be at least 1, got {getattr(self, name)}")
        if self.split not in ("test", "valid"):
            raise UserError(f"judge.split must be test or valid, got {self.split!r}")
        if self.level_items < 0 or min(self.sweep, default=0) < 0:
            raise UserError(f"judge.level_items and judge.sweep must not be negative, got {self}")


@dataclass(frozen=True)
class Run:
    """One training run, whole: its hash is its id."""

    env: EnvConfig
    """Problems and verifier."""
    model: ModelConfig
    """The backbone."""
    method: MethodConfig
    """How it thinks."""
    train: SFT | RLVR
    """How it is trained."""
    judge: Judge = field(default_factory=Judge)
    """Final evaluation."""
    init: str | None = None
    """Run id or directory whose weights it starts from."""
    seed: int = 0
    """Seed of weights, data order and sampling."""

    def __post_init__(self):
        check_types(self)
        check_numbers(self)

    @property
    def sweep(self) -> tuple[int, ...]:
        """The numbers of latent steps to judge with besides the trained one: none where nothing is thought."""
        return self.judge.sweep if self.method.thinks else ()

    @property
    def id(self) -> str:
        """Hash of the fields that differ from their defaults, class names included."""
        return id_of(identity(self))


@dataclass(frozen=True)
class Arm:
    """One row of a comparison."""

    method: MethodConfig
    """How it thinks."""
    train: SFT | RLVR
    """How it is trained."""
    init: str | None = None
    """Arm whose final weights it starts from."""


@dataclass(frozen=True)
class Experiment:
    """Arms with the same problems and the same kind of model, judged on the same held-out problems."""

    env: EnvConfig
    """Problems and verifier."""
    model: ModelConfig
    """The backbone."""
    arms: dict[str, Arm]
    """The rows of the table."""
    judge: Judge = field(default_factory=Judge)
    """Final evaluation."""
    seed: int = 0
    """Seed of weights, data order and sampling."""

    def __post_init__(self):
        check_types(self)
        check_numbers(self)
        if not self.arms:
            raise UserError("an experiment needs at least one arm")

    def runs(self) -> dict[str, Run]:
        """The run of every arm. Where an arm starts from another, `init` is the id of that arm's run.

        Raises UserError for an arm that stands before the one that it starts from.
        """
        runs: dict[str, Run] = {}
        for name, arm in self.arms.items():
            if arm.init in self.arms and arm.init not in runs:
                raise UserError(f"arm {name!r} stands before {arm.init!r}, which it starts from")
            init = runs[arm.init].id if arm.init in runs else arm.init
            runs[name] = Run(self.env, self.model, arm.method, arm.train, self.judge, init, self.seed)
        return runs


def check_numbers(config, name: str = "") -> None:
    """Raise UserError, naming the flag, for impossible numbers: not finite, beyond 64 bits, a seed out of range."""
    if is_dataclass(config):
        for f in fields(config):
            check_numbers(getattr(config, f.name), f"{name}.{f.name}".lstrip("."))
    elif isinstance(config, dict):
        for key, value in config.items():
            check_numbers(value, f"{name}.{key}")
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_numbers(value, name)
    elif isinstance(config, float) and not math.isfinite(config):
        raise UserError(f"{name} must be finite, got {config}")
    elif isinstance(config, float) and abs(config) > LARGEST_FLOAT:
        raise UserError(f"{name} must fit into 32 bits, which end at {LARGEST_FLOAT:.4g}, got {config}")
    elif isinstance(config, int) and not isinstance(config, bool):
        if not -(2**63) <= config < 2**63:
            raise UserError(f"{name} must fit into 64 bits, got {config}")
        if name == "seed" and not 0 <= config < 2**32:
            raise UserError(f"seed must be in 0..{2**32 - 1}, got {config}")
