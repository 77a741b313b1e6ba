"""Laws of comparing: what is the same does not differ, what was drawn together is compared together, and p keeps its promise."""

import csv
import json
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import CNN, ROOT, SMALL, TINY
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.comparing import World, captions_of, drawn_population, simulate
from captioning.analysis import cost, results, tables
from captioning.analysis.bootstrap import Estimate, Sample, draw, estimate, holm
from captioning.analysis.compare import compare
from captioning.analysis.comparison_page import page
from captioning.analysis.cost import Cost, pareto
from captioning.analysis.grouping import grouped
from captioning.build.compare import read_members
from captioning.build.compose import as_dict, composed
from captioning.build.evaluation import digest_of
from captioning.build.program import run_program
from captioning.build.runs import prepare
from captioning.cli import main as captioning_command
from captioning.data.records import Record
from captioning.data.vocabulary import Vocabulary
from captioning.errors import UserError
from captioning.training import checkpoint
from captioning.training.evaluate import Evaluation, grade
from captioning.training.evaluate import prepare as prepared

METRICS = ("cider", "bleu4", "rouge_l")


def runs(count, images=60, seed=0):
    draws = np.random.default_rng(seed)
    return [captions_of(images, 0.6, draws) for _ in range(count)]


# The statistics


def test_equal_groups_differ_by_nothing_and_surely_so():
    columns = runs(2)
    for sample in draw([*columns, *columns], METRICS, 100).values():
        its = estimate(sample, [0, 1], [2, 3])
        assert its.value == 0 and its.p == 1 and its.interval[0] <= 0 <= its.interval[1]


def test_swapping_group_and_baseline_turns_the_sign_and_nothing_else():
    for sample in draw(runs(5), METRICS, 100).values():
        one, other = estimate(sample, [0, 1], [2, 3, 4]), estimate(sample, [2, 3, 4], [0, 1])
        assert one.value == pytest.approx(-other.value) and one.p == pytest.approx(other.p)
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))


def test_what_an_image_adds_to_all_runs_cancels_in_a_difference_and_not_in_a_mean():
    columns, shift = runs(4), 5 * np.random.default_rng(1).random(60)
    shifted = [its | {"cider": its["cider"] + shift} for its in columns]
    plain, moved = (draw(its, ["cider"], 200)["cider"] for its in (columns, shifted))
    differences = [estimate(sample, [0, 1], [2, 3]) for sample in (plain, moved)]
    assert differences[0].interval == pytest.approx(differences[1].interval) and differences[0].p == pytest.approx(differences[1].p)
    assert estimate(moved, [0]).half_width() > 2 * estimate(plain, [0]).half_width()


def test_the_image_part_of_a_mean_is_its_variance_over_the_number_of_images():
    columns = runs(1, images=500)
    its = estimate(draw(columns, ["cider"], 5000)["cider"], [0])
    assert its.image == pytest.approx(columns[0]["cider"].var(ddof=1) / 500, rel=0.1)


def test_runs_whose_images_say_the_same_have_nothing_crossed_and_runs_of_their_own_have_nothing_common():
    alike, apart = runs(1, 300) * 3, runs(3, 300)
    alike = estimate(draw(alike, ["cider"], 1000)["cider"], [0, 1, 2])
    assert alike.crossed[0] == pytest.approx(0, abs=1e-12) and alike.common == pytest.approx(alike.image)
    apart = [its | {"cider": np.random.default_rng(seed).random(300)} for seed, its in enumerate(apart)]
    apart = estimate(draw(apart, ["cider"], 1000)["cider"], [0, 1, 2])
    assert apart.common < 0.4 * apart.image


ESTIMATES = st.builds(
    Estimate,
    value=st.floats(-5, 5),
    image=st.floats(1e-3, 4),
    seeds=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    between=st.tuples(st.floats(0, 9), st.floats(0, 9)),
    crossed=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    images=st.integers(50, 1000),
)


@given(ESTIMATES)
def test_p_is_below_5_percent_where_the_interval_excludes_0_and_nowhere_else(its):
    assert (its.p < 0.05) == (not its.interval[0] <= 0 <= its.interval[1])
    assert 0 < its.p <= 1 and its.resolvable > its.half_width()


