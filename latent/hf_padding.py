"""Which columns of `input_ids` are padding, where no attention mask says so or where a tool has closed a text."""

import torch
from torch import Tensor

from kernels.errors import UserError


def inferred_mask(ids_BT: Tensor, config, both_sides: bool = False) -> Tensor:
    """An attention mask (B, T) from the padding token alone: False where a row begins with it.

    `both_sides`: also where a row ends with it. Otherwise padding on the right counts as text: nothing reads it.

    The mask cannot be inferred where a row begins (or, with `both_sides`, ends) with the end token, because tokenizers
    may pad with it, nor where the padding token also occurs in text. A BOS or end token that begins every row is not
    padding. Raises UserError where padding and text cannot be told apart.
    """
    pad, end, bos = config.pad_token_id, config.eos_token_id, config.bos_token_id
    own_pad, wide = pad is not None and pad not in (end, bos), ids_BT.shape[1] > 1
    unsure = torch.tensor([i for i in ((end,) if own_pad else (pad, end)) if i is not None], device=ids_BT.device)
    first = 1 if wide and bos is not None and bool((ids_BT[:, 0] == bos).all()) else 0
    begins_B = torch.isin(ids_BT[:, first], unsure)
    if wide and first == 0 and bool(begins_B.all()):  # a separator of documents begins every row, unless two do
        begins_B = torch.isin(ids_BT[:, 1], unsure)
    ends_B = torch.isin(ids_BT[:, -1], unsure) if both_sides else torch.zeros_like(begins_B)
    if wide and bool((begins_B | ends_B).any()):
        where = "begins" if bool(begins_B.any()) else "ends"
        raise UserError(
            f"a row {where} with the end or padding token, which may be padding or text: give attention_mask"
        )
    if not own_pad:
        return torch.ones_like(ids_BT, dtype=torch.bool)
    text_BT = ids_BT != pad
    after_first_BT = text_BT.cumsum(1) > 0
    return after_first_BT & (text_BT.flip(1).cumsum(1).flip(1) > 0) if both_sides else after_first_BT


def check_mask(ids_BT: Tensor, mask_BT: Tensor) -> None:
    """Raise UserError for an attention mask that does not say of every column whether it is padding."""
    if mask_BT.shape != ids_BT.shape:
        raise UserError(f"attention_mask has shape {tuple(mask_BT.shape)}, input_ids have {tuple(ids_BT.shape)}")


def without_closing_token(ids_BT: Tensor, mask_BT: Tensor, labels_BT: Tensor | None, config):
    """Ids, mask and labels in which the token that other tools close a text with is padding.

    Trainers and collators append an end token to every text. Where answers end by their length the model never learnt
    one. Raises UserError where text follows it.
    """
    closing_BT = ids_BT == config.closing_id if config.closing_id is not None else None
    if closing_BT is None or not bool(closing_BT.any()):
        return ids_BT, mask_BT, labels_BT
    ended_BT = closing_BT.cumsum(1) > 0
    if bool((ended_BT & ~closing_BT & mask_BT.bool() & (ids_BT != config.pad_token_id)).any()):
        raise UserError("the end token stands before text: a row holds one text of a model whose answers end by length")
    labels_BT = None if labels_BT is None else labels_BT.masked_fill(closing_BT, -100)
    return ids_BT.masked_fill(closing_BT, config.pad_token_id), mask_BT.bool() & ~ended_BT, labels_BT
