"""Decoded against used: which state each number is of, and its intervals, against the model, scipy and brute force."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from scipy.stats import ttest_rel

from eval import interventions, readings
from eval.environments import Cups
from eval.stats import holm
from latent.methods import Pause, Sim
from latent.plain import plain
from paper import latents, markup, records, tables
from paper.design import Contrast, cells
from tests.eval.lively import ENV, OF, PROBLEMS, lively
from tests.paper.helpers import MINI, planted, seeds

RNG = np.random.default_rng(4)
FIVE = replace(seeds(MINI, 5), diagnose=True)
WIDE = replace(  # two rows of three latents each
    FIVE,
    axes=({"one": {"method.n_latent": 3}, "two": {"method.n_latent": 3, "train.steps": 7}},),
    contrasts=(Contrast("one", "two"),),
)
PROBED = {"one": RNG.uniform(0.5, 0.9, (5, 3)), "two": RNG.uniform(0.3, 0.5, (5, 3))}
FLIPPED = {"one": RNG.uniform(0.6, 0.9, (5, 3)), "two": RNG.uniform(0.0, 0.1, (5, 3))}


def diagnosed(ablation=WIDE, method=None, exchanged=None):
    """A table whose rows were diagnosed with known numbers. `exchanged`: what their patches say beside the flips."""
    lines = planted({row: [[1, 0]] * 5 for row in PROBED}, ablation)
    for cell in cells(ablation, {}):
        probe = [{"accuracy": x, "majority": 0.25} for x in PROBED[cell.row][cell.seed].tolist()]
        patches = [{"flipped": x, "donor": 0.0, "n": 100} for x in FLIPPED[cell.row][cell.seed].tolist()]
        if exchanged is not None:
            patches = [patch | more for patch, more in zip(patches, exchanged[cell.row][cell.seed])]
        causal = {"intact": records.pack([1] * 100), "patches": patches, "interventions": {}}
        lines[cell.run.id] |= {"diagnosis": {"probe": probe, "causal": causal}}
        if method is not None and cell.row == "two":
            lines[cell.run.id]["config"]["method"] = plain(method)
    return tables.gather("mini", ablation, cells(ablation, {}), lines, 2000)


def test_a_patch_of_state_i_replaces_what_the_probe_of_state_i_reads():
    """In the model itself: the input that patch i replaces is the state that probe i reads, fed back; from i = 1 on."""
    reasoner = lively(OF)
    states = readings.trace(reasoner, PROBLEMS, 8)
    (was,) = interventions.baselines(reasoner, ENV, PROBLEMS, 8)
    for i in range(OF.n_latent):
        read_ND, _ = states.after(i)
        with torch.no_grad():
            torch.testing.assert_close(was.inputs[i], reasoner.method.feedback(read_ND), rtol=0, atol=1e-12)
    probes = readings.probe(reasoner, states, states)
    assert [row["latent"] for row in probes] == [1, 2, 3]  # and none of state 0
    assert len(interventions.causal(reasoner, ENV, PROBLEMS, 8)["patches"]) == 3  # of states 0, 1, 2


def test_probes_begin_at_state_one_and_patches_at_state_zero():
    table = diagnosed()
    head, *rows = latents.body(table, latents.gather(table))
    assert head == ["", "", "0", "1", "2", "3"]
    assert rows[0] == ["one", "decoded", "", *(f"{x:.3f}" for x in PROBED["one"].mean(0))]
    assert rows[1] == ["", "flipped", *(f"{x:.3f}" for x in FLIPPED["one"].mean(0)), ""]
    assert rows[4] == ["commonest token", "", "", "0.250", "0.250", "0.250"]
    known = latents.numbers(table)
    x_S = FLIPPED["two"][:, 0]
    half = student.ppf(0.975, 4) * x_S.std(ddof=1) / np.sqrt(5)
    assert (
        known["mini: two: state 0: flipped"]
        == f"{x_S.mean():.3f} ({max(0, x_S.mean() - half):.3f} to {x_S.mean() + half:.3f})"
    )
    assert known["mini: one: state 3: decoded"].startswith(f"{PROBED['one'][:, 2].mean():.3f} (")
    assert "mini: one: state 3: flipped" not in known and "mini: one: state 0: decoded" not in known


def test_what_patches_lead_to_is_shown_where_every_seed_has_it():
    iia_SK = RNG.uniform(0.5, 0.9, (5, 2))
    begins = {"pairs": 0}  # state 0, alike for all problems
    known = [[begins, *({"pairs": 90, "iia": x, "chance": x / 9} for x in seed)] for seed in iia_SK.tolist()]
    some = [[begins, {"pairs": 9, "iia": 1.0}, {"pairs": 0}], *([{}] * 3 for _ in range(4))]  # records of before
    table = diagnosed(exchanged={"one": known, "two": some})
    found = latents.gather(table)
    means = [f"{x:.3f}" for x in iia_SK.mean(0)]
    rows = latents.body(table, found)[1:]
    assert rows[2] == ["", "as the donor's", "", *means, ""]
    assert rows[3] == ["", "by chance", "", *(f"{x / 9:.3f}" for x in iia_SK.mean(0)), ""]
    assert [row[1] for row in rows[4:6]] == ["decoded", "flipped"] and rows[6][0] == "commonest token"
    numbers = latents.numbers(table)
    assert numbers["mini: one: state 1: exchanged: value"] == means[0]
    assert not [key for key in numbers if key.startswith("mini: two: state") and "exchanged" in key]
    d, _ = latents.contrasts(table)["mini: one: as the donor's - by chance"]
    apart_S = iia_SK.mean(1) * 8 / 9
    half = student.ppf(0.975, 4) * apart_S.std(ddof=1) / np.sqrt(5)
    assert d.mean == pytest.approx(apart_S.mean())
    assert d.low <= d.mean - half + 1e-12 and d.high >= d.mean + half - 1e-12
    assert "mini: two: as the donor's - by chance" not in numbers
    assert "Geiger" in latents.caption(table, found)
    before = diagnosed()
    assert "Geiger" not in latents.caption(before, latents.gather(before))
    assert not [key for key in latents.numbers(before) if "exchanged" in key or "by chance" in key]


def test_contrasts_are_paired_over_seeds_and_corrected_for_their_number():
    table = diagnosed()
    made = latents.contrasts(table)
    used = {row: x_SK[:, 1:].mean(1) for row, x_SK in FLIPPED.items()}
    steps = latents.other_step(latents.gather(table))
    far = np.mean([steps[3], steps[6]])  # states 1 and 2 of 3 latents have 8 / 3 and 16 / 3 swaps behind, rounded up
    pairs = {
        "mini: one - two: decoded": (PROBED["one"].mean(1), PROBED["two"].mean(1)),
        "mini: one - two: flipped": (used["one"], used["two"]),
        "mini: one: flipped - before": (used["one"], FLIPPED["one"][:, 0]),
        "mini: one: flipped - other step": (used["one"], np.full(5, far)),
        "mini: two: flipped - before": (used["two"], FLIPPED["two"][:, 0]),
        "mini: two: flipped - other step": (used["two"], np.full(5, far)),
    }
    want = holm([ttest_rel(a, b).pvalue for a, b in pairs.values()])
    assert list(made) == list(pairs)
    for (d, p), (a, b), corrected in zip(made.values(), pairs.values(), want):
        half = student.ppf(0.975, 4) * (a - b).std(ddof=1) / np.sqrt(5)
        assert d.mean == pytest.approx((a - b).mean()) and p == pytest.approx(corrected, rel=1e-6)
        assert d.low <= d.mean - half + 1e-12 and d.high >= d.mean + half - 1e-12
    assert latents.numbers(table)["mini: one - two: flipped"] == markup.effect(*made["mini: one - two: flipped"])


def test_a_control_that_feeds_nothing_back_has_nothing_to_flip():
    table = diagnosed(method=Pause(Sim(n_latent=3)))
    kinds = [row[:2] for row in latents.body(table, latents.gather(table))[1:]]
    assert kinds[:3] == [["one", "decoded"], ["", "flipped"], ["two", "decoded"]] and ["", "flipped"] not in kinds[3:]
    assert "mini: one - two: flipped" not in latents.contrasts(table)
    assert "mini: one - two: decoded" in latents.contrasts(table)


def test_the_reference_is_what_a_model_answers_that_has_the_past_from_the_state_alone():
    """By brute force: each problem's own later swaps, made on its donor's arrangement."""
    table = diagnosed()
    found, n = latents.gather(table), 100
    problems = Cups().make().problems("test", 8, n)
    moves = [[tuple(map(int, move)) for move in p.question.split()] for p in problems]

    def after(swaps, row=(0, 1, 2, 3)):
        row = list(row)
        for i, j in swaps:
            row[i], row[j] = row[j], row[i]
        return tuple(row)

    ends = [after(m) for m in moves]
    for step, share in enumerate(latents.other_step(found)[:8]):
        changed = 0
        for b in range(n):
            donor = next(d % n for d in range(b + 1, b + n) if ends[d % n] != ends[b])
            changed += after(moves[b][step:], after(moves[donor][:step])) != ends[b]
        assert share == pytest.approx(changed / n), step


def test_rows_without_steps_or_diagnoses_make_no_page():
    plain_table = tables.gather(
        "mini", MINI, cells(MINI, {}), planted({r: [[1, 0]] * 2 for r in ("1 latents", "2 latents")}), 20
    )
    assert latents.texts(plain_table) == {} and latents.numbers(plain_table) == {}


def test_a_single_seed_has_no_interval():
    assert latents.interval(np.array([0.4]), 100) == (0.0, 1.0)
    low, high = latents.interval(np.ones(5), 100)  # seeds that agree: half an item
    assert (low, high) == (pytest.approx(1 - student.ppf(0.975, 4) * 0.005 / np.sqrt(5)), 1.0)