def test_few_seeds_have_students_t_and_never_less_than_the_images_alone():
    its = Estimate(1.0, 1e-9, (3, 3), (2.0, 2.0), (0.0, 0.0), 1000)
    assert its.freedom == pytest.approx(4) and its.half_width() == pytest.approx(2.776 * (2 / 3 + 2 / 3) ** 0.5, rel=1e-3)
    assert Estimate(1.0, 4.0, (3, 3), (0.0, 0.0), (1.0, 1.0), 10**6).half_width() == pytest.approx(1.96 * 2, rel=1e-3)


def test_more_seeds_resolve_a_difference_unless_the_images_alone_do_not():
    its = Estimate(1.0, 0.01, (2, 2), (0.5, 0.5), (0.0, 0.0), 1000)
    assert its.resolvable > 1 and its.seeds_needed and its.with_seeds(its.seeds_needed).resolvable <= 1
    assert its.with_seeds(its.seeds_needed - 1).resolvable > 1
    assert its._replace(image=0.5).seeds_needed is None and its._replace(seeds=(1, 2)).seeds_needed is None


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3)])
def test_differences_that_are_not_there_are_found_in_5_percent_and_those_that_are_lie_in_their_intervals(seeds):
    """Seeds that differ more than images do: there the plain hierarchical bootstrap finds what is not there."""
    population, many = drawn_population(2000, np.random.default_rng(0)), 200
    bound = 0.05 + 3 * (0.05 * 0.95 / many) ** 0.5
    none = simulate(World(seeds, 300, sd=0.2), population, many, resamples=150)
    assert max(none.found.values()) < bound and none.ratio > 1.5
    assert none.plainly_found["bleu4"] > bound
    some = simulate(World(seeds, 300, sd=0.05, worse=0.15), population, many, resamples=150, seed=1)
    assert min(some.covered.values()) > 1 - bound and abs(some.true["bleu4"]) > 0.02


@pytest.mark.parametrize("shared", [0.5, 0.9])
def test_two_searches_of_the_same_runs_that_do_not_differ_are_found_to_differ_in_5_percent_at_most(shared):
    """Seeds do alike under both, as far as `shared` says, and so do seeds by images; that the runs are the same is not known."""
    draws, seeds, images, many, found = np.random.default_rng(0), 3, 100, 400, 0

    def twice(*shape):
        common, own = draws.standard_normal(shape), draws.standard_normal((2, *shape))
        return shared**0.5 * common + (1 - shared) ** 0.5 * own

    for _ in range(many):
        values = 0.5 * twice(seeds, 1) + twice(seeds, images) + draws.standard_normal(images)
        values = values.reshape(2 * seeds, images)
        found += estimate(Sample(values.mean(1), np.cov(values) / images, images), [0, 1, 2], [3, 4, 5]).p < 0.05
    assert found / many <= 0.05


# Runs

WORDS = ["a", "dog", "runs", "in", "the", "red", "grass", "and", "two", "men", "sit", "on", "big", "blue", "chairs", "by", "water"]
REFERENCES = {f"{i:03}.png": [" ".join(np.random.default_rng([i, k]).choice(WORDS, 9)) for k in range(3)] for i in range(40)}


def said(quality, seed):
    """Captions that have so many of the first reference's words."""
    draws = np.random.default_rng(seed)
    return {
        name: " ".join(word if draws.random() < quality else draws.choice(WORDS) for word in texts[0].split())
        for name, texts in REFERENCES.items()
    }


def a_run(folder, *overrides, seed=1, quality=0.6, references=REFERENCES, beam=3, split="test", epochs=2, weights=None):
    """A run directory that was never trained, but written as training and evaluation write it."""
    encoder = [] if any(word.startswith("encoder=") for word in overrides) else CNN
    config = as_dict(composed("train", [*TINY, *encoder, *SMALL, "trainer.epochs=2", f"run={folder}", f"seed={seed}", *overrides]))
    records = [Record(name, ROOT / name, texts, "here", []) for name, texts in references.items()]
    prepare(folder, config, {"train": records}, Vocabulary.build(WORDS, 1), weights, None)
    result, _ = graded(said(quality, seed), references)
    spots = [
        {"epoch": n, "step": n, "seconds": 1.0, "train_loss": 1.0, **{k: v * n / 2 for k, v in result.metrics.items()}} for n in (1, 2)
    ]
    progress = {"epoch": epochs, "step": 2, "seconds": 60.0 + seed, "peak_memory": 2**30, "history": spots}
    for name in ("best", "last"):
        checkpoint.save(folder / name, tensors={}, state={"progress": progress})
    return searched(folder, folder, said(quality, seed), beam=beam, references=references, split=split)


