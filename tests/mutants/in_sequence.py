"""Mutants of the published methods along the sequence, latent/methods/."""

CODI, ICOT, SOFT, HRPO, COLAR, PCCOT, KAVA = (
    f"tests/latent/test_{name}.py" for name in ("codi", "icot", "soft", "hrpo", "colar", "pccot", "kava")
)
EVERY = "tests/latent/test_every_method.py"
CLOSING, TURNS, CONVERT, BAD_INPUT = (
    f"tests/latent/test_{name}.py" for name in ("closing", "turns", "convert", "convert_errors")
)

GROUPS = (
    ("latent/methods/codi/method.py", CODI, (
        ("the embeddings are matched, too", "range(1, backbone.depth + 1)", "range(0, backbone.depth + 1)"),
        ("the last layer is not matched", "range(1, backbone.depth + 1)", "range(1, backbone.depth)"),
        ("the teacher learns from the student", "teacher_LBD.detach())", "teacher_LBD)"),
        ("not in units of the teacher's deviation", "(apart_LB / teacher_LBD.std(-1)).mean(0)", "apart_LB.mean(0)"),
        ("the teacher writes the last step", "steps if self.config.keep_last else steps[:-1]", "steps"),
        ("the teacher's state is a token late", "device=h_LBTD.device), chain_B]",
         "device=h_LBTD.device), chain_B.clamp(min=1) - 1]"),
        ("the teacher's weight ignored", "written.weight = self.config.teacher_weight", "pass"),
        ("the distance's weight ignored", "len(apart_B), self.config.distill_weight)", "len(apart_B))"),
        ("the student's state is the one before", "self.of_latent(student, self.config.n_latent)",
         "self.of_latent(student, self.config.n_latent - 1)"),
        ("no room for the teacher's chain", "max(sum(self.chain(steps)) if k else 0, thought)",
         "thought"),
    )),
    ("latent/methods/sequence.py", CLOSING, (
        ("thoughts are not closed in answering", "return self.closed(self.loop(prompt", "return (self.loop(prompt"),
        ("no position for the closing embedding", "return int(self.closing is not None)", "return 0"),
        ("the closing embedding is read, not used", "replace(thought, h_UTD=h_U1D, context=context)",
         "replace(thought, context=context)"),
        ("a text without latents does not follow the closing embedding", "self.closing.expand(b, 1, -1), fed_BTD",
         "0 * self.closing.expand(b, 1, -1), fed_BTD"),
    )),
    ("latent/methods/sequence.py", TURNS, (
        ("a next turn finds the text read twice", "context.without_last(t - 1)", "context"),
    )),
    ("latent/cache.py", TURNS, (
        ("positions are not taken back", "mask_BS, self.next_B - n,", "mask_BS, self.next_B,"),
    )),
    ("latent/methods/codi/method.py", CLOSING, (
        ("the last latent is matched, not what closes it", "if self.closing is None else student[-1]", ""),
    )),
    ("latent/methods/pccot/method.py", CLOSING, (
        ("the state before the text is of the closing embedding's call", "calls[: len(calls) - self.closing_positions]",
         "calls"),
    )),
    ("latent/convert/pretrained.py", CONVERT, (
        ("adapters at another scale", "alpha / len(a_RI) *", "alpha *"),
        ("a head of its own is tied", "config.tie_word_embeddings = False", "pass"),
        ("ids beyond the vocabulary have no token", "for i in range(size, max(names) + 1):", "for i in ():"),
        ("the answer's mark stays in words", "if mark is not None:", "if False:"),
        ("a word keeps its merges", "return old in (*pair", "return old in pair and old in (*pair"),
    )),
    ("latent/convert/coconut.py", CONVERT, (
        ("SIM-CoT's thoughts are not closed", "Sim(n_latent=k, told=\"answer\", closing=True)",
         "Sim(n_latent=k, told=\"answer\", closing=False)"),
        ("Coconut's curriculum begins anew", "first_stage=k // c + 1", "first_stage=0"),
    )),
    ("latent/convert/codi.py", CONVERT, (
        ("a question is read as it stands", "| trim | replace('  ', ' ')", ""),
        ("the layers of the projection are mixed up", '{"1": "0", "3": "2"', '{"1": "2", "3": "0"'),
    )),
    ("latent/convert/latenttts.py", CONVERT, (
        ("CoLaR's prompts begin with BOS", "tokenizer.backend_tokenizer.post_processor = None", "pass"),
        ("CoLaR's head at the embeddings' scale", 'fill_(about.get("latent_embedding_std", 0.018))', "mul_(1)"),
    )),
    ("latent/convert/source.py", BAD_INPUT, (
        ("missing shards are read past", "if not (index.parent / name).is_file()]", "if False]"),
        ("pickles may run code", "weights_only=True", "weights_only=False"),
    )),
    ("latent/convert/__init__.py", BAD_INPUT, (
        ("a folder with something in it is written over", "or any(out.iterdir())", ""),
        ("the layout that is asked for is believed", "if not layout(found).matches(source):", "if False:"),
    )),
    ("latent/methods/icot/method.py", ICOT, (
        ("whole ignored", "- 1 - self.config.whole", "- 1"),
        ("no offsets", "if self.config.smoothing:", "if False:"),
        ("a uniform offset", "-torch.log1p(-batch.draw_rows().double())", "batch.draw_rows().double()"),
        ("one offset for all rows", "for o in offsets_B.tolist()]", "for o in offsets_B[:1].tolist() * len(gone)]"),
        ("always from the left", 'if self.config.side == "left":', "if True:"),
        ("all_beyond ignored", "None if 0 < self.config.all_beyond <= n else n", "n"),
        ("the moments are forgotten at every update", "self.since % self.config.remove_every == 0", "True"),
        ("the moments are forgotten when nothing is left", "and grown and not bool(self.gone)", "and grown"),
        ("it decodes as if nothing were gone", "max(0, tokens - self.removed)", "tokens"),
    )),
    ("train/distill.py", ICOT, (
        ("no fresh optimizer", "trainer.optimizer.state.clear()", "pass"),
    )),
    ("latent/methods/soft/method.py", SOFT, (
        ("labels a latent late", "thought.states_UKD[:, :-1].flatten(0, 1), parts",
         "thought.states_UKD[:, 1:].flatten(0, 1), parts"),
        ("label_weight ignored", "apart.weight = self.config.label_weight", "apart.weight = 1.0"),
        ("padding is mixed in", "(e_NTD * real_NT1).sum(1) / real_NT1.sum(1)", "e_NTD.mean(1)"),
        ("cross-entropy for KL", "((often_M / size_M).log() - logp_M)", "(-logp_M)"),
        ("long parts count for more", "- logp_M) / size_M).sum()", "- logp_M)).sum()"),
        ("parts overlap", "chain[a : max(b, a + 1)]", "chain[a : b + 1]"),
        ("top_k ignored", "config.top_k or None", "None"),
        ("a control is led", "if not self.recycles:", "if False:"),
    )),
    ("latent/halting.py", "tests/latent/test_methods.py", (
        ("the entropy of the state before", 'self.lens(h_PD), nothing_P)', 'self.lens(states[0]), nothing_P)'),
    )),
    ("latent/methods/hrpo/method.py", HRPO, (
        ("mixtures are not at an embedding's scale", "p_BV / p_BV.norm(dim=-1, keepdim=True)", "p_BV"),
        ("the mixture alone at another temperature", "p_BV = logits_BV.softmax(-1)",
         "p_BV = (logits_BV * self.temperature).softmax(-1)"),
        ("gates swapped", "self.r(e_BD), self.i(e_BD), self.decay", "self.i(e_BD), self.r(e_BD), self.decay"),
        ("gates of the mixture", "self.r(e_BD), self.i(e_BD)", "self.r(y_BD), self.i(y_BD)"),
        ("Lambda of the whole exponent", "u_D ** (-1 / 8) - 1", "1 / u_D - 1"),
        ("tokens drawn at no temperature", "Categorical(logits=self.gate[0].logits(h_BD)",
         "Categorical(logits=self.gate[0].backbone[0].head(h_BD)"),
        ("rates of their own ignored", '"feedback.": self.config.gate_lr}', '"feedback.": 1.0}'),
        ("the answer after a short chain waits", "if min(map(len, rows)) < k:", "if False:"),
        ("the stop is not taught", "answered), *stop.values()]", "answered)]"),
        ("long chains are cut", "if k and sum(steps) > k:", "if False:"),
    )),
    ("latent/methods/control.py", HRPO, (
        ("a control draws tokens", "if self.policy is not None and not self.policy.around:", "if False:"),
    )),
    ("latent/halting.py", f"{HRPO} {COLAR}", (
        ("stops a latent early", "(i_K == used_B[:, None])", "(i_K == used_B[:, None] - 1)"),
        ("asked after the last latent", "& (i_K < most)", ""),
        ("asked after the chain", "(i_K <= used_B[:, None])", "(i_K <= used_B[:, None] + 1)"),
    )),
    ("latent/methods/colar/method.py", COLAR, (
        ("a mean for the root", "to(e_BKrD.dtype).sqrt()[..., None]", "to(e_BKrD.dtype)[..., None]"),
        ("targets learn, too", "x_ND.detach(), self.head(", "x_ND, self.head("),
        ("another r is told", "self.told(r - 1)", "self.told(0 * r)"),
        ("r is never the largest", "batch.draw_below(self.config.r_max)", "batch.draw_below(self.config.r_max - 1)"),
        ("a sum over coordinates", ".sum() / x_ND.shape[-1], len(x_ND))", ".sum(), len(x_ND))"),
        ("no variance in the error", "apart_ND = apart_ND + dist.variance", "pass"),
        ("not in units of the embeddings", "(apart_ND / self.head.scale.square())", "apart_ND"),
        ("always a group's first token", "(u_BK[:, : self.real_BK.shape[1]] * self.sizes_BK).long()",
         "(0 * u_BK[:, : self.real_BK.shape[1]] * self.sizes_BK).long()"),
        ("latent_weight ignored", "replace(latent, weight=self.config.latent_weight)", "latent"),
        ("the number of latents says nothing", "min(self.config.r_max, -(-self.steps * self.config.r // steps))",
         "self.config.r"),
        ("predictions at another scale", "return self.scale * self.mlp", "return self.mlp"),
    )),
    ("latent/methods/colar/method.py", "tests/latent/test_every_method.py", (
        ("a control is led", "if self.recycles:", "if True:"),
    )),
    ("latent/methods/sequence.py", COLAR, (
        ("the text begins after the latents that were given", "context.skip(self.stride * (room - k))", "context"),
    )),
    ("latent/methods/sequence.py", "tests/latent/test_every_method.py", (
        ("what a control is fed is said to cost something", "if self.recycles and self.feedback", "if self.feedback"),
    )),
    ("latent/methods/feedback.py", "tests/latent/test_every_method.py", (
        ("a feedback that does not say what it costs is free",
         "in feedback.parameters() if p.ndim == 2", "in feedback.parameters() if p.ndim == 9"),
    )),
    ("latent/methods/pccot/method.py", PCCOT, (
        ("a refresh more", "range(self.config.iterations)", "range(self.config.iterations + 1)"),
        ("fed their own states", "torch.cat([h_PD[:, None], states_PKD[:, :-1]], 1)", "states_PKD"),
        ("latents see the guesses before them", "self.backbone.step(x_PKD, before, self.stride)",
         "self.backbone.step(x_PKD, longer, self.stride)"),
        ("edits are ignored", "if edit is not None:", "if False:"),
        ("refreshes cost nothing in sequence", "(self.config.iterations + 1 if used else 0)", "(2 if used else 0)"),
        ("refreshes cost no FLOPs", "return once + again * (used", "return once + 0 * (used"),
        ("a control is refreshed", "if not self.recycles:\n            return super()._at",
         "if False:\n            return super()._at"),
    )),
    ("latent/methods/kava/eviction.py", KAVA, (
        ("attention to all that is read", "real_BC[:, None, None]\n", "1.0\n"),
        ("shares are not taken", "share_LBHTC = a_LBHTC / a_LBHTC.sum(-1, keepdim=True)",
         "share_LBHTC = a_LBHTC / torch.ones_like(a_LBHTC)"),
        ("a mean over the heads of a group", "(heads, -1)).amax(3)", "(heads, -1)).mean(3)"),
        ("heads grouped the other way", "share_LBHTC.unflatten(2, (heads, -1)).amax(3)",
         "share_LBHTC.unflatten(2, (-1, heads)).amax(2)"),
        ("keys of any length", "F.normalize(k_LBHCd, dim=-1)", "k_LBHCd"),
        ("padded keys count", "dim=-1) * real_BC[:, None, :, None]", "dim=-1)"),
        ("the mean over padding, too", "real_BC.sum(1).clamp_min(1)[:, None, None]", "real_BC.shape[1]"),
        ("alike is kept", "mean_LBHC.neg()", "mean_LBHC"),
        ("the worst are kept", "argsort(dim=-1, descending=True, stable=True)", "argsort(dim=-1, stable=True)"),
        ("in the order of their scores", "best[..., :size].sort(-1).values", "best[..., :size]"),
        ("padding is kept", 'score_LBHC.masked_fill(~real_BC[:, None], float("-inf"))', "score_LBHC"),
    )),
    ("latent/methods/kava/method.py", KAVA, (
        ("the chain learns, too", "    @torch.no_grad()\n    def compressed", "    def compressed"),
        ("weight ignored", "Mean(total, count, self.config.kv_weight)", "Mean(total, count)"),
        ("lambda the other way round", "weight = self.config.importance", "weight = 1 - self.config.importance"),
        ("asked by the chain, too", "(place_T >= chain_B1 - 1) & (place_T <= last_B1)", "(place_T <= last_B1)"),
        ("asked a position late", "(place_T >= chain_B1 - 1)", "(place_T >= chain_B1)"),
        ("asked by padding, too", "(place_T >= chain_B1 - 1) & (place_T <= last_B1)", "(place_T >= chain_B1 - 1)"),
        ("the answer is evicted to, too", "place_T < chain_B1,", "place_T <= chain_B1,"),
        ("the keys' targets for values", "self.apart(v_LBHKd, v_LBHMd", "self.apart(v_LBHKd, k_LBHMd"),
        ("keys alone", "(self.apart(k_LBHKd, k_LBHMd, real_BM) + self.apart(v_LBHKd, v_LBHMd, real_BM)) / 2",
         "self.apart(k_LBHKd, k_LBHMd, real_BM)"),
        ("the latents of the first pass", "else thought[-1]", "else thought[0]"),
        ("the last latents have the targets", "x_LBHKd[..., :m, :]", "x_LBHKd[..., -m:, :]"),
        ("latents without a target learn", "(apart_LBHMd * real_BM[:, None, :, None]).sum()", "apart_LBHMd.sum()"),
        ("always in standard deviations", "if self.config.kv_std:", "if True:"),
        ("the deviation of padding, too", "(x_LBHMd - mean_LB[..., None, None, None]) * real_B1M1",
         "(x_LBHMd - mean_LB[..., None, None, None])"),
        ("a sum over layers", "/ (layers * heads * width)", "/ (heads * width)"),
        ("a row counts as one", "sum(min(n, self.config.n_latent) for n", "sum(min(n, 1) for n"),
    )),
    ("latent/methods/kava/method.py", "tests/train/test_checks.py", (
        ("chains are not asked for", "not any(sum(self.chain(steps)) for steps in chains)", "False"),
        ("chains with their last step", "sum(self.chain(steps)) for steps in chains", "steps for steps in chains"),
    )),
    ("latent/methods/sequence.py", EVERY, (
        ("0 latent steps are all of them", "trained if steps is None else steps", "trained if not steps else steps"),
    )),
)  # fmt: skip
