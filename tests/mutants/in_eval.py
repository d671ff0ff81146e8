"""Mutants of eval/, and of what paper/ makes from the records."""

VERIFY, DATA, ENVIRONMENTS = (f"tests/eval/test_{name}.py" for name in ("verify", "verify_data", "environments"))
FRONTIERS, MODULAR, SIGNS, REACH = (f"tests/eval/test_{name}.py" for name in ("frontiers", "modular", "signs", "reach"))
FORMS, E = f"{VERIFY}::test_the_table_of_forms_is_true", f"{ENVIRONMENTS}::test"
SAME = f"{FORMS} {E}_math_answers_are_compared_in_one_spelling"
CUPS = (
    f"{VERIFY}::test_cups_accepts_one_arrangement_of_all {FORMS} {E}_cups_oracle_composes_swaps"
    f" {E}_cups_parity_floor_is_the_best_guess_that_knows_the_parity {E}_cups_levels_have_so_many_live_swaps"
    f" {E}_every_place_has_every_swap_as_often"
)
UNDONE = (
    f"{E}_swaps_that_come_to_nothing_show_neither_by_number_nor_by_dots_how_many_are_needed"
    f" {E}_words_that_come_to_nothing_are_drawn_each_as_often {E}_rules_for_stopping_by_hand"
)
COUNTDOWN = (
    f"{VERIFY}::test_countdown_takes_the_target_exactly_and_each_number_once {FORMS}"
    f" {VERIFY}::test_countdown_reads_what_python_reads {E}_countdown_takes_any_right_expression_and_nothing_else"
)
WORDS = (
    f"{VERIFY}::test_gsm8k_takes_its_number_and_no_neighbour {FORMS} {E}_numbers_are_compared_as_numbers"
    f" {E}_sets_to_test_on_are_read_in_their_own_formats"
)
PROSQA = (
    f"{VERIFY}::test_prosqa_takes_the_target_alone {FORMS} {E}_prosqa_problems_are_what_they_say"
    f" {E}_closed_prosqa_has_no_shortcut_left {E}_options_come_in_either_order"
)
PRONTOQA = f"{VERIFY}::test_prontoqa_takes_one_of_two {FORMS} {E}_prontoqa_answers_follow_from_its_sentences"
STATS, JUDGE, COST, LM = (f"tests/eval/test_{name}.py" for name in ("stats", "judge", "cost", "lm_generation"))
COMMITTED = "tests/paper/test_build.py::test_what_is_committed_is_what_the_records_make"
FRONTIER = "tests/eval/test_readings.py::test_the_frontier_is_the_graphs_breadth_first_search"
X = "tests/eval/test_interchange.py::test"
STATES = (
    f"{X}_a_donors_arrangement_is_swapped_on_by_hand {X}_a_donors_sums_are_signed_on_over_all_signs"
    f" {X}_a_donors_values_are_taken_further_over_all_ways"
)
EXCHANGED = (
    f"{X}_pairs_and_chance_are_those_of_swaps_made_by_hand"
    f" {X}_a_donor_that_thought_less_gives_the_state_its_last_latent_is_made_of"
)
WRITTEN = (
    f"{LM}::test_texts_and_costs_are_the_judges_in_word_problems_too"
    f" {LM}::test_what_generation_is_asked_for_counts_for_its_own_requests"
)