def graded(captions, references):
    captions = {name: text for name, text in captions.items() if name in references}
    result, about = grade(captions, prepared(references))
    return result, Evaluation(result.metrics | about, captions, {}, result)


@cache
def search_of(*words):
    return as_dict(composed("eval", ["run=any", *words]))["search"]


def searched(run, out, captions, *, references=REFERENCES, split="test", beam=3, search=None):
    """What eval.py writes that captions with this beam, or another search."""
    search = search or search_of(f"search.beam_size={beam}")
    _, evaluation = graded(captions, references)
    about = {"split": split, "images": len(references), "search": search, "precision": "fp32", "checkpoint": digest_of(run)}
    results.write(out, evaluation, references, about)
    return out


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """Three seeds of an LSTM, two of a GRU that merges, one of attention."""
    root = tmp_path_factory.mktemp("six")
    lstm = [a_run(root / f"lstm-{seed}", "decoder=lstm", seed=seed) for seed in (1, 2, 3)]
    gru = [a_run(root / f"gru-{seed}", "decoder=gru", "decoder.injection=merge", seed=seed, quality=0.9) for seed in (1, 2)]
    return [*lstm, *gru, a_run(root / "attention-1", "decoder=attention", quality=0.58)]


def compared(paths, *, by=(), metrics=METRICS, **more):
    return compare(grouped(read_members(paths), by), metrics, by=by, resamples=200, **more)


def test_a_metric_that_is_not_there_not_named_or_not_a_number_is_refused_by_the_runs_name(tmp_path):
    first, second = a_run(tmp_path / "a", "decoder=lstm"), a_run(tmp_path / "b", "decoder=gru")
    scores = json.loads((first / "scores.json").read_text())
    scores["columns"] |= {"loss": [1.0] * len(REFERENCES), "words": [9] * len(REFERENCES)}
    (first / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match=f"--metric loss: no such metric in {second}"):
        compared([first, second], metrics=["loss"], force=True)
    scores["columns"]["loss"][3] = float("nan")
    (first / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match=f"--metric loss: it is nan for {first}"):
        compared([first], metrics=["loss"])
    with pytest.raises(UserError, match="--metric: none is named; allowed: bleu1"):
        compared([second], metrics=[])


def test_runs_that_started_from_seeds_of_one_start_are_one_group(tmp_path):
    runs = [a_run(tmp_path / f"scst-{seed}", "decoder=lstm", f"start=runs/xe-s{seed}", seed=seed) for seed in (1, 2)]
    other = a_run(tmp_path / "other", "decoder=lstm", "start=runs/long-s1", seed=3)
    assert [len(group.members) for group in grouped(read_members([*runs, other]))] == [2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(2, 2), (3, 3)])
def test_over_many_comparisons_false_positives_are_at_most_6_percent_and_coverage_at_least_93(seeds):
    population, many = drawn_population(3000, np.random.default_rng(0)), 2000
    none = simulate(World(seeds, 500, sd=0.2), population, many, resamples=200)
    assert max(none.found.values()) <= 0.06, none
    some = simulate(World(seeds, 500, sd=0.05, worse=0.15), population, many, resamples=200, seed=1)
    assert min(some.covered.values()) >= 0.93, some


def test_an_evaluation_that_dies_while_it_is_written_is_none_and_not_half_of_the_one_before(tmp_path, monkeypatch):
    run = a_run(tmp_path / "run", "decoder=lstm")
    whole, prepared_again = results.read(run), prepared(REFERENCES)
    result, about = grade(said(0.1, 5), prepared_again)

    def die(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(result), "save", die)
    with pytest.raises(KeyboardInterrupt):
        results.write(run, Evaluation(result.metrics | about, said(0.1, 5), {}, result), REFERENCES, {"split": "val"})
    assert whole.metrics["split"] == "test"
    with pytest.raises(UserError, match="not evaluated yet"):
        results.read(run)


