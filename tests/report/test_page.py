"""prunekit report: the numbers of the page, and the page in a real browser."""

import json
import re
import shutil

import numpy as np
import pytest
from support.stored_runs import add_examples, result, store, study_folder

from prunekit.cli.main import main
from prunekit.report.explorer import words_of
from prunekit.report.fairness import GRAVITIES, lint
from prunekit.report.html import page
from prunekit.report.page_data import overlap, study
from prunekit.report.rows import Collection, collect
from prunekit.results import examples
from prunekit.runs.folder import RunFolder

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def numbers(runs, texts=500):
    return study(collect([runs]), "A study", texts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return study_folder(tmp_path_factory.mktemp("study") / "runs")


@pytest.fixture(scope="module")
def found(runs):
    return numbers(runs)


def config_of(found, **wanted):
    return next(
        i for i, config in enumerate(found["configs"]) if all(config[key] == value for key, value in wanted.items())
    )


# -- numbers -----------------------------------------------------------------------------------------


def test_seeds_of_one_configuration_are_one_point(found):
    top = found["configs"][config_of(found, task="cola", method="top", budget="2x")]
    assert top["seeds"] == [1, 2]
    assert (top["score"]["n"], round(top["score"]["mean"], 6)) == (2, 59.5)
    assert (round(top["drop"]["mean"], 6), top["reduction"]["mean"]) == (-0.5, 2.0)
    assert top["kept"] == [round(8 / 9, 4), round(4 / 9, 4)]


def test_configurations_of_a_grid_stand_in_the_order_of_their_own_values(tmp_path):
    for rate in (1e-2, 1e-5, 1e-4):
        run = result("top", "2x", 1, 0.5, hash=f"{rate:.0e}")
        store(tmp_path, run, {"method": {"name": "top", "rank_alpha": rate}})
    own = [config["own"] for config in numbers(tmp_path)["configs"] if config["method"] == "top"]
    assert own == ["rank_alpha=1e-05", "rank_alpha=0.0001", "rank_alpha=0.01"]


def test_where_all_score_the_same_none_is_the_best(tmp_path):
    for method in ("top", "topk", "random"):
        store(tmp_path, result(method, "2x", 1, 0.0))
        store(tmp_path, result(method, "3x", 1, 0.1 if method == "topk" else 0.0))
    found = numbers(tmp_path)
    best = [
        (c["method"], c["budget"]) for c, mark in zip(found["configs"], found["marks"], strict=True) if mark["best"]
    ]
    assert best == [("topk", "3x")]


def test_a_run_that_is_not_finished_is_a_failure_with_its_folder(found):
    (failure,) = found["unfinished"]
    assert failure["folder"] == "cola/ltp/minilm/2x/s1-ltp02x01"
    assert failure["state"] == "stopped"


def test_a_run_that_failed_says_why(tmp_path):
    store(tmp_path, result("top", "2x", 1, 0.5))
    broken = store(tmp_path, result("top", "3x", 1, 0.5))
    (broken / "result.json").unlink()
    RunFolder(broken, "").write_failure(1, "loss is nan\nmore about it")
    (failure,) = numbers(tmp_path)["unfinished"]
    assert failure["state"] == "failed: loss is nan"


def test_flips_are_counted_against_the_dense_model(tmp_path):
    folder = store(tmp_path, result("top", "2x", 1, 0.5))
    stored = add_examples(folder)
    (run,) = [run for run in numbers(tmp_path)["runs"] if "flips" in run]
    before, after = stored.dense == stored.labels, stored.predicted == stored.labels
    assert run["flips"] == {
        "rows": 24,
        "lost": int((before & ~after).sum()),
        "won": int((~before & after).sum()),
        "both_wrong": int((~before & ~after).sum()),
    }


def test_right_answers_by_length_and_label_are_means_over_the_seeds(found, runs):
    place = found["lengths"][0]
    assert (place["names"], place["rows"]) == (["12", "13", "14-15"], [6, 6, 12])
    assert len(place["configs"]) == 4
    labels = found["labels"][0]
    assert (labels["names"], sum(labels["rows"])) == (["bad", "good"], 24)
    entry = next(
        e for e in labels["configs"] if e["config"] == config_of(found, task="cola", method="top", budget="2x")
    )
    stored = [examples.load(path) for path in sorted((runs / "cola/top/minilm/2x").glob("s*"))]
    shares = [(one.predicted == one.labels)[one.labels == 0].mean() for one in stored]
    assert entry["pruned"][0] == pytest.approx(100 * np.mean(shares), abs=0.01)


def three_texts(depth):
    """Two layers; per text [CLS] and four words."""
    return examples.Examples(
        labels=np.zeros(1, int),
        predicted=np.zeros(1, int),
        dense=np.zeros(1, int),
        lengths=np.array([5]),
        counts=np.zeros((1, 2), int),
        index=np.array([0]),
        offsets=np.array([0, 5]),
        ids=np.array([0, 1, 2, 3, 4]),
        depth=np.array(depth),
        scores=np.zeros((5, 2), np.uint8),
        piece_ids=np.arange(5),
        pieces=np.array(["[CLS]", "a", "b", "c", "d"]),
        special=np.array([True, False, False, False, False]),
        classes=("x", "y"),
    )


def test_overlap_is_both_over_either_where_something_was_decided():
    """Layer 0 keeps everything on both sides and does not count; layer 1 keeps a b against b c."""
    assert overlap(three_texts([2, 2, 2, 1, 1]), three_texts([2, 1, 2, 2, 1])) == pytest.approx(1 / 3)
    assert overlap(three_texts([2, 2, 2, 1, 1]), three_texts([2, 2, 2, 1, 1])) == 1.0
    assert overlap(three_texts([2] * 5), three_texts([2] * 5)) is None


def test_a_method_is_compared_with_its_own_seeds_on_the_diagonal(found):
    place = found["agreement"][0]
    top = config_of(found, task="cola", method="top", budget="2x")
    random = config_of(found, task="cola", method="random", budget="2x")
    keys = {(left, right) for left, right, _ in place["pairs"]}
    assert {(top, top), tuple(sorted((top, random)))} <= keys
    assert all(0 < value < 1 for _, _, value in place["pairs"])


def test_runs_that_store_different_numbers_of_texts_are_compared_on_those_that_both_have(tmp_path):
    for method, count in (("top", 24), ("random", 10)):
        folder = store(tmp_path, result(method, "2x", 1, 0.5))
        examples.save(add_examples(folder, seed=len(method)).first_texts(count), folder)
    found = numbers(tmp_path)
    assert [len(place["runs"]) for place in found["explorer"]] == [2]
    assert found["explorer"][0]["rows"] == list(range(10))
    assert [pair[:2] for pair in found["agreement"][0]["pairs"]] == [[1, 2]]


@pytest.mark.parametrize(
    ("pieces", "numbers"),
    [
        (["[CLS]", "play", "##ing", "on", "[SEP]"], [None, 0, 0, 1, None]),
        (["<s>", "play", "ing", "Ġon", "</s>"], [None, 0, 0, 1, None]),
        (["<s>", "▁play", "ing", "▁on", "</s>"], [None, 0, 0, 1, None]),
    ],
)
def test_pieces_are_joined_to_words(pieces, numbers):
    assert words_of(pieces, [number is None for number in numbers]) == numbers


def test_scores_of_the_explorer_can_be_read_back(found, runs):
    place = found["explorer"][0]
    run = place["runs"][0]
    stored = examples.load(next((runs / "cola/top/minilm/2x").glob("s1-*")))
    number = place["rows"].index(3)
    where = stored.text(3)
    assert [found["signs"].index(sign) for sign in run["depth"][number]] == stored.depth[where].tolist()
    first = [
        2 ** ((found["signs"].index(sign) - 32) / 4) for sign in run["scores"][number][: len(run["depth"][number])]
    ]
    wanted = examples.decode_scores(stored.scores[where, 0])
    assert np.abs(np.array(first) / wanted - 1).max() < 0.2
    assert len(run["scores"][number]) == int(np.minimum(stored.depth[where] + 1, stored.layers).sum())


def test_texts_that_pruning_changed_come_first_when_not_all_fit(runs):
    place = numbers(runs, texts=6)["explorer"][0]
    assert len(place["rows"]) == 3  # half of six: there are two tasks
    for at in range(3):
        assert any(run["predicted"][at] != run["dense"][at] for run in place["runs"])


@pytest.mark.slow
def test_500_texts_of_two_methods_take_less_than_two_megabytes(tmp_path):
    for method in ("top", "random"):
        folder = store(tmp_path, result(method, "2x", 1, 0.5))
        add_examples(folder, seed=len(method), rows=600, length=128, layers=6)
    found = numbers(tmp_path)
    assert len(found["explorer"][0]["rows"]) == 500
    assert len(page(found).encode()) < 2_000_000


@pytest.mark.slow
def test_more_methods_take_no_more_room_than_two_megabytes(tmp_path):
    for number, method in enumerate(("top", "random", "first", "topk", "ltp")):
        folder = store(tmp_path, result(method, "2x", 1, 0.5))
        add_examples(folder, seed=number, rows=520, length=128, layers=6)
    found = numbers(tmp_path)
    assert 100 < len(found["explorer"][0]["rows"]) < 500
    assert len(page(found).encode()) < 2_000_000


# -- fairness ----------------------------------------------------------------------------------------


def row(method, seed=1, **changes):
    config = {"task.max_length": 64, "trainer.epochs": 3, **changes.pop("config", {})}
    return {
        "task": "cola",
        "backbone": "minilm",
        "method": method,
        "budget": "2x",
        "seed": seed,
        "hash": "0",
        "status": "done",
        "teacher": "aaaa",
        "dense": 0.6,
        "data": "dddd",
        "metric": "matthews",
        "split": "validation",
        "rows": 100,
        "flops": {"vs_unpadded": 2.0},
        "speed": [],
        "hardware": "cpu",
        "config": config,
        **changes,
    }


def pair(**changes):
    return [row("top", seed) for seed in (1, 2, 3)] + [row("topk", seed, **changes) for seed in (1, 2, 3)]


def test_runs_under_the_same_conditions_are_not_complained_about():
    assert lint(pair()) == []


@pytest.mark.parametrize(
    ("changes", "subject", "words"),
    [
        ({"teacher": "bbbb"}, "teacher", "aaaa: top 2x; bbbb: topk 2x"),
        ({"teacher": None, "dense": 0.7}, "teacher", "scoring 60.00: top 2x; scoring 70.00: topk 2x"),
        ({"config": {"task.max_length": 128}}, "max length", "64: top 2x; 128: topk 2x"),
        ({"data": "eeee"}, "data", "dddd: top 2x; eeee: topk 2x"),
        ({"rows": 50}, "score", "matthews on 50 validation rows: topk 2x"),
        ({"config": {"method.train": False}}, "training", "3 epochs: top 2x; 0 epochs: topk 2x"),
        ({"flops": {"vs_unpadded": 1.8}}, "cost", "topk 2x 1.80x, top 2x 2.00x"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_planted_difference_is_found(changes, subject, words):
    found = [unfair for unfair in lint(pair(**changes)) if unfair.subject == subject]
    assert found
    assert words in found[0].sentence
    assert found[0].where == "cola, minilm"


def test_differences_that_forbid_a_comparison_are_the_gravest():
    runs = [*pair(teacher="bbbb", config={"task.padded_length": 9}), row("first", config={"task.padded_length": 8})]
    found = {unfair.subject: GRAVITIES[unfair.gravity] for unfair in lint(runs)}
    assert found == {
        "teacher": "The scores cannot be compared",
        "seeds": "Methods had unequal chances",
        "padded length": "The measurements are of different kinds",
    }


def test_seeds_and_trials_that_differ_are_found():
    runs = [*pair(), row("ltp", 1), row("ltp", 1, config={"trainer.lr": 1.0})]
    found = {unfair.subject: unfair.sentence for unfair in lint(runs)}
    assert "1: top 2x, topk 2x; 2: ltp 2x" in found["tuning trials"]
    assert [u.sentence for u in lint(runs) if "different seeds" in u.sentence]
    assert [u.sentence for u in lint(runs) if "fewer than 3 seeds" in u.sentence and "ltp 2x" in u.sentence]


# -- the command -------------------------------------------------------------------------------------


def command(*words):
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, words)])
    return ended.value.code


def test_the_command_writes_one_file_that_names_no_other(runs, tmp_path, capsys):
    out = tmp_path / "deep" / "page.html"
    assert command(runs, "task=cola", f"out={out}", "title=A & <b>") == 0
    assert re.search(r"page\.html: 10 runs, \d\.\d MB", capsys.readouterr().out)
    text = out.read_text()
    assert "<title>A &amp; &lt;b&gt;</title>" in text
    assert "sst2" not in text
    without_names = text.replace("http://www.w3.org/2000/svg", "")  # the name of a vocabulary, never fetched
    assert re.findall(r"https?://|//cdn|@import|url\(|<link|src=", without_names) == []


def test_a_title_may_read_like_a_place_of_the_page(runs, tmp_path):
    out = tmp_path / "page.html"
    assert command(runs, "task=cola", f"out={out}", "title=%DATA% %STYLE% 100%") == 0
    text = out.read_text()
    assert '<h1 id="title">%DATA% %STYLE% 100%</h1>' in text
    assert text.count('<script type="application/json" id="data">{') == 1


def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path, capsys):
    study_folder(tmp_path / "runs", tasks=("cola",))
    torn = next((tmp_path / "runs/cola/top/minilm/2x").glob("s1-*"))
    (torn / "examples.npz").write_bytes(b"PK torn")
    old = next((tmp_path / "runs/cola/random/minilm/2x").glob("s1-*"))
    (old / "result.json").write_text(json.dumps({"schema": 0}))
    assert command(tmp_path / "runs", f"out={tmp_path / 'r.html'}") == 0
    out, err = capsys.readouterr()
    assert "r.html: 9 runs" in out
    assert "examples.npz cannot be read" in err
    assert "has schema 0, this prunekit writes 1" in err
    assert "has schema 0" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["examples=-1"], "examples=-1 is out of range.\nAllowed: int 0..; the most texts in the token explorer."),
        (["task=rte"], "task=rte: no run has it.\nAllowed: cola, sst2."),
        (["method=dense", "status=failed"], "status=failed: no run has it.\nAllowed: done."),
        (["--title", "A & B", "task=cola"], "Type: prunekit report {runs} 'title=A & B' task=cola out="),
    ],
)
def test_wrong_arguments_say_what_is_allowed(runs, words, message, tmp_path, capsys):
    assert command(runs, *words, f"out={tmp_path / 'x.html'}") == 4
    assert message.format(runs=runs) in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_a_results_file_alone_makes_a_page_without_the_explorer(runs, tmp_path, capsys):
    from prunekit.report.rows import save

    save(collect([runs]).rows, tmp_path / "results.json")
    found = study(collect([tmp_path / "results.json"]), "x")
    assert found["explorer"] == []
    assert len(found["runs"]) == 20