GROUPS = (
    ("eval/environments/cups.py", CUPS, (
        ("any arrangement is right", "correct = said == [digit", "correct = True or [digit"),
        ("what is no arrangement is read", "if sorted(said) != self._valid:", "if not said:"),
        ("the first arrangement counts", "return said[-k:] if", "return said[:k] if"),
        ("the end of something longer counts", "if row is None or sum(map(str.isdigit, row[0])) % k or",
         "if row is None or"),
        ("swaps are not made", "cups[i], cups[j] = cups[j], cups[i]", "pass"),
        ("the floor of parity", '"parity": 2 / arrangements', '"parity": 1 / arrangements'),
        ("the last swap is always the same", 'rng.choices(self._names, k=level) + ["."]',
         'rng.choices(self._names, k=level - 1) + [self._names[0]] + ["."]'),
    )),
    ("eval/environments/cups.py", UNDONE, (
        ("fewer steps are needed", "if self.needed(moves) == level:", "if True:"),
        ("before any swap the cups stand nowhere", "return [self.named(self._valid), *self.oracle(moves)]",
         'return ["", *self.oracle(moves)]'),
        ("words are drawn swap by swap, not each as often", "words[swapped(at, i, j)] += ways",
         "words[swapped(at, i, j)] = 1"),
        ("pairs are of two swaps", "for move in rng.choices(self._names, k=spare // 2) for _ in range(2)]",
         "for move in rng.choices(self._names, k=spare)]"),
        ("odd levels, too", "(self.config.swaps - n) % 2 == 0", "True"),
        ("neighbours that are alike stay", "kept.pop()", "kept.append(moves[n])"),
    )),
    ("eval/environments/cups.py", FRONTIERS, (
        ("cups and swaps are the same words", '"=" if 1 < self.answer_tokens', '"" if 1 < self.answer_tokens'),
        ("the last tokens name more cups", "(i < self.cups % n)", "(i >= n - self.cups % n)"),
        ("the arrangement's first words do not count", 'list("".join(said[-n:]))', 'list("".join(said[-1:]))'),
    )),
    ("eval/environments/cups.py", STATES, (
        ("the donor's last swap is made again", "self.moved(state, problem.question.split()[step:])",
         "self.moved(state, problem.question.split()[max(0, step - 1) :])"),
    )),
    ("eval/environments/mnns.py", STATES, (
        ("sums below 0", "for more in left if value + more >= 0]", "for more in left]"),
        ("a chain holds the frontier", 'if told == "chain" and step else frontier)', "if False else frontier)"),
        ("a drawn chain is known", 'if told == "chains":', "if False:"),
    )),
    ("eval/environments/modular.py", STATES, (
        ("the largest value from a state", 'f"={min(min(ways_of(', 'f"={max(min(ways_of('),
    )),
    ("eval/interchange.py", EXCHANGED, (
        ("the donor's step is the problem's", "min(latent, max(n - 1, 0)), shift)", "latent, shift)"),
        ("patches that should change nothing count", "if answer is None or verify(env, problem, answer).correct else",
         "if answer is None else"),
        ("the donor is among the others", "if c != donors[b])", "if True)"),
        ("steps are not shifted", "len(problem.steps)) + shift", "len(problem.steps))"),
        ("the answer before the patch counts", "for text in (texts[b], baseline.texts[b])",
         "for text in (baseline.texts[b], texts[b])"),
    )),
    ("eval/environments/countdown.py", COUNTDOWN, (
        ("numbers used as often as one likes", "if Counter(used) != Counter(problem.data",
         "if set(used) != set(problem.data"),
        ("beyond the target", 'value == problem.data["target"]', 'value >= problem.data["target"]'),
        ("what stands after = is not compared", "if equals and evaluate(", "if False and evaluate("),
        ("division without a remainder", "else value / operand(depth)", "else Fraction(value // operand(depth))"),
        ("no precedence", 'while tokens and tokens[-1] in "*/":', 'while tokens and tokens[-1] in "*/+-" and False:'),
        ("more than the expression", "    if tokens:\n        raise", "    if False:\n        raise"),
    )),
    ("eval/environments/gsm8k.py", WORDS, (
        ("a tolerance of .5", '.get("within", 0)', '.get("within", "0.5")'),
        ("smaller is right", "abs(said - Fraction(", "(said - Fraction("),
        ("GSM-Hard within a hundredth", '{"within": "0.001"}', '{"within": "0.01"}'),
        ("the first mark counts", "in reversed(places)", "in places"),
        ("an earlier answer makes up for two", "except SeveralNumbers:\n            return None",
         "except SeveralNumbers:\n            continue"),
        ("sides that differ", "if len(values) > 1 or", "if"),
        ("ranges and lists", "_GOES_ON.match(rest) or", ""),
        ("a currency's sign lost", 'return -value if currency and currency[1] == "-" else value', "return value"),
        ("headings are answers", "if heading and (int(heading[1])", "if False and (int(heading[1])"),
    )),
    ("eval/environments/gsm8k.py", DATA, (
        ("thousands of a reference", 'gold = gold.replace(",", "")', 'gold = gold.split(",")[0]'),
    )),
    ("eval/environments/math500.py", VERIFY, (
        ("headings are answers", "if not _is_heading(place.text) or (place.closing and not named):", "if True:"),
        ("the first mark counts", "in reversed(places)", "in places"),
    )),
    ("eval/environments/equivalence.py", SAME, (
        ("an interval is a tuple", "said.kind != gold.kind or", ""),
        ("a part of a list is enough", "or len(said.parts) != len(gold.parts)", ""),
        ("sets are in order", 'if said.kind not in ("set", "union"):', "if True:"),
        ("units do not count", "if said.unit and gold.unit and said.unit != gold.unit:", "if False:"),
        ("variables do not count", "if said.variable and gold.variable and said.variable != gold.variable:",
         "if False:"),
        ("fractions need no lowest terms", "(said.reduced or said.value != gold.value)", "True"),
    )),
    ("eval/environments/answers.py", SAME, (
        ("thousands are a list", r"(?:,\d{3})+(?:\.\d+)?", r"(?:,\d{9})+(?:\.\d+)?"),
        ("a mixed number is its first half", "whole + Fraction(part, parts)", "whole"),
        ("a minus lost", 'sign = -1 if m["sign"] == "-" else 1', "sign = 1"),
        ("the mark's line is not left", 'line = text.find("\\n", begin, until)', "line = -1"),
    )),
    ("eval/environments/prosqa.py", PROSQA, (
        ("either option is right", "correct = said == statement(right)", "correct = said[0] == statement(right)[0]"),
        ("of whom it is said does not count", "correct = said == statement(right)",
         "correct = said[1] == statement(right)[1]"),
        ("two answers at once", 'if {said[2]} == set(re.findall(rf"\\b{said[1]} is an? (\\w+)", line)) else ()', ""),
        ("the other option is reachable too", "and i not in from_away", ""),
        ("closed problems have shortcuts", "balanced(rng, grown) if self.config.closed else", ""),
        ("the target named first", "rng.sample([name[graph.target], name[graph.other]], 2)",
         "[name[graph.target], name[graph.other]]"),
    )),
    ("eval/environments/prosqa.py", REACH, (
        ("more parents than told", "rng.choices(range(1, most + 1), PARENTS[:most])",
         "rng.choices(range(1, 6), PARENTS)"),
        ("options of any number of hops", "if d in hops and not", "if not"),
    )),
    ("eval/environments/prosqa.py", FRONTIER, (
        ("the frontier goes back", "for b in out.get(a, ())} - seen", "for b in out.get(a, ())}"),
    )),
    ("eval/environments/prontoqa.py", PRONTOQA, (
        ("any truth is right", 'correct = f"### {said}" == problem.answer', "correct = True"),
        ("both at once", "or len(named) != 1 or", "or not named or"),
        ("not does not count", "{has != negated}", "{has}"),
        ("the stranger has the property too", "{'not ' if has else ''}{asked} .\",\n        ]",
         "{'' if has else 'not '}{asked} .\",\n        ]"),
    )),
    ("eval/environments/mnns.py", FRONTIERS, (
        ("- before +", "1 if ways[i + 1][left - digit] else -1", "-1 if ways[i + 1][left + digit] else 1"),
        ("signs that are not best are drawn", "rng.randrange(plus + minus) < plus", "rng.randrange(2)"),
        ("the smallest sum of all", "if value >= 0)", "if value >= -9)"),
        ("the first sign is drawn, too, in a search", "[[digits[0]]]", "[[digits[0], -digits[0]]]"),
        ("only digits in order are of one split", "tuple(sorted(digits_of(problem))))", "tuple(digits_of(problem)))"),
        ("sums count once each", "ways[value] / whole", "1 / len(ways)"),
        ("the answer is in the frontier", "if step < len(digits) else", "if step <= len(digits) else"),
        ("all lengths are trained on", "return self.draw(rng, self.config.digits)",
         "return self.draw(rng, rng.choice(self.levels()))"),
    )),
    ("eval/environments/modular.py", MODULAR, (
        ("* before +", "options[0] if counts[0] else options[1]", "options[1] if counts[1] else options[0]"),
        ("the largest value", "min(ways_of(start, digits, prime))", "max(ways_of(start, digits, prime))"),
        ("a way that is not best is drawn", "rng.randrange(sum(counts)) >= counts[0]", "rng.randrange(2)"),
        ("values count once each", "ways[value] / whole", "1 / len(ways)"),
        ("the answer is in the frontier", "if step < self.config.digits else", "if step <= self.config.digits else"),
        ("a search that only adds", "for v in after(value, digit, self.config.prime)]",
         "for v in after(value, digit, self.config.prime)[:1] * 2]"),
        ("no modulus", "value * digit % prime", "value * digit"),
    )),
    ("eval/environments/signs.py", SIGNS, (
        ("the gold signs alone are right", "bool(total == target)", "bool(text.endswith(problem.answer))"),
        ("more signs than digits", "or longer", ""),
        ("targets are drawn as signs come to them", "rng.choice(sorted(ways_of(tuple(sorted(digits)))))",
         "rng.choice(sorted(ways_of(tuple(sorted(digits))).elements()))"),
        ("the target decides the split", "split_of_digits(tuple(sorted(asked(problem.question)[0])))",
         "super().split(problem)"),
        ("the search goes forward", "sorted(digits[-step:])", "sorted(digits[:step])"),
        ("the chain goes forward", "partial_sums(digits[::-1], signs[::-1])", "partial_sums(digits, signs)"),
        ("the first signs are told whatever is asked", 'if what != "chains":', "if True:"),
        ("towards 0 instead of the target", "-digit if target >= 0", "-digit if digit >= 0"),
    )),
    ("eval/environments/reach.py", REACH, (
        ("only what so many edges reach exactly", "if hops <= step)", "if hops == step)"),
        ("the chain begins with the root", "shortest_path(graph)[1:]", "shortest_path(graph)"),
        ("the target named first", "rng.sample([named.target, named.other], 2)", "[named.target, named.other]"),
        ("either option is right", "correct = last == problem.answer", "correct = last in options"),
        ("any node is an answer", "if last not in options:", "if not last.isdecimal():"),
        ("edges come as they were grown", "rng.sample(graph.edges, len(graph.edges))", "graph.edges"),
        ("closed problems have shortcuts", "if c.closed else asked(", "if False else asked("),
    )),
    ("eval/readings.py", "tests/eval/test_readings.py::test_words_of_a_frontier_may_have_been_there_before", (
        ("words of other steps hide a frontier", "if word not in here}", "}"),
    )),
    ("eval/tasks/utils.py", "tests/eval/test_lm_tasks.py::test_cups_of_several_a_word_are_found_in_a_sentence", (
        ("the mark of a word is left", 'text.replace("=", " ") if marked else text', "text"),
        ("a word of any length", r'rf"\d{{{len(answer)}}}(?!\d)" if one', r'r"\d+" if one'),
    )),
    ("eval/environments/mnns_epochs.py", FRONTIERS, (
        ("tested multisets are trained on", '"train": multisets[:cut]', '"train": multisets'),
        ("every epoch in one order", 'f"epoch {seed} {epoch}"', 'f"epoch {seed}"'),
        ("multisets are in order", "random.Random(seed).shuffle(multisets)", "pass"),
    )),
    ("eval/environments/base.py", DATA, (
        ("overlap of train and test kept", "if folded(p) not in asked:", "if True:"),
        ("training draws test problems", 'if self.split(problem) == "train":', "if True:"),
        ("splits do not count where problems are drawn", "if self.split(problem) == split and", "if"),
        ("validation problems stay in train", "trained.pop(key)", "trained[key]"),
        ("validation in the file's order", "for key in sorted(trained)[:aside]", "for key in list(trained)[:aside]"),
        ("a question in test twice", "tested.setdefault(p.key, p)", "tested[p.key + str(len(tested))] = p"),
        ("the training file's answer counts", "for i, source in ((1, test), (0, train)):",
         "for i, source in ((0, train), (1, test)):"),
        ("a tenth from the end", "train, test = train[cut:], train[:cut]", "train, test = train[:-cut], train[-cut:]"),
    )),
    ("eval/environments/base.py", f"{E}_batches_depend_on_seed_and_epoch {DATA}", (
        ("every seed has the same order", 'random.Random(f"epoch {seed} {epoch}")', 'random.Random(f"epoch {epoch}")'),
        ("every epoch has the same order", 'random.Random(f"epoch {seed} {epoch}")', 'random.Random(f"epoch {seed}")'),
        ("every seed draws the same batches", 'random.Random(f"train {seed} {index}")',
         'random.Random(f"train {index}")'),
    )),
    ("eval/environments/files.py", DATA, (
        ("places counted from 0", 'in enumerate(text.split("\\n"), 1)', 'in enumerate(text.split("\\n"), 0)'),
        ("empty fields taken", "if not value.strip():", "if False:"),
        ("an empty file taken", "if n == 0:", "if False:"),
        ("half of a surrogate pair taken", "if not value.isascii():", "if False:"),
        ("an index too far", "not 0 <= value < below", "not 0 <= value <= below + 9"),
    )),
    ("eval/stats.py", STATS, (
        ("Wilson without its correction", "z2 / (4 * n * n)", "z2 / (2 * n * n)"),
        ("none right is 0 but for rounding", "(0.0 if hits == 0 else low)", "low"),
        ("90 % intervals", "level: float = 0.95, seed", "level: float = 0.90, seed"),
        ("the narrower of two intervals", "return min(low, least), max(high, most)",
         "return max(low, least), min(high, most)"),
        ("few seeds are not widened", "np.sqrt(s / (s - 1)) * stdtrit(s - 1, 0.975) / Z95", "1.0"),
        ("seeds are not drawn", "rng.integers(s, size=s)", "np.arange(s)"),
        ("items are not drawn", "rng.integers(n, size=n)", "np.arange(n)"),
        ("a rate that was not seen is none", "unseen = wilson(0, alone)[1]", "unseen = 0.0"),
        ("half a unit is a whole one", "max(spread, step / 2)", "max(spread, step)"),
        ("seeds that agree have no spread", "max(spread, step / 2)", "spread"),
        ("the population's deviation", "means.std(ddof=1)", "means.std()"),
        ("a degree of freedom too many", "/ sqrt(len(means)), len(means) - 1", "/ sqrt(len(means)), len(means)"),
        ("one-sided intervals", "half_width(errors, 0.05)", "half_width(errors, 0.1)"),
        ("p of one side", "stdtrit(degrees, p / 2)", "stdtrit(degrees, p)"),
        ("errors add up instead of their squares",
         "hypot(*(error * float(stdtrit(degrees, p / 2)) for error, degrees in errors))",
         "-sum(error * float(stdtrit(degrees, p / 2)) for error, degrees in errors)"),
        ("the interval without the bootstrap's", "min(float(low), mean - half)", "mean - half"),
        ("the interval without Student's", "max(float(high), mean + half)", "float(high)"),
        ("Bonferroni for Holm", "(len(p) - rank) * p[i]", "len(p) * p[i]"),
        ("Holm's values may fall", "worst = max(worst, min(1.0,", "worst = max(0.0, min(1.0,"),
        ("McNemar of one side", "far = np.abs(np.arange(-most, most + 1))", "far = np.arange(-most, most + 1)"),
        ("McNemar counts those that both have", "dtype=int) - np.asarray(b", "dtype=int) + np.asarray(b"),
        ("a minus b is b minus a", "diff_SN = a_SN - b_SN", "diff_SN = b_SN - a_SN"),
    )),
    ("eval/stats.py", "tests/eval/test_clusters.py", (
        ("the design effect without its squares", "(np.bincount(cluster_N, apart_N) ** 2)",
         "np.bincount(cluster_N, apart_N)"),
        ("clusters of one value as if drawn one by one", "or not np.ptp(x_N)", "or False and x_N"),
        ("clusters that make an interval narrower", "max(1.0, float(", "max(0.0, float("),
        ("a mean over as many items as there are", "n if size_C is None else items @ size_C", "n"),
        ("clusters of equal weight", "* len(size_C) / n", ""),
        ("signs of items", "each_N = np.bincount(cluster_N, each_N).astype(int)", "pass"),
    )),
    ("eval/judge.py", JUDGE, (
        ("the end token not counted", "row.index(end) + 1 if end", "row.index(end) if end"),
        ("latents and tokens exchanged", "v.reason, used, length, env", "v.reason, length, used, env"),
        ("steps ignored", "reasoner.tokens([p.question for p in problems], steps)",
         "reasoner.tokens([p.question for p in problems], None)"),
        ("dropout stays on", "    reasoner.method.eval()\n", ""),
        ("a verifier that fails is a wrong answer",
         'raise RuntimeError(f"the verifier failed on problem {problem.key}: {type(e).__name__}: {e}") from e',
         "return Verdict(0.0, False, False)"),
        ("levels are one", "levels[item.level].append(item)", "levels[0].append(item)"),
        ("parsed counts as right", '"accuracy": hits / n', '"accuracy": mean("parsed")'),
    )),
    ("latent/methods/base.py", COST, (
        ("the head once", "+ self.head_flops * tokens", "+ self.head_flops"),
        ("latents are free", "n, per_layer = prompt + used + tokens - 1", "n, per_layer = prompt + tokens - 1"),
        ("attention to half of it", "attention = 4 * self.backbone.width", "attention = 2 * self.backbone.width"),
    )),
    ("latent/methods/recurrent/method.py", COST, (
        ("recurrences are free", "len(self.core) * used\n", "len(self.core)\n"),
    )),
    ("eval/lm.py", WRITTEN, (
        ("the end token not counted", "len(row) + done", "len(row)"),
        ("the text goes on after its end", "row = row[: row.index(end)] if done else row", "row = row"),
        ("a request's steps ignored", "num_latents=first.steps,", "num_latents=self.num_latents,"),
    )),
    ("paper/overview.py", "tests/paper/test_overview.py", (
        ("another rule than the best", "max(floors, key=floors.__getitem__)", "min(floors, key=floors.__getitem__)"),
        ("an effect where none is shown", '"none" if none_shown(d, p) else', '"none" if p > 1 else'),
        ("a difference of another metric", 'contrast == Contrast("cot2", arm, claim=contrast.claim)',
         '(contrast.a, contrast.b) == ("cot2", arm)'),
        ("a start is not said", 'after = "+ "', 'after = ""'),
    )),
    ("paper/run.py", "tests/paper/test_run.py::test_a_start_whose_weights_are_gone_is_trained_again", (
        ("a result is as good as weights", 'has_weights(home / "model")', "True"),
        ("its result stays", '(options.out / run.init / "result.json").unlink(missing_ok=True)', "pass"),
    )),
    ("paper/numbers.tex", COMMITTED, (
        ("a number altered by hand", r"\csname r@latents: seeds\endcsname{5}",
         r"\csname r@latents: seeds\endcsname{6}"),
    )),
    ("README.md", COMMITTED, (
        ("the first table altered by hand", "branches, order matters | 0.", "branches, order matters | 1."),
        ("a claim's verdict altered by hand", "fewer latents, and than its controls. * | supported, as reworded |",
         "fewer latents, and than its controls. * | not shown, as reworded |"),
    )),
    ("paper/tables/rl.md", COMMITTED, (
        ("a table altered by hand", "| start at 0.5, rlvr | one chain, then a verifier | 0.",
         "| start at 0.5, rlvr | one chain, then a verifier | 1."),
    )),
)  # fmt: skip