def test_a_run_that_was_trained_on_since_its_evaluation_is_refused(tmp_path):
    run = a_run(tmp_path / "run", "decoder=lstm")
    assert read_members([run])
    checkpoint.save(run / "best", tensors={}, state={"progress": {"epoch": 3}})
    with pytest.raises(UserError, match=f"{run}: its checkpoint is another than the one evaluated: python eval.py run={run}"):
        read_members([run])


def costs(comparison):
    its = {group.name: Cost(10**6 * (n + 1), 10, 1e9, 60.0, 2**30, 0.01 * (n + 1), 0.02) for n, group in enumerate(comparison.groups)}
    return tables.Costs(its, "ms an image: of nothing")


def test_groups_are_what_differs_in_more_than_the_seed_and_are_named_by_it(six):
    groups = grouped(read_members(six))
    assert [(group.name, len(group.members)) for group in groups] == [("lstm init", 3), ("gru merge", 2), ("attention", 1)]


def test_names_say_what_differs_and_nothing_that_follows_from_it(tmp_path):
    one = a_run(tmp_path / "a", "encoder=resnet18", "encoder.weights=none", "decoder=lstm")
    two = a_run(tmp_path / "b", "encoder=vgg16", "encoder.weights=none", "decoder=lstm", "decoder.dropout=0.25")
    assert [group.name for group in grouped(read_members([one, two]))] == ["resnet18 dropout=0.5", "vgg16 dropout=0.25"]
    longer = a_run(tmp_path / "c", "encoder=resnet18", "encoder.weights=none", "decoder=lstm", "trainer.epochs=5", "data.workers=3")
    assert [group.name for group in grouped(read_members([one, longer]))] == ["epochs=2", "epochs=5"]
    elsewhere = a_run(tmp_path / "d", "encoder=resnet18", "encoder.weights=none", "decoder=lstm", "data.workers=3", seed=2)
    assert [len(group.members) for group in grouped(read_members([one, elsewhere]))] == [2]


def test_groups_by_some_settings_pool_the_others_and_say_so(six):
    comparison = compared(six, by=["decoder.cell"])
    assert [(group.name, len(group.members)) for group in comparison.groups] == [("lstm", 4), ("gru", 2)]
    assert any("lstm: pooled over" in warning and "decoder" in warning for warning in comparison.warnings)
    with pytest.raises(UserError, match="--by decodr: no such|--by decodr: no run has such a setting. Did you mean decoder"):
        compared(six, by=["decodr"])


def test_a_table_has_means_spreads_and_differences_to_the_first_group_given(six):
    comparison = compared(six)
    values = [results.read(path).result.metrics["cider"] * 100 for path in six]
    first, second, third = comparison.lines["cider"]
    assert first.mean.value == pytest.approx(np.mean(values[:3])) and first.sd == pytest.approx(np.std(values[:3], ddof=1))
    assert comparison.baseline == "lstm init" and first.difference is None and third.sd is None
    assert second.difference.value == pytest.approx(np.mean(values[3:5]) - np.mean(values[:3])) and second.difference.p < 0.05
    assert second.p_holm == pytest.approx(min(1, 2 * second.difference.p)) or second.p_holm >= second.difference.p
    other = compared(six, baseline="gru merge").lines["cider"][0]
    assert other.difference.value == pytest.approx(-second.difference.value)
    with pytest.raises(UserError, match="--baseline gru merg: no such group. Did you mean gru merge"):
        compared(six, baseline="gru merg")
    with pytest.raises(UserError, match="--metric cidr: no such metric in .*lstm-1. Did you mean cider"):
        compared(six, metrics=["cidr"])


def test_one_seed_and_what_cannot_be_resolved_are_said(six):
    warnings = compared(six).warnings
    assert any(warning.startswith("one seed only: attention.") and "nothing of the architecture" in warning for warning in warnings)
    below = next(warning for warning in warnings if warning.startswith("CIDEr: less than this data can resolve"))
    assert "attention," in below and "gru merge" not in below and "a single one cannot tell" in below
    assert not any("one seed only" in warning for warning in compared(six[:5]).warnings)


