"""What `LatentForCausalLM` hands from one call to the next, in the forms that stock generation expects."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from kernels.errors import UserError
from latent.cache import Context

# The name of a cache, as argument and output, changes between releases of transformers.
CACHE = "cache" if any(f.name == "cache" for f in fields(CausalLMOutputWithPast)) else "past_key_values"


class LatentCache(DynamicCache):
    """What has been read and thought so far.

    `context`: the K/V cache to go on decoding from. `answer_BTD`: where the method reads its answer in parallel, the
    final hidden states whose tokens have not been handed out yet; there is no context then. `used_B`: latent steps that
    each row used. `columns`: columns of `input_ids` read so far, placeholders included, which is what transformers
    takes for the sequence length.
    """

    is_compileable = False

    def __init__(self):
        super().__init__()
        self.context: Context | None = None
        self.answer_BTD: Tensor | None = None
        self.used_B: Tensor | None = None
        self.columns = 0

    @property
    def is_sliding(self) -> list[bool]:
        return [False]

    is_linear = is_sliding

    def get_seq_length(self, *_) -> int:
        return self.columns

    def get_max_cache_shape(self, *_) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        per_row = self.answer_BTD if self.context is None else self.context.next_B
        assert per_row is not None  # generation repeats rows only after it has read the prompt
        self.batch_select_indices(torch.arange(len(per_row)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.context is not None:
            self.context = self.context.rows(indices.to(self.context.next_B.device))
        if self.answer_BTD is not None:
            self.answer_BTD = self.answer_BTD[indices.to(self.answer_BTD.device)]

    def crop(self, *_) -> None:
        raise UserError("a thought cannot be cropped: assisted generation is not supported")


@dataclass
class LatentOutput(CausalLMOutputWithPast):
    """The output of any causal LM, and the states (B, T, D) that the head reads, for trainers with their own head."""

    last_hidden_state: Tensor | None = None
