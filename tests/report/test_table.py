"""prunekit table: what it averages, marks, leaves out and says."""

import csv
import io
import re

import pytest
from support.stored_runs import result, store, weight_result

from prunekit.cli.main import main
from prunekit.config.errors import ConfigError
from prunekit.report.formats import markdown
from prunekit.report.rows import collect, one_per_seed, save, select, variant
from prunekit.report.seeds import difference, holm, summary
from prunekit.report.table import build, default_rows

SCORES = {
    ("dense", "dense"): (0.60, 0.60, 0.60),
    ("top", "2x"): (0.58, 0.57, 0.59),
    ("topk", "2x"): (0.53, 0.52, 0.54),
    ("random", "2x"): (0.30, 0.56, 0.43),
    ("top", "3x"): (0.50, 0.52, 0.51),
    ("topk", "3x"): (0.52, 0.51, 0.53),
}


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for (method, budget), scores in SCORES.items():
        for seed, score in enumerate(scores, start=1):
            store(folder, result(method, budget, seed, score))
    return folder


@pytest.fixture
def shell(capsys):
    def typed(*words):
        with pytest.raises(SystemExit) as ended:
            main(["table", *map(str, words)])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return typed


# -- statistics --------------------------------------------------------------------------------------


def test_a_summary_has_mean_sd_and_the_95_percent_interval_of_student():
    found = summary([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.high - found.mean == pytest.approx(4.302653 / 3**0.5, abs=1e-5)  # t of 2 degrees of freedom
    assert found.mean - found.low == pytest.approx(found.half)


def test_one_seed_has_no_spread():
    assert summary([0.5]).sd is None
    assert summary([0.5]).half is None


def test_seeds_in_common_are_compared_in_pairs():
    """Differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.46 at 2 degrees of freedom."""
    first, second = {1: 11.0, 2: 22.0, 3: 33.0}, {1: 10.0, 2: 20.0, 3: 30.0}
    assert difference(first, second) == pytest.approx(0.0742, abs=1e-4)


def test_seeds_of_their_own_are_compared_by_welch():
    from scipy.stats import ttest_ind

    first, second = [1.0, 2.0, 4.0], [7.0, 6.0, 9.0, 8.0]
    p = difference(dict(enumerate(first)), dict(enumerate(second, start=100)))
    assert p == pytest.approx(ttest_ind(first, second, equal_var=False).pvalue)


@pytest.mark.parametrize("other", [{1: 2.0}, {1: 2.0, 2: 3.0}], ids=["one seed", "no spread"])
def test_what_cannot_be_tested_has_no_p_value(other):
    assert difference({1: 1.0, 2: 2.0}, other) is None


def test_holm_corrects_for_the_number_of_comparisons():
    assert holm([0.01, None, 0.04, 0.03]) == [0.03, None, 0.06, 0.06]


# -- which model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["teacher", "backbone"])
def test_runs_of_other_weights_are_other_lines_wherever_they_were(tmp_path, shell, block):
    """Four models at one seed stay four; a copy elsewhere is the same one."""
    for number, score in enumerate((0.5, 0.6, 0.7, 0.8, 0.8)):
        config = {block: {"path": f"models/m{number}"}, "own": {block: f"digest{min(number, 3)}"}}
        store(tmp_path, result("top", "2x", 1, score, hash=f"1a2b3c4{number}"), config)
    rows = collect([tmp_path]).rows
    assert len({variant(row) for row in rows}) == 4
    assert len(one_per_seed(rows)) == 4


def test_a_model_without_a_digest_is_known_by_its_place(tmp_path):
    for number in range(2):
        config = {"teacher": {"path": f"models/m{number}"}}
        store(tmp_path, result("top", "2x", 1, 0.5, hash=f"1a2b3c4{number}"), config)
    assert len({variant(row) for row in collect([tmp_path]).rows}) == 2


# -- the table ---------------------------------------------------------------------------------------


def test_lines_are_methods_within_budgets_dense_first_controls_last(runs, shell):
    code, out, err = shell(runs, "spread=sd")
    assert (code, err) == (0, "")
    body = [line for line in out.splitlines() if line.startswith("| ")]
    assert body == [
        "| budget | method | cola matthews |",
        "|  | dense | 60.00 ± 0.00 |",
        "| 2x | top | **58.00 ± 1.00** |",
        "| 2x | topk | 53.00 ± 1.00 |",
        "| 2x | random | 43.00 ± 13.00 |",
        "| 3x | top | 51.00 ± 1.00 |",
        "| 3x | topk | **52.00 ± 1.00** |",
    ]


def test_a_method_that_is_worse_with_every_seed_is_marked_and_a_noisy_one_is_not(tmp_path, shell):
    """top - topk is 5, 5.1, 4.9 points with the same seeds; top - random is 28, 1, 16."""
    for method, scores in {
        "top": (0.58, 0.57, 0.59),
        "topk": (0.53, 0.519, 0.541),
        "random": (0.3, 0.56, 0.43),
    }.items():
        for seed, score in enumerate(scores, start=1):
            store(tmp_path, result(method, "2x", seed, score))
    _, out, _ = shell(tmp_path)
    assert "| topk | 53.00 ± 2.73\\* |" in out
    assert "| random | 43.00 ± 32.29 |" in out
    assert "paired t-test over the seeds that both have" in out
    assert "n = 3" in out


def test_dense_stands_once_per_task_when_budgets_are_columns(runs, shell):
    _, out, _ = shell(runs, "rows=method", "cols=task,budget", "spread=none")
    assert "| method | cola 2x matthews | cola 3x matthews |" in out
    assert "| dense | 60.00 |  |" in out


def test_several_measures_stand_side_by_side(runs, shell):
    words = ("method=top", "metric=score,reduction,speedup_b1,accuracy", "spread=none")
    _, out, _ = shell(runs, *words)
    assert "| budget | method | cola matthews | cola reduction | cola speedup b1 | cola accuracy |" in out
    assert "| 2x | top | 58.00 | 2.00x | 1.50x | 68.00 |" in out


def test_a_grid_shows_its_teacher_as_dense_and_not_as_an_option_without_a_value(tmp_path):
    store(tmp_path, result("dense", "dense", 1, 0.6))
    for rate, alpha, score in ((2e-5, 0.1, 0.5), (2e-5, 0.2, 0.51), (4e-5, 0.1, 0.52), (4e-5, 0.2, 0.53)):
        run = result("top", "2x", 1, score, hash=f"{rate}{alpha}")
        store(tmp_path, run, {"method": {"alpha": alpha}, "trainer": {"lr": rate}})
    table = build(collect([tmp_path]).rows, ["method.alpha", "trainer.lr"], ["budget"])
    assert [head for head, _ in table.lines] == [
        ("dense", ""),
        ("0.1", "2e-05"),
        ("0.1", "4e-05"),
        ("0.2", "2e-05"),
        ("0.2", "4e-05"),
    ]
    assert [column.head for column in build(collect([tmp_path]).rows, ["trainer.lr"], ["method.alpha"]).columns] == [
        ("0.1",),
        ("0.2",),
    ]


def test_the_dense_line_comes_from_the_pruned_runs_where_its_folder_is_gone(tmp_path, shell):
    store(tmp_path, result("top", "2x", 1, 0.55))
    assert "| dense | 60.00 |" in shell(tmp_path)[1]


def test_a_run_that_missed_its_budget_is_marked(tmp_path, shell):
    store(tmp_path, result("top", "2x", 1, 0.55, status="budget_missed"))
    out = shell(tmp_path)[1]
    assert "55.00†" in out
    assert "† a run of it missed its budget" in out


def test_a_cell_with_fewer_seeds_than_others_says_how_many(tmp_path, shell):
    for seed in (1, 2):
        store(tmp_path, result("top", "2x", seed, 0.55))
    store(tmp_path, result("topk", "2x", 1, 0.5))
    out = shell(tmp_path, "spread=none")[1]
    assert "| topk | 50.00 (1) |" in out


def test_different_configurations_are_never_averaged(tmp_path, shell):
    store(tmp_path, result("top", "2x", 1, 0.55))
    store(tmp_path, result("top", "2x", 1, 0.57, hash="other"), {"trainer": {"lr": 3e-5}})
    store(tmp_path, result("topk", "2x", 1, 0.50))
    code, out, err = shell(tmp_path)
    assert code == 0
    assert "| top | 2 configurations |" in out
    assert "| topk | 50.00 |" in out
    assert "trainer.lr is 0.0001 or 3e-05" in err
    assert "add trainer.lr to rows= or cols=, choose one with trainer.lr=..., or take" in err
    assert "| top | **57.00** |" in shell(tmp_path, "best=true")[1]
    assert "| 3e-05 | top | **57.00** |" in shell(tmp_path, "rows=trainer.lr,method")[1]
    assert "| top | **55.00** |" in shell(tmp_path, "trainer.lr=1e-4")[1]


def test_what_cannot_change_a_score_makes_no_configuration_of_its_own(tmp_path, shell):
    store(tmp_path, result("top", "2x", 1, 0.55), {"bench": {"enabled": True}})
    store(tmp_path, result("top", "2x", 1, 0.55, hash="other", speed=[]), {"bench": {"enabled": False}})
    assert "| top | 55.00 | 1.50x |" in shell(tmp_path, "metric=score,speedup_b1")[1]


def test_a_seed_that_follows_the_runs_makes_no_configuration_of_its_own(tmp_path, shell):
    for seed in (1, 2):
        store(tmp_path, result("random", "2x", seed, 0.5), {"method": {"seed": seed}})
    assert "| random | 50.00 ± 0.00 |" in shell(tmp_path)[1]
    store(tmp_path, result("random", "2x", 3, 0.5), {"method": {"seed": 1}})
    assert "| random | 2 configurations |" in shell(tmp_path)[1]


# -- other formats -----------------------------------------------------------------------------------


def test_latex_escapes_and_compiles_by_the_look_of_it(runs, shell):
    _, out, _ = shell(runs, "format=latex", "budget=2x", "metric=score,reduction_padded")
    assert r"\begin{tabular}{lrr}" in out
    assert r"top & \textbf{58.00 $\pm$ 2.48} & 8.00x $\pm$ 0.00 \\" in out
    assert "cola reduction padded" in out
    assert out.count(r"\toprule") == out.count(r"\bottomrule") == 1


def test_csv_holds_everything_known_of_a_cell(runs, shell):
    _, out, _ = shell(runs, "format=csv", "budget=2x")
    rows = list(csv.DictReader(io.StringIO(out)))
    top = next(row for row in rows if row["method"] == "top")
    assert (top["task"], top["metric"], top["n"], top["mean"], top["sd"], top["best"]) == (
        "cola",
        "matthews",
        "3",
        "58",
        "1",
        "1",
    )
    assert float(top["high"]) == pytest.approx(58 + 4.302653 / 3**0.5, abs=1e-3)


def test_a_results_file_gives_the_table_of_the_folders_it_was_saved_from(runs, tmp_path, shell):
    file = tmp_path / "results.json"
    _, from_folders, _ = shell(runs, f"save={file}")
    _, from_file, err = shell(file)
    assert from_file == from_folders
    assert err == ""
    assert "runs/" not in file.read_text()  # no place of a machine
    assert file.stat().st_size < 700 * len(collect([file]).rows)


# -- bad input ---------------------------------------------------------------------------------------


def test_a_bad_result_is_named_and_the_rest_is_shown(runs, shell):
    old = store(runs, result("ltp", "2x", 1, 0.5, schema=0))
    torn = store(runs, result("ltp", "3x", 1, 0.5))
    (torn / "result.json").write_text('{"schema": 1, "meth')
    new = store(runs, result("ltp", "4x", 1, 0.5, schema=9))
    lacking = result("ltp", "5x", 1, 0.5)
    del lacking["flops"]["flops_vs_unpadded"]
    lacking = store(runs, lacking)
    running = store(runs, result("ltp", "6x", 1, 0.5))
    (running / "result.json").unlink()
    code, out, err = shell(runs)
    assert code == 0
    assert "ltp" not in out
    assert "| 2x | top |" in out
    assert f"left out: {old}/result.json has schema 0, this prunekit writes 1\n" in err
    assert f"left out: {torn}/result.json is not readable as JSON" in err
    assert f"left out: {new}/result.json has schema 9, this prunekit reads up to 1\n" in err
    assert f"left out: {lacking}/result.json lacks 'flops_vs_unpadded'" in err
    assert f"not finished: 1 run, as {running}\n" in err


def test_another_metric_of_the_same_task_is_left_out_by_name(runs, shell):
    changed = result("ltp", "2x", 1, 0.9)
    changed["score"] |= {"metric": "accuracy"}
    store(runs, changed)
    code, out, err = shell(runs)
    assert code == 0
    assert "ltp" not in out
    assert "cola: shows matthews on 1043 validation rows; left out" in err
    assert "ltp 2x s1-ltp02x01 (accuracy on 1043 validation rows)" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], r"nowhere does not exist\.\nAllowed: folders of runs"),
        (["task="], r"task= is no condition\.\nAllowed: name=value"),
        (["task=sst2"], r"task=sst2: no run has it\.\nAllowed: cola\."),
        (["lr=1e-4"], r"lr: no run has it\.\n.*\nDid you mean trainer\.lr\?"),
        (["rows=methd"], r"rows=methd: no run has it\.\n.*\nDid you mean method\?"),
        (["metric=f1"], r"metric=f1: no run has it\.\nAllowed: score, .*accuracy"),
        (["format=xls"], r"format=xls is not one of the choices\.\nAllowed: one of markdown\|latex\|csv;"),
        (["formt=csv"], r"formt=csv is neither a setting nor a condition.*\nAllowed: rows, .*\nDid you mean format="),
        (["method=top", "seed=4"], r"seed=4: no run has it\.\nAllowed: 1, 2, 3\."),
        (["where.seed=4"], r"seed=4: no run has it\.\nAllowed: 1, 2, 3\."),
        (["method=random", "budget=3x"], r"method=random budget=3x: no run meets all of it\."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_says_what_is_allowed(runs, shell, words, message):
    code, out, err = shell(*([] if words == ["nowhere"] else [runs]), *words)
    assert (code, out) == (4, "")
    assert re.match(message, err), err
    assert len(err.splitlines()) <= 3


def test_what_was_typed_with_dashes_is_answered_with_what_to_type_now(runs, shell):
    old = ["--where", "task=cola,sst2", "budget=2x", "--metric", "score,reduction", "--format=latex", "--best"]
    code, out, err = shell("results.json", *old)
    assert (code, out) == (4, "")
    assert err.splitlines() == [
        "--where: settings have no dashes.",
        "Allowed: key=value.",
        "Type: prunekit table results.json task=cola,sst2 budget=2x metric=score,reduction format=latex best=true",
    ]
    now = err.splitlines()[-1].removeprefix("Type: prunekit table results.json ").split()
    assert shell(runs, *(word.replace(",sst2", "") for word in now))[0] == 0


def test_an_empty_folder_says_that_nothing_is_finished(tmp_path, shell):
    code, _, err = shell(tmp_path)
    assert code == 4
    assert "holds no finished run" in err


def test_a_damaged_results_file_is_named(tmp_path, runs, shell):
    (tmp_path / "torn.json").write_text('{"format": "prunekit results", "sch')
    (tmp_path / "new.json").write_text('{"format": "prunekit results", "schema": 7, "runs": []}')
    (tmp_path / "part.json").write_text(
        '{"format": "prunekit results", "schema": 1, "config": {}, "runs": [{"task": 1}]}'
    )
    code, out, err = shell(runs, tmp_path / "torn.json", tmp_path / "new.json", tmp_path / "part.json")
    assert code == 0
    assert "| 2x | top |" in out
    assert "torn.json is not readable as JSON" in err
    assert "new.json has schema 7, this prunekit reads 1" in err
    assert "part.json: run 1 lacks backbone, budget" in err


def test_conditions_let_the_dense_model_through(runs):
    rows = collect([runs]).rows
    assert {row["method"] for row in select(rows, {"budget": ["3x"]})} == {"dense", "top", "topk"}


def test_a_cell_over_two_tasks_is_no_average(runs):
    store(runs, result("top", "2x", 1, 0.5, task="rte"))
    table = build(collect([runs]).rows, ["method", "budget"], [])
    assert any("task is cola or rte" in problem for problem in table.problems)


def test_different_teachers_of_one_seed_are_said(runs):
    changed = result("ltp", "2x", 1, 0.5)
    changed["score"] |= {"dense": 0.7}
    store(runs, changed)
    problems = build(collect([runs]).rows, ["method", "budget"], ["task"]).problems
    assert any("start from different teachers: 60.00 (5 runs), 70.00 (1 run)" in problem for problem in problems)


def test_less_perplexity_is_better_and_variants_of_a_method_are_lines(tmp_path):
    for number, (name, here) in enumerate([("dpruner, lambda 1", 40.0), ("dpruner, lambda 3", 30.0)]):
        found = weight_result("dpruner", 1, here, hash=f"{number}", variant=name, peak_memory_mib=100.0 + number)
        store(tmp_path / "runs", found, {"method": {"lambda_": number}})
    save(collect([tmp_path / "runs"]).rows, tmp_path / "saved.json")
    for place in (tmp_path / "runs", tmp_path / "saved.json"):
        rows = collect([place]).rows
        table = markdown(build(rows, default_rows(rows, ["task"]), ["task"], ["domain_perplexity", "memory"]))
        assert "| dense | 20.00 | - |" in table
        assert "| dpruner, lambda 1 | 40.00 | 100 MiB |" in table
        assert "| dpruner, lambda 3 | **30.00** | 101 MiB |" in table


def test_saved_numbers_have_six_digits(tmp_path):
    store(tmp_path, result("top", "2x", 1, 1 / 3))
    save(collect([tmp_path]).rows, tmp_path / "x.json")
    assert '"score": 0.333333,' in (tmp_path / "x.json").read_text()


def test_an_unknown_field_is_refused():
    with pytest.raises(ConfigError, match="rows=seeed"):
        build([], ["seeed"], [])