def test_other_references_are_refused_with_both_signatures_and_compared_by_force(tmp_path):
    one = a_run(tmp_path / "one")
    fewer = a_run(tmp_path / "fewer", references=dict(list(REFERENCES.items())[5:]), seed=2)
    with pytest.raises(
        UserError, match=r"fewer: its cider has the signature cider\|.*images:35.*one is cider\|.*images:40.*--force"
    ) as error:
        compared([one, fewer])
    assert "\n" not in str(error.value)
    comparison = compared([one, fewer], force=True)
    assert any("signature" in warning for warning in comparison.warnings) and comparison.about.startswith("35 images of test")


def test_images_are_matched_by_name_and_not_by_place(six, tmp_path):
    plain = compared(six[:2]).lines["cider"][0].mean
    turned = a_run(tmp_path / "turned", "decoder=lstm", seed=2)
    scores = json.loads((turned / "scores.json").read_text())
    scores["image_ids"].reverse()
    scores["columns"] = {name: column[::-1] for name, column in scores["columns"].items()}
    (turned / "scores.json").write_text(json.dumps(scores))
    assert compared([six[0], turned]).lines["cider"][0].mean == plain


def test_other_splits_are_refused(six, tmp_path):
    val = a_run(tmp_path / "val", "decoder=lstm", seed=4, split="val")
    with pytest.raises(UserError, match="val was evaluated on split=val, .* on split=test"):
        compared([six[0], val])


# Searches


@pytest.fixture(scope="module")
def beams(tmp_path_factory):
    """Two architectures, two seeds, each run evaluated with a beam of 3 in its own folder, of 1 and 5 in others."""
    root, found = tmp_path_factory.mktemp("beams"), []
    for decoder, seed in [("lstm", 1), ("lstm", 2), ("attention", 1), ("attention", 2)]:
        run = a_run(root / f"{decoder}-{seed}", f"decoder={decoder}", seed=seed)
        others = [searched(run, run / f"beam{k}", said(0.55 + 0.02 * k, seed), beam=k) for k in (1, 5)]
        found += [run, *others]
    return found


def test_searches_of_runs_are_groups_named_by_what_differs_and_nothing_where_they_are_alike(beams):
    groups = grouped(read_members(beams))
    assert [(group.name, len(group.members)) for group in groups] == [
        (f"{decoder} beam_size={k}", 2) for decoder in ("lstm", "attention") for k in (3, 1, 5)
    ]
    assert [group.name for group in grouped(read_members(beams[1::3]))] == ["lstm", "attention"]


def test_another_kind_of_search_names_its_group_and_another_search_in_training_is_no_search_of_the_evaluation(tmp_path):
    run = a_run(tmp_path / "run", "decoder=lstm")
    drawn = searched(run, run / "drawn", said(0.5, 1), search=search_of("search=sample"))
    assert [group.name for group in grouped(read_members([run, drawn]))] == ["search=beam", "search=sample"]
    other = a_run(tmp_path / "other", "decoder=lstm", "search.beam_size=5")
    assert [group.name for group in grouped(read_members([run, other]))] == ["beam_size=3", "beam_size=5"]
    five = searched(other, other / "five", said(0.5, 1), beam=5)
    names = [group.name for group in grouped(read_members([run, five]))]
    assert names == ["eval.search.beam_size=3 search.beam_size=3", "eval.search.beam_size=5 search.beam_size=5"]


def test_an_evaluation_of_another_checkpoint_half_of_one_or_one_without_its_run_is_refused(tmp_path):
    run = a_run(tmp_path / "run", "decoder=lstm")
    beam = searched(run, run / "beam1", said(0.5, 1), beam=1)
    assert read_members([beam])[0].run == str(run)
    alone = searched(run, tmp_path / "alone", said(0.5, 1), beam=1)
    with pytest.raises(UserError, match=f"{alone}: an evaluation, and {tmp_path} is not its run: python eval.py run=RUN out=RUN/alone"):
        read_members([alone])
    (beam / "metrics.json").unlink()
    with pytest.raises(UserError, match=f"{beam}: not evaluated yet .*python eval.py run={run} out={beam}, with the search"):
        read_members([beam])
    searched(run, beam, said(0.5, 1), beam=1)
    checkpoint.save(run / "best", tensors={}, state={"progress": {"epoch": 3}})
    with pytest.raises(UserError, match=f"{beam}: the checkpoint of {run} is another than the one evaluated: .* out={beam}, with"):
        read_members([beam])


