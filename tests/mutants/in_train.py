"""Mutants of train/."""

OPTIMIZER, BY_HAND_SFT, BY_HAND_RL = (f"tests/train/test_{name}.py" for name in ("optimizer", "wiring", "wiring_rl"))
LOSSES, PROCESSES, CHECKS = (f"tests/train/test_{name}.py" for name in ("losses", "processes", "checks"))
ALGORITHMS = "tests/train/test_algorithms.py"
MICRO = "tests/train/test_micro_batches.py"
FEW = "tests/train/test_frontier_runs.py::test_a_run_learns_from_so_many_problems_and_one_that_starts_from_it_too"
SELECTION, DISK, RUNS = (f"tests/train/test_{name}.py" for name in ("selection", "persistence", "runs"))
DAMAGED = f"{DISK}::test_a_checkpoint_that_is_not_what_was_written_is_refused_for_the_one_before_it"
EDITED = f"{DISK}::test_a_log_that_was_edited_is_said"
CUT = f"{DISK}::test_a_log_that_does_not_go_with_its_checkpoint_is_said"
RESUME = f"{RUNS}::test_a_killed_run_goes_on_as_if_never_stopped"
SIGNALS = (
    f"{SELECTION}::test_a_validation_that_a_signal_came_before_is_made_up_for "
    f"{SELECTION}::test_an_end_that_a_signal_comes_with_is_an_end"
)
CURRICULUM = f"{SELECTION}::test_of_a_curriculum_the_last_stage_alone_is_selected_from_and_stopped_in"
WEIGHTS = f"{RUNS}::test_a_run_is_not_taken_for_one_from_other_weights"
BEST = f"{SELECTION}::test_the_best_weights_are_those_of_a_run_that_ends_with_them"

