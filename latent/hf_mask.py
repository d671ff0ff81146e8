"""Which columns of `input_ids` are padding, where no attention mask says so, and where a tool has closed a text."""

import torch
from torch import Tensor

from kernels.errors import UserError


def mask_of(ids_BT: Tensor, config, ends: bool = False) -> Tensor:
    """False on padding (B, T): where a row begins with the padding token, and with `ends` where it ends with it.

    Elsewhere what stands after a row is read by nothing, and may stay. A tokenizer may also have been told to pad with
    the end token. Rows that begin with it, or with `ends` end with it, may be padded or not, and would be read as
    another text: ValueError. So are rows of a checkpoint whose padding token is one of text. BOS, or one end token,
    that begins all rows is no padding.
    """
    pad, end, bos = config.pad_token_id, config.eos_token_id, config.bos_token_id
    own, wide = pad is not None and pad not in (end, bos), ids_BT.shape[1] > 1
    unsure = torch.tensor([i for i in ((end,) if own else (pad, end)) if i is not None], device=ids_BT.device)
    first = 1 if wide and bos is not None and bool((ids_BT[:, 0] == bos).all()) else 0
    begins_B = torch.isin(ids_BT[:, first], unsure)
    if wide and first == 0 and bool(begins_B.all()):  # of all rows: a document's separator, unless one more follows
        begins_B = torch.isin(ids_BT[:, 1], unsure)
    ends_B = torch.isin(ids_BT[:, -1], unsure) if ends else torch.zeros_like(begins_B)
    if wide and bool((begins_B | ends_B).any()):
        where = "begins" if bool(begins_B.any()) else "ends"
        raise UserError(
            f"a row {where} with the end or padding token, which may be padding or text: give attention_mask"
        )
    if not own:
        return torch.ones_like(ids_BT, dtype=torch.bool)
    real_BT = ids_BT != pad
    begun_BT = real_BT.cumsum(1) > 0
    return begun_BT & (real_BT.flip(1).cumsum(1).flip(1) > 0) if ends else begun_BT


def without_closing(ids_BT: Tensor, mask_BT: Tensor, labels_BT: Tensor | None, config):
    """Ids, mask and labels with the token that other tools close a text with as padding, where lengths end texts.

    Raises UserError where text follows it.
    """
    closing_BT = ids_BT == config.closing_id if config.closing_id is not None else None
    if closing_BT is None or not bool(closing_BT.any()):
        return ids_BT, mask_BT, labels_BT
    ended_BT = closing_BT.cumsum(1) > 0
    if bool((ended_BT & ~closing_BT & mask_BT.bool() & (ids_BT != config.pad_token_id)).any()):
        raise UserError("the end token stands before text: a row holds one text of a model whose answers end by length")
    labels_BT = None if labels_BT is None else labels_BT.masked_fill(closing_BT, -100)
    return ids_BT.masked_fill(closing_BT, config.pad_token_id), mask_BT.bool() & ~ended_BT, labels_BT