def test_searches_of_one_run_are_no_seeds_of_it(beams):
    with pytest.raises(UserError, match="lstm-1 and .*lstm-1/beam1 are evaluations of one run, and are no two seeds"):
        compared(beams, by=["decoder"])
    assert any("of one run" in warning for warning in compared(beams, by=["decoder"], force=True).warnings)
    copy = searched(beams[0], beams[0] / "again", said(0.6, 1))
    with pytest.raises(UserError, match="lstm-1 and .*lstm-1/again are evaluations of one run"):
        compared([beams[0], copy])


def test_searches_that_by_leaves_out_are_said_and_others_are_not(beams):
    mixed = [*beams[0::3][:2], *beams[1::3][2:]]  # lstm with a beam of 3, attention with one of 1
    note = "captions were not made alike, which --by leaves out: eval.search.beam_size differs"
    (warning,) = [warning for warning in compared(mixed, by=["decoder"]).warnings if warning.startswith(note)]
    assert f"{mixed[0]} (3), {mixed[2]} (1)" in warning
    for by, paths in [((), mixed), (("decoder", "eval.search.beam_size"), mixed), (("decoder",), beams[1::3])]:
        assert not any("made alike" in warning for warning in compared(paths, by=by).warnings)


def test_groups_of_the_same_runs_are_said_to_share_their_seeds_and_costs_not_to_know_the_search(beams):
    warnings = compared(beams).warnings
    (shared,) = [warning for warning in warnings if warning.startswith("the same trained runs as in lstm beam_size=3: ")]
    assert "lstm beam_size=1, lstm beam_size=5." in shared and "attention" not in shared
    assert any("searches differ, costs do not know it" in warning for warning in warnings)
    for paths in (beams[1::3], beams[:3]):  # one search; one seed, which is all there is to either
        assert not any("same trained runs" in warning for warning in compared(paths).warnings)
    assert not any("searches differ" in warning for warning in compared(beams[1::3]).warnings)


def test_weights_of_one_name_are_told_apart_by_what_is_in_them(tmp_path):
    def run(name, place, weights, seed):
        return a_run(tmp_path / name, "encoder=resnet18", f"encoder.weights={tmp_path}/{place}", seed=seed, weights=weights)

    folders = [
        run("a", "here/pretrained", "a" * 64, 1),
        run("b", "there/pretrained", "a" * 64, 2),
        run("c", "else/pretrained", "b" * 64, 3),
    ]
    assert [len(group.members) for group in grouped(read_members(folders))] == [2, 1]
    none = [a_run(tmp_path / f"n{n}", "encoder=resnet18", "encoder.weights=none", seed=n, weights=f"seed {n}") for n in (1, 2)]
    assert [len(group.members) for group in grouped(read_members(none))] == [2]


def test_weights_are_named_only_where_one_encoder_has_several(tmp_path):
    def run(name, encoder, weights):
        return a_run(tmp_path / name, f"encoder={encoder}", f"encoder.weights={tmp_path}/pretrained", seed=1, weights=weights * 64)

    one, other, again = run("a", "resnet18", "a"), run("b", "resnet34", "b"), run("c", "resnet18", "c")
    assert not any("bbbb" in group.name for group in grouped(read_members([one, other])))
    assert any("cccc" in group.name for group in grouped(read_members([one, again])))


def test_a_run_that_is_not_evaluated_or_not_trained_is_refused_by_name(six, tmp_path):
    bare = a_run(tmp_path / "bare", "decoder=lstm", seed=5)
    (bare / "scores.json").unlink()
    with pytest.raises(UserError, match=f"{bare}: not evaluated yet .*python eval.py run={bare}"):
        read_members([six[0], bare])
    for file in (bare / "best").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=f"{bare}: not trained to a first validation"):
        read_members([bare])
    with pytest.raises(UserError, match="not a run directory"):
        read_members([tmp_path])


