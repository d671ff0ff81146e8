"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on a pretrained backbone by `peft`; merged before saving."""

from typing import Any

from kernels.errors import UserError


def add(lm: Any, rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Add adapters to every linear layer of a `PreTrainedModel` except its head, and freeze the rest of it.

    Parameters that a method adds outside of the backbone stay trainable. Raises UserError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("model.lora_rank needs the lora extra: pip install '.[lora]'") from None
    conv = any(type(m).__name__ == "Conv1D" for m in lm.modules())  # GPT-2's layer, whose weight is (in, out)
    head = lm.get_output_embeddings()
    linear = [n for n, m in lm.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and m is not head]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft declares an int, but takes any number
        lora_dropout=dropout,
        target_modules=linear,
        fan_in_fan_out=conv,
    )
    inject_adapter_in_model(config, lm)
    for name, p in lm.named_parameters():
        p.requires_grad_("lora_" in name)


def merge(lm: Any) -> None:
    """Merge all adapters into the weights and remove them, which leaves a plain causal LM."""
    adapted = [(n, m) for n, m in lm.named_modules() if hasattr(m, "get_base_layer") and hasattr(m, "merge")]
    for name, module in adapted:
        module.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(lm.get_submodule(parent), leaf, module.get_base_layer())
    for p in lm.parameters():
        p.requires_grad_(True)
