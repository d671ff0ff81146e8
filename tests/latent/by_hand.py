"""Problems and forwards that losses are recomputed by hand with: the family's own, without cache, batch or tap."""

import torch
import torch.nn.functional as F

from latent.text import Batch

PROBLEMS = [  # chains of different lengths, one of a single step, which the teacher then does not write
    ("01 23 12", "2 1 4 3", ["2 1 3 4", "2 1 4 3", "2 4 1 3"]),
    ("03", "4 2 3 1", ["4 2 3 1"]),
    ("13 02 01 .", "1 2 3 4", ["1 4 3 2", "3 4 1 2"]),
]


def ragged_batch(codec) -> Batch:
    problems = [type("P", (), {"question": q, "answer": a, "steps": s}) for q, a, s in PROBLEMS]
    return Batch.of(problems, codec)


def states_of(backbone, x_1TD, pos):
    """All hidden states of the family's own forward, embeddings first, the last one normed, each (T, D)."""
    mask = torch.ones(x_1TD.shape[:2], dtype=torch.long)
    out = backbone.lm(inputs_embeds=x_1TD, position_ids=torch.tensor([pos]), attention_mask=mask, use_cache=False,
                      output_hidden_states=True)  # fmt: skip
    return [h[0] for h in out.hidden_states]


def ce_of(backbone, h_TD, ids):
    """Summed cross-entropy of ids, each given by its state."""
    return F.cross_entropy(backbone.lm.get_output_embeddings()(h_TD), torch.tensor(ids), reduction="sum")