def test_one_run_given_as_two_seeds_is_refused(six, tmp_path):
    assert len(read_members([six[0], six[0]])) == 1
    twin = a_run(tmp_path / "twin", "decoder=lstm", seed=1)
    with pytest.raises(UserError, match="have the same settings and seed=1"):
        compared([six[0], twin])


# What it looks like


def test_csv_and_latex_and_markdown_hold_the_table(six):
    comparison = compared(six)
    rows = list(csv.DictReader(tables.as_csv(comparison, costs(comparison)).splitlines()))
    assert len(rows) == 9 and {row["metric"] for row in rows} == set(METRICS)
    second = comparison.lines["cider"][1]
    assert float(rows[1]["difference"]) == second.difference.value and float(rows[1]["p_holm"]) == second.p_holm
    assert rows[0]["difference"] == "" and float(rows[1]["greedy_ms"]) == 20
    shown = tables.tables(comparison, costs(comparison))
    text = tables.latex(shown, comparison.warnings)
    bodies = re.findall(r"\\begin\{tabular\}\{(l(?:r+))\}\n\\toprule\n(.*?)\\bottomrule", text, flags=re.DOTALL)
    assert len(bodies) == 5
    for (columns, body), table in zip(bodies, shown):
        lines = [line for line in body.splitlines() if line != r"\midrule"]
        assert len(lines) == len(table.rows) + 1 and all(len(re.split(r"(?<!\\)&", line)) == len(columns) for line in lines)
    grid = [line for line in tables.markdown(shown, []).splitlines() if line.startswith("|")]
    assert len(grid) == 5 * 5 and all(len(re.split(r"(?<!\\)\|", line)) in (11, 10, 7) for line in grid)


def test_the_overview_has_every_metric_and_marks_what_is_found(six):
    comparison = compared(six)
    overview, *each = tables.tables(comparison, costs(comparison))[:-1]
    assert len(overview.columns) == 2 + len(METRICS) and len(each) == len(METRICS)
    for place, table in enumerate(each, start=2):
        found = [row[7].endswith("*") for row in table.rows]
        assert [row[place] for row in overview.rows] == [row[2] + "*" * is_found for row, is_found in zip(table.rows, found)]
    assert any("*" in cell for row in overview.rows for cell in row)


def test_names_are_escaped_in_every_form(six):
    group = "a_b & <i>|$x$"
    members = [member._replace(settings={"decoder": name}) for name, member in zip((group, "other"), read_members([six[0], six[5]]))]
    comparison = compare(grouped(members), METRICS, resamples=100)
    shown = tables.tables(comparison, costs(comparison))
    assert r"a\_b \& \textless{}i\textgreater{}|\$x\$" in tables.latex(shown, [])
    assert r"a\_b & \<i\>\|$x$" in tables.markdown(shown, [])
    text = page(comparison, costs(comparison))
    assert "a_b &amp; &lt;i&gt;|$x$" in text and "<i>" not in text


def test_the_page_has_tables_figures_with_a_text_and_nothing_from_outside(six):
    comparison = compared(six)
    text = page(comparison, costs(comparison))
    assert text.count("<svg") == text.count('role="img" aria-label="') == 7 and text.count("<table>") == 6
    assert "one seed only: attention" in text and str(six[0]) in text and "cider|tok:" in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)


def test_pareto_marks_whom_no_other_beats():
    assert pareto({"a": 3, "b": 2, "c": 1, "d": 3}, {"a": 5, "b": 2, "c": 2, "d": 6}) == {"a", "b"}
    assert pareto({"a": 1, "b": 1}, {"a": 1, "b": 1}) == {"a", "b"}


# With models


@pytest.fixture(scope="module")
def trained(drawings, tmp_path_factory):
    from captioning.build.evaluation import evaluate
    from captioning.build.jobs import Training

    found = []
    for decoder, seed in (("lstm", 1), ("lstm", 2), ("attention", 1)):
        run = tmp_path_factory.mktemp("trained") / f"{decoder}-{seed}"
        words = [*TINY, *CNN, *SMALL, f"decoder={decoder}", f"seed={seed}", "trainer=smoke", f"data.root={drawings}", f"run={run}"]
        Training(as_dict(composed("train", words))).start()
        evaluate(composed("eval", [f"run={run}", "show=0", "device=cpu"]))
        found.append(str(run))
    return found