def test_text_that_looks_like_html_stays_text():
    evil = {**study(Collection(), "</script><script>alert(1)</script>")}
    text = page(evil)
    assert "</script><script>alert" not in text


# -- the page in a browser ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def opened(browser, found, tmp_path_factory):
    """The page, opened from a file; what it says on the console, and whom it asks for, is collected."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page(found), encoding="utf-8")
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.said, tab.asked = [], []
    tab.on("console", lambda message: tab.said.append(message.text))
    tab.on("pageerror", lambda error: tab.said.append(str(error)))
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.goto(file.as_uri())
    tab.wait_for_selector("body[data-ready]")
    yield tab
    tab.close()


@pytest.fixture
def tab(opened):
    """The page as it was when it was opened."""
    opened.reload()
    opened.wait_for_selector("body[data-ready]")
    yield opened
    assert opened.said == []


def lines(tab, section):
    return tab.locator(f"#{section} tbody tr").all_inner_texts()


def test_it_opens_from_a_file_says_nothing_and_asks_for_nothing_else(tab):
    assert {url.split(":")[0] for url in tab.asked} == {"file"}
    assert len({*tab.asked}) == 1
    for section in ("overview", "pareto", "layers", "budget", "speed", "agreement", "lengths", "labels", "flips"):
        assert tab.locator(f"#{section} .body > *").count() > 0, section
    assert tab.locator("#pareto svg").count() == 2
    assert tab.locator("#pareto circle").count() == 20 + 10  # seeds and means
    assert "cola/ltp/minilm/2x/s1-ltp02x01" in tab.locator("#failures").inner_text()
    assert tab.locator("#commands pre").count() == 20


def test_the_page_begins_with_the_best_of_each_task_and_budget(tab):
    first, *others = tab.locator("#verdict .tile").all_inner_texts()
    assert [line for line in first.splitlines() if line] == [
        "best: cola, 2x",
        "top",
        "59.50 matthews, -0.5 points, 1.5x faster one at a time",
        "significantly worse: 0 of 1 other",
    ]
    assert len(others) == 3
    assert tab.locator("main > section").first.get_attribute("id") == "verdict"


def test_settings_of_one_method_have_a_letter_a_colour_and_a_line_in_the_key(browser, tmp_path):
    for rate in (1e-2, 1e-4):
        store(
            tmp_path / "runs",
            result("top", "2x", 1, rate, hash=f"{rate:.0e}"),
            {"method": {"name": "top", "rank_alpha": rate}},
        )
    file = tmp_path / "report.html"
    file.write_text(page(numbers(tmp_path / "runs")), encoding="utf-8")
    tab = browser.new_page()
    tab.goto(file.as_uri())
    tab.wait_for_selector("body[data-ready]")
    rows = [line.split("\t") for line in tab.locator("#overview tbody tr").all_inner_texts()]
    assert [[cell.strip() for cell in row[:2]] for row in rows[-2:]] == [
        ["top a", "rank_alpha=0.0001"],
        ["top b", "rank_alpha=0.01"],
    ]
    assert tab.locator("#pareto text.name").all_text_contents() == ["dense", "top b", "top a"]
    dots = tab.locator("#overview .dot").evaluate_all("all => all.map(dot => dot.style.background)")
    assert len({*dots[1:3]}) == 2
    tab.close()


def test_filters_choose_what_is_drawn_everywhere(tab):
    assert len(lines(tab, "overview")) == 10
    tab.select_option("#filter-task", "sst2")
    assert len(lines(tab, "overview")) == 5
    assert tab.locator("#pareto svg").count() == 1
    tab.select_option("#filter-budget", "3x")
    assert [line.split("\t")[0].strip() for line in lines(tab, "overview")] == ["dense", "top", "random"]
    tab.click("button[data-method=random]")
    assert [line.split("\t")[0].strip() for line in lines(tab, "overview")] == ["dense", "top"]
    assert all("random" not in line for line in lines(tab, "flips"))
    tab.click("button[data-method=random]")
    tab.select_option("#filter-budget", "")
    tab.select_option("#filter-task", "")
    assert len(lines(tab, "overview")) == 10


def test_the_explorer_shows_who_stays_and_hovering_shows_the_score(tab, runs):
    stored = examples.load(next((runs / "cola/top/minilm/2x").glob("s1-*")))
    side = tab.locator("#explorer .side").first
    assert tab.locator("#explorer .side").count() == 2
    row = int(re.search(r"test row (\d+)", tab.locator("#position").inner_text())[1])
    depth = stored.depth[stored.text(row)]
    for layer in range(4):
        tokens = side.locator(".row").nth(layer).locator("i")
        kept = [name == "kept" for name in tokens.evaluate_all("all => all.map(token => token.className)")]
        assert kept == (depth > layer).tolist()
    side.locator(".row").first.locator("i").nth(1).hover()
    hint = tab.locator("#tip").inner_text()
    score = float(re.search(r"score ([\d.e+-]+)", hint)[1])
    assert score == pytest.approx(float(examples.decode_scores(stored.scores[stored.text(row)][1:2, 0])[0]), rel=0.2)
    dark, light = (
        side.locator(f"i.{name}").first.evaluate("token => getComputedStyle(token).color")
        for name in ("kept", "dropped")
    )
    assert dark != light


def test_wrong_after_pruning_right_before(tab, runs):
    tab.select_option("#right", "-1")
    tab.select_option("#only", "lost")
    stored = examples.load(next((runs / "cola/top/minilm/2x").glob("s1-*")))
    wanted = np.flatnonzero((stored.dense == stored.labels) & (stored.predicted != stored.labels)).tolist()
    seen = []
    while True:
        seen.append(int(re.search(r"test row (\d+)", tab.locator("#position").inner_text())[1]))
        assert tab.locator("#explorer .verdict b.good").count() == tab.locator("#explorer .verdict b.bad").count() == 1
        if tab.locator("#next").is_disabled():
            break
        tab.click("#next")
    assert seen == wanted


def test_a_word_is_found_and_one_that_is_nowhere_says_so(tab):
    everything = tab.locator("#position").inner_text()
    tab.fill("#find", "bright")
    tab.press("#find", "Enter")
    tab.locator("#explorer .tokens i", has_text="bright").first.wait_for()
    assert tab.locator("#position").inner_text() != everything
    tab.fill("#find", "zebra")
    tab.press("#find", "Enter")
    tab.get_by_text("No text matches.").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_sticks_out_and_text_stands_out(browser, tab, scheme, width):
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    dark, light = sorted((ink, paper), key=lambda colour: sum(map(int, re.findall(r"\d+", colour)[:3])))
    assert (paper == dark) == (scheme == "dark")
    assert sum(map(int, re.findall(r"\d+", light)[:3])) - sum(map(int, re.findall(r"\d+", dark)[:3])) > 500


def test_the_words_that_leave_first_are_those_with_the_smallest_share_of_layers():
    """`a` passes 1 of 2 layers, `b` both; each occurs five times; c is not common enough, [CLS] is no word."""
    from prunekit.report.explorer import _word_types, _words

    joined = examples.Examples(
        **{
            **vars(three_texts([2] * 5)),
            "ids": np.array([0, 1, 2, 3, 0, *[0, 1, 2] * 4]),
            "depth": np.array([2, 1, 2, 2, 2, *[2, 1, 2] * 4]),
            "offsets": np.array([0, 17]),
        }
    )
    found = _word_types(joined, _words(joined))
    assert found["pruned_words"] == [["a", 5, 0.5], ["b", 5, 1.0]]
    assert found["kept_words"][0] == ["b", 5, 1.0]
