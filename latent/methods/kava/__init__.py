"""KaVa (arXiv:2510.02312): PCCoT whose latents must leave the keys and values that a compressed chain leaves."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from kernels.errors import UserError
from latent.methods.pccot import Pccot


@dataclass(frozen=True)
class Kava(Pccot):
    """KaVa (arXiv:2510.02312): PCCoT's latents, with K and V near those of the chain, compressed."""

    name: ClassVar[str] = "kava"
    kv_weight: float = 1.0
    """Weight alpha_2 of the distance between K and V: 1 for Llama 3.2 1B, 2 for 3B, as one reimplementation quotes the
    paper's table 6, which was not at hand."""
    kv_distance: Literal["smooth_l1", "l1", "mse"] = "smooth_l1"
    """Distance between K and V: smooth L1, absolute or squared difference."""
    kv_std: bool = True
    """Whether a layer's distance is divided by the standard deviation of the teacher's K, or V, in that layer."""
    importance: float = 0.1
    """Weight lambda of an entry's importance to the answer in its score, in 0..1; the rest is its unlikeness to the
    chain's other keys."""

    def __post_init__(self):
        super().__post_init__()
        if not self.kv_weight >= 0:
            raise UserError(f"method.kv_weight must be at least 0, got {self.kv_weight}")
        if not 0 <= self.importance <= 1:
            raise UserError(f"method.importance must be in 0..1, got {self.importance}")

    def method_class(self):
        from latent.methods.kava.method import KavaMethod

        return KavaMethod