def test_the_command_compares_trained_runs_and_writes_every_form(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cost, "ROUNDS", 2)
    out = [word for kind in ("csv", "md", "tex", "html") for word in ("--out", str(tmp_path / f"table.{kind}"))]
    captioning_command(["compare", *trained, "--metric", "cider,bleu4", *out, "--device", "cpu", "--resamples", "200"])
    text = capsys.readouterr().out
    assert "CIDEr, x100: 8 images of test" in text and "one seed only: attention" in text and "ms, beam 3" in text
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["group"] for row in rows] == ["lstm", "attention"] * 2
    for row in rows:
        assert 0 < int(row["trained"]) <= int(row["parameters"]) and float(row["greedy_ms"]) > 0 and float(row["beam_ms"]) > 0
        assert float(row["training_s"]) > 0 and float(row["peak_bytes"]) > 2**20
    assert (tmp_path / "table.html").read_text().startswith("<!doctype html>")
    with pytest.raises(SystemExit) as ended:
        captioning_command(["compare", *trained, "--out", str(tmp_path / "table.pdf")])
    assert ended.value.code == 2 and "must end in .csv, .md, .tex, .html" in capsys.readouterr().err


def test_every_search_of_a_pattern_of_runs_is_evaluated_by_one_command_and_compared_at_the_cost_of_its_run(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "ROUNDS", 2)
    for run in trained[:2]:
        shutil.copytree(run, tmp_path / "runs" / Path(run).name)
    words = ["-m", "run=runs/lstm-*", "search.beam_size=1,2", "out=${run}/beam${search.beam_size}", "show=0", "device=cpu"]
    monkeypatch.setattr(sys, "argv", ["eval.py", *words])
    run_program("eval")
    assert "4 members: 4 finished now" in capsys.readouterr().out
    paths = sorted(map(str, Path("runs").glob("lstm-*/beam*")))
    assert paths == [f"runs/lstm-{seed}/beam{k}" for seed in (1, 2) for k in (1, 2)]
    captioning_command(["compare", *paths, "--metric", "cider", "--out", "table.csv", "--device", "cpu", "--resamples", "200"])
    one, two = csv.DictReader(Path("table.csv").read_text().splitlines())
    assert (one["group"], two["group"], one["seeds"]) == ("beam_size=1", "beam_size=2", "2")
    assert all(one[key] == two[key] for key in ("parameters", "training_s", "greedy_ms", "beam_ms")) and float(one["greedy_ms"]) > 0
    run_program("eval")
    assert "0 finished now, 4 were finished before" in capsys.readouterr().out


def test_without_timing_there_are_no_times_and_flops_stand_for_the_cost(trained, capsys):
    captioning_command(["compare", *trained, "--no-timing", "--resamples", "100"])
    text = capsys.readouterr().out
    assert "ms, greedy" not in text and "no more FLOPs" in text


@pytest.mark.parametrize("name", ["attention", "adaptive", "lstm", "gru", "rnn"])
def test_operations_of_a_caption_are_those_of_the_formula_and_of_its_encoder(name):
    from benchmarks.flops import Sizes, flops_of
    from captioning.analysis.cost import Captioner, flops_a_caption
    from captioning.build.objects import make
    from captioning.data.transforms import Transform
    from captioning.models.caption_model import CaptionModel
    from captioning.models.encoders import SmallCNN

    node = as_dict(composed("train", [f"decoder={name}", *SMALL]))["decoder"]
    encoder = SmallCNN(16)
    decoder = make("decoder", node, feature_dims=encoder.dims, vocab_size=50)
    model = CaptionModel(encoder, decoder).eval()
    found = flops_a_caption(Captioner(model, Transform(size=32), Vocabulary([])), words=9)
    convolutions = 2 * (16 * 16 * 27 * 4 + 8 * 8 * 36 * 8 + 4 * 4 * 72 * 16 + 4 * 4 * 144 * 16) + 2 * 16 * 2 * 16  # and the cells' places
    wanted = convolutions + flops_of(decoder, encoder.dims, Sizes(1, 16, 10)).forward
    assert found == pytest.approx(wanted, rel=0.02)
