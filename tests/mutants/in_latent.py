"""Mutants of latent/methods/, and of the taps."""

METHODS, CONTROLS, CURRICULUM = (f"tests/latent/test_{name}.py" for name in ("methods", "controls", "curriculum"))
TAPS, LAYERS = "tests/latent/test_taps.py tests/latent/test_open_taps.py", "tests/eval/test_readings.py"
BY_HAND_SFT, RUNS = "tests/train/test_wiring.py", "tests/train/test_runs.py"

COT2 = "tests/latent/test_cot2.py"

TEXT = "tests/latent/test_text_graph.py::test_a_rollout_is_that_of_its_noise"
GRAPHS = "tests/latent/test_text_graph.py::test_one_graph_serves_every_text_of_its_kind"

GROUPS = (
    ("latent/methods/cot2/method.py", COT2, (
        ("latents are taught a step late", "states_UKD[:, every - 1 : -1 : every]", "states_UKD[:, every::every]"),
        ("step_weight ignored", "step_loss.weight = self.config.step_weight", "step_loss.weight = 1.0"),
        ("no teacher", "self.config.teacher and self.recycles", "False"),
        ("a control is fed the targets", "self.config.teacher and self.recycles", "self.config.teacher"),
    )),
    ("latent/methods/frontier.py", COT2, (
        ("cross-entropy for KL", "torch.special.xlogy(p_BKV, p_BKV) - p_BKV", "-p_BKV"),
        ("every latent is taught", "taught = range(every, k + 1, every)", "taught = range(1, k // every + 1)"),
        ("a mean over latents", "return Mean(kl, b),", "return Mean(kl, b * k),"),
        ("latents beyond the last step begin again", "return min(latent, steps) if steps <= k else",
         "return 1 + (latent - 1) % steps if steps <= k else"),
        ("a long chain is cut", "else -(-latent * steps // k)", "else latent"),
    )),
    ("latent/policies/gaussian/policy.py", "tests/latent/test_policies.py", (
        ("densities have no digit after the point in bfloat16", "torch.promote_types(x_BD.dtype, torch.float32)",
         "x_BD.dtype"),
    )),
    ("latent/methods/coconut/method.py", CURRICULUM, (
        ("without latents some batches are chains", "stage > 0 and self.config.n_latent and", "stage > 0 and"),
        ("a stage ends an update late", "self.in_stage == self.config.stage_steps > 0",
         "self.in_stage > self.config.stage_steps > 0"),
    )),
    ("latent/methods/icot/method.py", "tests/latent/test_icot.py", (
        ("what is judged has lost a token more", "int(self.updates) - 1 - self.config.whole",
         "int(self.updates) - self.config.whole"),
    )),
    ("latent/methods/control.py", "tests/latent/test_hrpo.py", (
        ("a control learns at the gate's rate", 'if not name.startswith("feedback.")', "if True"),
    )),
    ("latent/policies/tokens/policy.py", COT2, (
        ("temperature ignored", " / self.config.temperature", ""),
        ("the sum of embeddings", ".mean(1)", ".sum(1)"),
        ("one token", "expand(-1, self.config.k, -1)", "expand(-1, 1, -1)"),
        ("greedy answers never draw", 'if self.config.judged == "method":', "if True:"),
        ("padding is part of a prompt's seed", "real in zip(row, mask) if real]", "real in zip(row, mask)]"),
        ("the token before", "noise_BK, right=True)", "noise_BK, right=True).sub(1)"),
        ("a stop is drawn as a thought", 'if kind != "thought":', "if False:"),
    )),
    ("latent/methods/sequence.py", COT2, (
        ("supervised training asks the policy", "self.policy if choose.random else None", "self.policy"),
    )),
    ("latent/cache.py", "tests/latent/test_backbone.py", (
        ("of a longer pass the last positions see all", "isinstance(visible_BTS, str) and 1 < t < self.size", "False"),
    )),
    ("latent/backbone.py", "tests/latent/test_backbone.py", (
        ("hooks are not called", "if self.layers is None or self.hooked:", "if self.layers is None:"),
        ("kernels run under a hook", "return bool(self._taps) or self.hooked", "return bool(self._taps)"),
        ("hooks of transformers' own count", '.startswith("transformers.")', '.startswith("nothing.")'),
        ("embeddings after a prompt are contiguous", "further_K = stride * torch", "further_K = torch"),
    )),
    ("latent/generate.py", TEXT, (
        ("who has ended goes on writing", "value_B.masked_fill(~live_B, end)", "value_B"),
        ("a graph's tokens are not at the temperature",
         "self.backbone.head(h_BD) / self.temperature", "self.backbone.head(h_BD)"),
        ("text goes on from the state before the last", "states_BTD[:, -1:], context, live_B",
         "states_BTD[:, :1], context, live_B"),
        ("more noise at once than is said", "n = min(n, max(1, _NOISE // (4 * rows * values)))", "pass"),
    )),
    ("latent/thought.py", TEXT, (
        ("a draw ahead is another than a draw", "return (dist.probs / noise_BV).argmax(-1)",
         "return (dist.probs * noise_BV).argmax(-1)"),
    )),
    ("latent/backbone.py", GRAPHS, (
        ("a text's graph reads no weights", "text, k, 1, head,", "text, k, 1, None,"),
    )),
    ("latent/thought.py", COT2, (
        ("a share draws for itself", "return self.sample(dist.base_dist)", "return dist.sample()"),
    )),
    ("latent/plain.py", "tests/train/test_config.py", (
        ("new fields change old ids", " and value != _default(f))", ")"),
        ("fields that only say how are in ids", "f.metadata != HOW and value", "value"),
        ("classes are in no id", '{"class": type(config).__name__} | kept', "kept"),
        ("a changed field is not told", "elif written[f.name] != plain(value):", "elif False:"),
        ("texts pass for numbers", "if hint in (int, str, bool):", "if False:"),
    )),
    ("latent/methods/sim/method.py", COT2, (
        ("the head reads other latents", "states_BKD[:, every - 1 : -1 : every]", "states_BKD[:, : -every]"),
        ("the decoder reads other latents", "states_BKD[:, every::every]", "states_BKD[:, 1 : -every + 1 or None]"),
    )),
    ("latent/methods/sim/method.py", BY_HAND_SFT, (
        ("steps supervised a latent early", "states_BKD[:, 1:].flatten(0, 1)", "states_BKD[:, :-1].flatten(0, 1)"),
        ("steps supervised a latent late", "[b * k + i for b, i, _ in", "[b * k + (i + 1) % k for b, i, _ in"),
        ("steps of another row", "[b * k + i for b, i, _ in",
         "[(b + 1) % len(batch.steps) * k + i for b, i, _ in"),
        ("step_weight ignored", "step_loss.weight = self.config.step_weight", "step_loss.weight = 1.0"),
        ("no early stops in training", "torch.where(batch.draw_rows() < 0.5, k, used_B)", "used_B * 0 + k"),
        ("stops before a number that suffices", "[numbers + [k] * (k - len(numbers)) for", "[[*range(1, k + 1)] for"),
        ("never all but the last", "list(range(n, k + 1))", "list(range(n, max(n + 1, k)))"),
        ("every latent is supervised", "self.dealt(len(steps))))[every - 1 :: every]", "self.dealt(len(steps))))"),
        ("early stops that are off", 'and self.config.early_stops != "never"', ""),
        ("a stop a latent late", "[numbers[0] for numbers", "[numbers[0] + 1 for numbers"),
        ("stop_weight ignored", "first_B, k, self.config.stop_weight)", "first_B, k)"),
        ("chains dealt unevenly", "(reached(i, k, n), reached(i + 1, k, n))", "(i * n // k, (i + 1) * n // k)"),
        ("the step's tokens in reverse", "unflatten(-1, (t, -1))", "unflatten(-1, (t, -1)).flip(1)"),
    )),
    ("latent/methods/sim/method.py", CURRICULUM, (
        ("a chain at rest needs all its latents", "while n > 1 and", "while False and"),
        ("any latent after the first that suffices", "[i for i in numbers if not steps or steps[reached(i",
         "[i for i in numbers if not steps or steps[-1] in steps[:i] or steps[reached(i"),
        ("what a latent should have reached", "return reached(latent, self", "return reached(latent - 1, self"),
    )),
    ("latent/methods/sim/method.py", f"{RUNS}::test_a_chain_that_no_latent_can_give_is_refused_before_training", (
        ("steps that are too long are not refused", "if longest > self.config.step_tokens:", "if False:"),
    )),
    ("latent/methods/coconut/method.py", BY_HAND_SFT, (
        ("earlier ignored", "batch.draw() < self.config.earlier", "False"),
        ("earlier stages count for the next", "if self.drawn == self.stage:", "if True:"),
        ("the drawn stage may be this one", "batch.draw_below(stage) if", "batch.draw_below(stage + 1) if"),
    )),
    ("latent/methods/coconut/method.py", METHODS, (
        ("a stage more or less", "n_latent // config.latents_per_step + 1", "n_latent // config.latents_per_step"),
        ("stage_steps an update late", "self.in_stage == self.config.stage_steps",
         "self.in_stage > self.config.stage_steps"),
        ("the count goes on in the next stage", "self.in_stage.zero_()", "pass"),
        ("steps_written ignores the stage", "max(0, chain - int(self.stage))", "chain"),
    )),
    ("latent/methods/coconut/method.py", CURRICULUM, (
        ("the last stage keeps the rest of a long chain", "stage if stage < self.last else max(map(len, batch.steps))",
         "stage"),
        ("the average is believed at once", "self.in_stage >= _FEWEST", "True"),
        ("a stage ends when it is not learned", "self.exact[0] > self.config", "self.exact[0] < self.config"),
        ("the average goes on in the next stage", "self.exact.zero_()", "pass"),
        ("a latent reaches one step, whatever its stage holds",
         "min(-(-latent // self.config.latents_per_step), chain)",
         "min(latent, chain)"),
        ("latents_per_step ignored", "min(stage * self.config.latents_per_step,", "min(stage,"),
    )),
    ("latent/methods/feedback.py", METHODS, (
        ("soft is hidden", "return self.backbone[0].mix(h_BD, self.top_k, self.temperature)", "return h_BD"),
    )),
    ("latent/methods/feedback.py", CURRICULUM, (
        ("the norm's scale ignored", "F.rms_norm(h_BD, h_BD.shape[-1:], self.scale)",
         "F.rms_norm(h_BD, h_BD.shape[-1:])"),
    )),
    ("latent/methods/sequence.py", METHODS, (
        ("latents at contiguous positions", "self.backbone.step(x_PD[:, None], context.skip(self.stride - 1))",
         "self.backbone.step(x_PD[:, None], context)"),
        ("the text begins where the last latent is", "context.skip(self.stride * (room - len(states) + 1))", "context"),
        ("later latents seen after a stop", ">= used_U[:, None]", "> used_U[:, None]"),
        ("the text follows the last state", "device=used_U.device), used_U]", "device=used_U.device), -1]"),
    )),
    ("latent/methods/terms.py", METHODS, (
        ("the text is read a token late", "backbone.embed(ids_UT[:, :-1])", "backbone.embed(ids_UT[:, 1:])"),
    )),
    ("latent/methods/terms.py", CURRICULUM, (
        ("exact: one right token will do", "share(hit_BT.all(1))", "share(hit_BT.any(1))"),
    )),
    ("latent/methods/sequence.py", CURRICULUM, (
        ("fewer steps than in training begin the text elsewhere", "max(k, trained), self.stop", "k, self.stop"),
    )),
    ("latent/methods/terms.py", BY_HAND_SFT, (
        ("losses are means over rows", "Mean(-logp_N.sum(), len(logp_N))", "Mean(-logp_N.sum(), len(hit_BT))"),
    )),
    ("latent/methods/sequence.py", CONTROLS, (
        ("known inputs cost a pass each", "(used if waits else min(used, 1))", "used"),
    )),
    ("latent/methods/cot/method.py", CONTROLS, (
        ("every ignored in what is written", "sum(one_in(self.config.every, steps))", "sum(steps)"),
    )),
    ("latent/methods/cot/method.py", CURRICULUM, (
        ("every ignored in training", "batch.chain(every=self.config.every)", "batch.chain()"),
    )),
    ("latent/methods/no_cot/method.py", METHODS, (
        ("no-CoT is trained on the chain", "pad_right(batch.answers, batch.pad, batch.prompt.ids_BT.device)",
         "batch.chain()"),
    )),
    ("latent/methods/fixed/method.py", f"{CONTROLS} {CURRICULUM}", (
        ("the state is fed back after all", "return self.embedding.expand_as(h_BD)", "return h_BD"),
    )),
    ("latent/backbone.py", f"{CONTROLS} {CURRICULUM}", (
        ("learned inputs not at the vocabulary's scale", "return self.embedding_rms * torch.", "return torch."),
    )),
    ("latent/methods/pause/method.py", f"{CONTROLS} {CURRICULUM}", (
        ("tokens come again from the first", ".clamp(max=len(self.table) - 1)", " % len(self.table)"),
        ("all places have one token", "torch.arange(k, device=self.table.device)", "torch.zeros(k, dtype=torch.long)"),
    )),
    ("latent/methods/recurrent/method.py", METHODS, (
        ("supervised on the step after", "(steps[:r] + [answer]", "(steps[1 : r + 1] + [answer]"),
        ("nothing but the answer supervised", 'if self.config.supervise == "steps" else [answer] * r',
         "if False else [answer] * r"),
        ("the coda skipped", "self.backbone.loop(s_BTD, self.coda,", "self.backbone.loop(s_BTD, range(0),"),
        ("no norm at the end", "self.layers.norm(h_BTD[:,", "(h_BTD[:,"),
        ("the first positions read out", "-self.config.answer_tokens :])", ": self.config.answer_tokens])"),
    )),
    ("latent/methods/recurrent/method.py", CURRICULUM, (
        ("always r_max in training", "self.config.r_min + batch.draw_below(self.config.r_max + 1 - self.config.r_min)",
         "self.config.r_max"),
        ("r_max never drawn", "(self.config.r_max + 1 - self.config.r_min)", "(self.config.r_max - self.config.r_min)"),
        ("exact of the first recurrence", "share(exact_BR[:, -1])", "share(exact_BR[:, 0])"),
    )),
    ("latent/methods/recurrent/method.py", TAPS, (
        ("a recurrence early", "return calls[step].at(-1)", "return calls[max(0, step - 1)].at(-1)"),
    )),
    ("latent/methods/base.py", TAPS, (
        ("a latent late", "return call.at(step - 1)", "return call.at(min(step, call.length - 1))"),
    )),
    ("latent/methods/base.py", LAYERS, (
        ("inner layers are read without the norm", "else self.backbone.norm(states)", "else states"),
    )),
    ("latent/taps.py", TAPS, (
        ("the first positions kept", "narrow(dim, x.shape[dim] - self.keep, self.keep)", "narrow(dim, 0, self.keep)"),
        ("what is not kept is held", "return part if x.requires_grad else part.clone()", "return part"),
        ("layers in the model's order", "{n: recorded[n] for n in tap.layers if n in recorded}",
         "{n: recorded[n] for n in sorted(recorded)}"),
        ("layers from the end are one too low", "numbers.append(n % (depth + 1))", "numbers.append(n % max(1, depth))"),
        ("K and V are not the model's own", "tap.kept(k, 2), tap.kept(v, 2)", "tap.kept(k.clone(), 2), tap.kept(v, 2)"),
        ("a tap gets the others' layers", "if n in tap.kv:", "if n > 0:"),
        ("weights beyond the position", ": a.shape[3] - later]", ": a.shape[3]]"),
        ("padding is not said", "None if mask_BT is None else tap.kept(mask_BT, 1)", "None"),
    )),
    ("latent/layers.py", TAPS, (
        ("the last block at the wanted positions alone", "keep = max(keep, recording.last)", "keep = keep"),
        ("what goes into a loop lacks the constant", "recording.state(i, entered_BTD)", "recording.state(i, args[1])"),
    )),
    ("latent/backbone.py", TAPS, (
        ("the training chain runs under a tap", "self.layers is not None and not self.watched:",
         "self.layers is not None and not self.hooked:"),
        ("kernels run under a tap", "if not k or self.watched:", "if not k or self.hooked:"),
        ("a copy's taps are open", 'self.__dict__ | {"_taps": [], "_hooks": None}', 'self.__dict__ | {"_hooks": None}'),
        ("an error leaves the tap open", "        try:\n            yield tap\n        finally:\n",
         "        yield tap\n        if True:\n"),
    )),
    ("latent/families.py", TAPS, (
        ("padding between turns takes a place in a window", "if seen_BS is None or not (", "if True or not ("),
        ("attention stays eager", "decoder.set_attn_implementation(before)", "pass"),
        ("K and V as cached, past the graph", "*cache.added[n], w_BHTS",
         "*(x[:, :, -x_BTD.shape[1] :] for x in (longer[n].k, longer[n].v)), w_BHTS"),
    )),
    ("latent/cache.py", TAPS, (
        ("weights of the first positions", "seen = visible_BTS[..., -t:, :]", "seen = visible_BTS[..., :t, :]"),
        ("shared prompts without their padding", "seen_B11S = F.pad(seen_BS,", "_ = F.pad(seen_BS,"),
        ("no dropout", "a = F.dropout(weights, dropout) @ v", "a = weights @ v"),
    )),
)  # fmt: skip
