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


def places(method, prompt):
    """Positions of a prompt of so many tokens and of the latents after it."""
    return [*range(prompt), *(prompt + method.stride * (i + 1) - 1 for i in range(method.config.n_latent))]


def one_by_one(method, ids):
    """What a loop along the sequence feeds its latents (1, K, D), each worked out from the whole sequence before it."""
    k, x = method.config.n_latent, method.backbone.embed(ids[None])
    for i in range(k):
        h_1D = states_of(method.backbone, x, places(method, len(ids))[: len(ids) + i])[-1][-1:]
        known = method.feedback.known(k)
        x = torch.cat([x, (method.feedback(h_1D) if known is None else known[i : i + 1])[None]], 1)
    return x[:, len(ids) :]


def student_of(method, ids, answer, latents_1KD):
    """The answer's summed cross-entropy after the latents, and all layers' states at the last latent."""
    backbone, k, stride = method.backbone, method.config.n_latent, method.stride
    x = torch.cat([backbone.embed(ids[None]), latents_1KD, backbone.embed(torch.tensor([answer[:-1]]))], 1)
    pos = places(method, len(ids)) + [len(ids) + stride * k + t for t in range(len(answer) - 1)]
    states = states_of(backbone, x, pos)
    at = len(ids) + k - 1
    return ce_of(backbone, states[-1][at:], answer), [h[at] for h in states]


def teacher_of(method, ids, chain, answer):
    """Summed cross-entropy of chain and answer, and all layers' states at the token before the answer."""
    whole = torch.cat([ids, torch.tensor([*chain, *answer], dtype=torch.long)])
    states = states_of(method.backbone, method.backbone.embed(whole[None, :-1]), list(range(len(whole) - 1)))
    ce = ce_of(method.backbone, states[-1][len(ids) - 1 :], [*chain, *answer])
    return ce, [h[len(ids) + len(chain) - 1] for h in states]


def codi_loss(method, batch, fed):
    """The loss of `latent.methods.codi`, given what feeds a row's latents: `fed(method, ids)` -> (1, K, D)."""
    config, prompt = method.config, batch.prompt
    mask = torch.ones_like(prompt.ids_BT, dtype=torch.bool) if prompt.mask_BT is None else prompt.mask_BT
    student_ce = teacher_ce = distance = 0.0
    written = 0
    for ids, real, steps, answer in zip(prompt.ids_BT, mask, batch.steps, batch.answers):
        chain = sum(steps if config.keep_last else steps[:-1], ())
        ce, student = student_of(method, ids[real], answer, fed(method, ids[real]))
        student_ce = student_ce + ce
        ce, teacher = teacher_of(method, ids[real], chain, answer)
        teacher_ce = teacher_ce + ce
        written += len(chain) + len(answer)
        for s_D, t_D in zip(student[1:], teacher[1:], strict=True):
            apart_D = (s_D - t_D.detach()).abs()
            smooth = torch.where(apart_D < 1, apart_D**2 / 2, apart_D - 0.5).mean()
            spread = ((t_D - t_D.mean()) ** 2).sum() / (len(t_D) - 1)
            distance = distance + smooth / spread.detach().sqrt() / len(student[1:]) / len(batch.answers)
    ce = student_ce / sum(map(len, batch.answers))
    return ce + config.teacher_weight * teacher_ce / written + config.distill_weight * distance