GROUPS = (
    ("train/loop.py", OPTIMIZER, (
        ("the rate does not decay", "max(1, c.warmup)) * down", "max(1, c.warmup))"),
        ("no warm-up", "min(1.0, (step + 1) / max(1, c.warmup)) * down", "down"),
        ("warm-up an update late", "min(1.0, (step + 1)", "min(1.0, step"),
        ("decay_to ignored", "(1 - c.decay_to) *", ""),
        ("the decay begins at once", "c.steps * (1 - c.decay)", "0"),
        ("weight decay ignored", "weight_decay=c.weight_decay", "weight_decay=0.0"),
        ("beta2 ignored", "betas=(0.9, c.beta2)", "betas=(0.9, 0.999)"),
        ("stop_at ignored", "bool(enough) and", "False and"),
        ("the log has one update, not their mean", "= together(window)", "= together(window[-1:])"),
        ("the log's window is never emptied", "window.clear()", "pass"),
        ("the same seed at every step", "seed_of(self.record.run.seed, step, self.engine.rank)",
         "seed_of(self.record.run.seed, 0, self.engine.rank)"),
        ("the same seed on every process",
         "seed_of(self.record.run.seed, step, self.engine.rank)",
         "seed_of(self.record.run.seed, step, 0)"),
        ("the same seed in every run", "seed_of(self.record.run.seed, step, self.engine.rank)",
         "seed_of(0, step, self.engine.rank)"),
    )),
    ("train/data.py", OPTIMIZER, (
        ("seeds of steps and processes coincide", "(seed * 1_000_003 + step) * 1_009 + rank + 1",
         "seed * 1_000_003 + step + rank + 1"),
        ("the same problems at every step", "env.train_batch(stream, step,", "env.train_batch(stream, 0,"),
    )),
    ("train/data.py", FEW, (
        ("all problems are learned from", "if not run.train.problems:", "if True:"),
        ("other few problems after a start", "pool(env, run.seed,", "pool(env, stream,"),
        ("the same few at every step", 'f"few {stream} {step}"', 'f"few {stream}"'),
    )),
    ("train/algorithms/expert.py", ALGORITHMS, (
        ("wrong rollouts are learned", "(reward_PG >= self.accept).to", "(reward_PG >= 0).to"),
    )),
    ("train/loop.py", BY_HAND_SFT, (
        ("one drawing for all steps", "seed_of(self.record.run.seed, step, 0)", "seed_of(self.record.run.seed, 0, 0)"),
        ("weights of a loss's terms ignored", "[m.weight * Mean(", "[Mean("),
        ("weights ignored in the logged loss", "[m.weight * x for", "[x for"),
    )),
    ("train/loop.py", BY_HAND_RL, (
        ("stop_lr ignored", 'getattr(c, "stop_lr", 1.0)', "1.0"),
        ("the groups' own rates ignored", 'c.lr * group["scale"]', "c.lr"),
    )),
    ("train/loop.py", SIGNALS, (
        ("an end that comes with a signal is forgotten", 'self.counters["ended"] = True', "pass"),
        ("a validation that a signal came before is not made", "if self.selection and (self.done or",
         "if self.selection and (False or"),
    )),
    ("train/loop.py", CURRICULUM, (
        ("a curriculum stops where its first stage is learned", " and self.method.in_last_stage", ""),
    )),
    ("train/selection.py", CURRICULUM, (
        ("a curriculum's first stages are selected from", "or trainer.method.in_last_stage", "or True"),
    )),
    ("train/start.py", WEIGHTS, (
        ("other weights of the same size are the same", '{path.name} {digest(path)}', '{path.name}'),
    )),
    ("train/start.py", f"{RUNS}::test_a_curriculum_begins_where_its_config_says_and_rl_goes_on_from_where_it_ended", (
        ("a curriculum goes on where its start had ended", "if name not in method.on_host}", "}"),
    )),
    ("train/rlvr.py", f"{RUNS}::test_the_first_of_several_minibatches_is_on_policy_however_scores_round", (
        ("fresh rollouts are scored twice", "if fresh:\n            old", "if False:\n            old"),
    )),
    ("train/sources.py", "tests/train/test_sources.py", (
        ("what a class refers to is not its code", "left |= referred(every[i]) - seen", "pass"),
        ("what a class imports is not its code", "left += imported(needed, module, path)", "pass"),
        ("what that imports is not its code", "left += imported(whole, module, path)", "pass"),
        ("all of a file is its classes' code", "needed = needed_for(names, path, calls)", "needed = statements(path)"),
        ("relative imports are not followed", '"." * each.level + ', ""),
    )),
    ("train/resume.py", RESUME, (
        ("a resume forgets the weights", 'into = {f"method/{n}": v for', 'into = {f"method/{n}": v.clone() for'),
        ("a resume forgets the optimizer", "trainer.optimizer.state[p][name] = into[key] =", "into[key] ="),
        ("a resume begins at step 0", "trainer.done = trainer.saved = saved.step", "trainer.done = trainer.saved = 0"),
        ("a resume leaves the later log", "trainer.record.go_back(trainer.start.ends if trainer.start else {})",
         "pass"),
    )),
    ("train/loop.py", f"{DISK}::test_a_loss_that_is_no_number_leaves_the_state_before_it", (
        ("a loss that is no number is taken",
         "if not (math.isfinite(length) and math.isfinite(loss)):", "if False:"),
    )),
    ("train/divergence.py", f"{DISK}::test_weights_that_are_not_finite_are_saved_nowhere", (
        ("weights that are not finite are saved", "if not engine.all_agree(not odd):", "if False:"),
    )),
    ("train/data.py", f"{DISK}::test_rl_saves_no_weights_that_are_not_finite_either", (
        ("a second run sees the first one's data again", "run.seed if run.init is None", "run.seed if True"),
    )),
    ("train/loop.py", EDITED, (
        ("save_every counts from 1", "self.done % c.save_every == 0", "self.done % c.save_every == 1"),
    )),
    ("train/loop.py", PROCESSES, (
        ("each process divides by its own count", "engine.sum([m.count for m in terms])",
         "[m.count for m in terms]"),
        ("processes share batches, not minibatches", "i * size + rank * own + j",
         "(rank * minibatches + i) * own + j"),
    )),
    ("train/loop.py", MICRO, (
        ("each micro-batch divides by its own count", "if len(parts) > 1:", "if False:"),
        ("only the last micro-batch is logged", "for _, found in parts]", "for _, found in parts[-1:]]"),
    )),
    ("train/engine.py", OPTIMIZER, (
        ("gradients not clipped", "clip_grad_norm_(params, limit)", "clip_grad_norm_(params, 1e9)"),
        ("gradients add up", "optimizer.zero_grad()", "pass"),
    )),
    ("train/engine.py", PROCESSES, (
        ("the processes' mean is taken for their sum", "(loss * self.world if self.world > 1 else loss).backward()",
         "loss.backward()"),
        ("a parameter that nobody used is decayed", "p.grad = p.grad if n else None", "pass"),
    )),
    ("train/distill.py", PROCESSES, (
        ("a batch draws from the global generator", '"terms", replace(batch, generator=trainer.generator(step))',
         '"terms", batch'),
        ("every process draws for the first rows", "(problems[i], trainer.rows[i])", "(problems[i], i)"),
    )),
    ("train/distill.py", "tests/latent/test_icot.py", (
        ("a curriculum never goes on", "trainer.method.begin_update()", "False"),
    )),
    ("train/distill.py", BY_HAND_SFT, (
        ("a curriculum is told nothing", "trainer.method.learned(logged)", "{}"),
    )),
    ("train/algorithms/grpo.py", ALGORITHMS, (
        ("the sample's standard deviation", "correction=0", "correction=1"),
        ("std_floor ignored", "clamp(min=self.std_floor)", "clamp(min=1e-6)"),
        ("the mean of all groups", "reward_PG - reward_PG.mean(1, keepdim=True)", "reward_PG - reward_PG.mean()"),
        ("rounding is a signal", "centred_PG.masked_fill(flat_P[:, None], 0.0)", "centred_PG"),
    )),
    ("train/algorithms/ppo.py", ALGORITHMS, (
        ("the last decision is a critic's", "next_B, carried_B = outcome_B,", "next_B, carried_B = 0 * outcome_B,"),
        ("the reward is discounted", "gamma_B = outcome_B.new_ones(outcome_B.shape)",
         "gamma_B = self.gamma * outcome_B.new_ones(outcome_B.shape)"),
        ("lambda ignored", "self.gamma * self.lam * carried_B", "self.gamma * carried_B"),
        ("kind after kind", "(d.turn, int(time), i, t)", "(d.turn, i, int(time), t)"),
        ("turns in one", "(d.turn, int(time), i, t)", "(0, -d.turn, int(time), i, t)"),
        ("what was not decided counts", "value_B.where(live_B, next_B)", "value_B"),
        ("the critic learns advantages", "(adv_B + value_B).where", "adv_B.where"),
        ("the critic's weight ignored", "weight=self.critic_weight)", "weight=1.0)"),
    )),
    ("train/losses.py", LOSSES, (
        ("the larger of the two, not the smaller", "torch.minimum(rho_BT", "torch.maximum(rho_BT"),
        ("clip bounds swapped", "clamp(1 - clip[0], 1 + clip[1])", "clamp(1 - clip[1], 1 + clip[0])"),
        ("entropy is punished", "gain + entropy * bonus", "gain - entropy * bonus"),
        ("what was not decided counts", "torch.where(mask_BT, torch.minimum(rho_BT * adv_BT, bounded_BT), 0)",
         "torch.minimum(rho_BT * adv_BT, bounded_BT)"),
        ("divided by all places", "made = mask_BT.sum()", "made = torch.ones_like(mask_BT).sum()"),
        ("clipped counts the others", "* adv_BT > bounded_BT", "* adv_BT < bounded_BT"),
        ("KL in the other direction", "ref.logp_BT.detach() - new.logp_BT", "new.logp_BT - ref.logp_BT.detach()"),
    )),
    ("train/losses.py", BY_HAND_RL, (
        ("KL as k1", "gap_BT.exp() - 1 - gap_BT", "-gap_BT"),
        ("the ratio's old policy carries gradient", "was.logp_BT.detach()).exp()", "new.logp_BT.detach()).exp()"),
    )),
    ("train/rlvr.py", BY_HAND_RL, (
        ("outcomes of another minibatch", "outcome_B[piece.rows(c.group)]", "outcome_B.roll(8)[piece.rows(c.group)]"),
        ("KL dropped", "[*losses, replace(kl, weight=c.kl)]", "[*losses, replace(kl, weight=0.0)]"),
        ("KL's sign", "weight=c.kl)", "weight=-c.kl)"),
        ("KL's weight", "replace(kl, weight=c.kl)", "kl"),
        ("the old policy is the current one", "was = old[id(part)]", "was = [d.detached() for d in now]"),
        ("the reference is the current policy", "ref = score(reference, part", "ref = score(method, part"),
        ("clip bounds swapped where passed", "(c.clip_low, c.clip_high)", "(c.clip_high, c.clip_low)"),
        ("entropy not passed", "c.entropy)", "0.0)"),
        ("latents cost nothing", "- c.latent_cost * used_B", ""),
        ("scored at temperature 1", "engine.module(score, part, c.temperature)", "engine.module(score, part, 1.0)"),
        ("one epoch", "range(c.epochs)", "range(1)"),
    )),
    ("train/rlvr.py", f"{RUNS}::test_groups_without_spread_stop_the_run", (
        ("a run that cannot learn goes on", "if not all_right:", "if False:"),
        ("patience ignored", "if streak < settings(trainer).patience:", "if True:"),
    )),
    ("train/rlvr.py", "tests/train/test_reward_signal.py", (
        ("updates without a signal need not be in a row", '.get("flat", 0) + 1 if no_signal else 0',
         '.get("flat", 0) + no_signal'),
        ("answers judged by other problems", "problems[i // c.group]", "problems[i % len(problems)]"),
        ("sampler and trainer may differ", "if not bf16 and not float", "if False and not float"),
        ("in bfloat16, too", "if bf16 and not float", "if False and not float"),
        ("a text that was cut has ended", "& ~((d.value_BT == end)", "& ((d.value_BT == end)"),
    )),
    ("train/rlvr.py", "tests/train/test_micro_batches.py", (
        ("counts of an algorithm are not looked at", "if told != made:", "if False:"),
    )),
    ("train/loop.py", "tests/train/test_reward_signal.py", (
        ("extremes are averaged", 'max(v) if name.endswith("_max") else ', ""),
    )),
    ("train/losses.py", "tests/train/test_losses.py", (
        ("a rollout's decisions are not its mean", "weight_B1 = 1 / made_B", "weight_B1 = 1 + 0 * made_B"),
        ("rollouts without a decision do not count", "torch.full_like(made, len(decisions[0].mask_BT))", "made"),
    )),
    ("train/algorithms/expert.py", "tests/train/test_algorithms.py", (
        ("what is learned is clipped", "(now, fresh, outcome_B", "(now, old, outcome_B"),
    )),
    ("latent/backbone.py", "tests/latent/test_methods.py", (
        ("rows that do not fit are cut", "self.check_length(int(ends_B.max()))", "pass"),
        ("rows that fit alone are refused", "if reach <= self.positions or ends_B is None:", "if True:"),
    )),
    ("eval/judge.py", "tests/latent/test_turns.py", (
        ("a session is judged by its last turn", "turns[min(len(texts), len(turns)) - 1]", "turns[-1]"),
    )),
    ("train/checkpoint.py", f"{DISK}::test_the_last_checkpoints_are_kept_and_their_number_changes_no_id", (
        ("one checkpoint kept", "mine[:keep]", "mine[:1]"),
    )),
    ("train/checkpoint.py", f"{DISK}::test_a_checkpoint_of_another_run_is_refused_whatever_its_log", (
        ("another run's checkpoint taken", 'if about["run"] != run:', "if False:"),
    )),
    ("train/checkpoint.py", f"{DAMAGED} {EDITED}", (
        ("the oldest checkpoint first", "reverse=True", "reverse=False"),
        ("checksums not compared", "if digest(folder / name) != checksum:", "if False:"),
        ("the folder's name believed", "if folder.name != f\"step-{about['step']}\":", "if False:"),
        ("the log not compared", 'if why := unfit(about["logs"]):', "if why := None:"),
        ("the manifest not compared", "path.read_text() != rendered(about)", "False"),
    )),
    ("train/record.py", f"{CUT} {EDITED} {DISK}::test_a_kill_amid_judging_doubles_no_sample", (
        ("earlier starts forgotten", "[*before, now]", "[now]"),
        ("a log that was cut is not seen as such", 'if has < end["bytes"]:', "if False:"),
        ("a log that was edited is taken", 'if digest(path, end["bytes"]) != end["sha256"]:', "if False:"),
    )),
    ("train/record.py", f"{RUNS}::test_a_run_is_not_taken_for_one_on_other_data", (
        ("other data taken for the run's", 'if field(made, "data"', 'if False and field(made, "data"'),
    )),
    ("train/selection.py", f"{SELECTION}::test_of_equally_good_weights_the_later_are_kept", (
        ("of equally good ones the first", 'accuracy >= best["valid"]', 'accuracy > best["valid"]'),
    )),
    ("train/selection.py", f"{SELECTION}::test_what_is_validated_on_is_the_validation_split", (
        ("validated on test problems", 'env.problems("valid", level', 'env.problems("test", level'),
    )),
    ("train/selection.py", BEST, (
        ("the worst weights selected", 'accuracy >= best["valid"]', 'accuracy <= best["valid"]'),
        ("the last weights, whatever was selected", 'trainer.method.load_state_dict(best["method"])', "pass"),
        ("the best weights are not copied", '.to("cpu", copy=True)', '.to("cpu")'),
    )),
    ("train/checks.py", CHECKS, (
        ("golds not read back", 'check_golds(reasoner, env, turns["train"][:GOLDS], turns["test"])', "pass"),
        ("a run where nothing can be right goes on", 'cut["judge"] == len(test) or', "False and"),
        ("answers that a tokenizer makes long are cut", "reasoner.answer_tokens = answer * 5 // 4", "pass"),
        ("half of the problems not looked at", "in sorted(judged + learned, key", "in sorted(judged, key"),
    )),
    ("train/config.py", f"{RUNS}::test_an_arm_starts_from_the_run_of_the_arm_it_names", (
        ("arms start from no run", "runs[arm.init].id if arm.init in runs else arm.init", "arm.init"),
    )),
    ("train/start.py", f"{RUNS}::test_an_arm_starts_from_the_run_of_the_arm_it_names", (
        ("a run does not take over weights", "weights = inherited(method, start.method, run.init)", "weights = {}"),
    )),
    ("train/run.py", f"{RUNS}::test_the_seed_says_which_weights_a_run_begins_with"
     f" {RUNS}::test_a_run_is_judged_at_every_level_and_number_of_steps_asked_for"
     f" {RUNS}::test_an_arm_starts_from_the_run_of_the_arm_it_names", (
        ("runs of all seeds begin with the same weights", "torch.manual_seed(run.seed)", "torch.manual_seed(0)"),
        ("the other levels not judged", "return [p for problems in asked.values() for p in problems]", "return main"),
        ("the sweep is the trained number of steps", "steps=k, tick=tick,", "tick=tick,"),
    )),
)  # fmt: skip
