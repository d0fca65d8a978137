"""The page of a report: what is in it, and what it does in a browser."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest

from petl_bench.errors import RequestError
from petl_bench.records.store import RunFolder
from petl_bench.records.study_file import PlannedRun, StudyFile
from petl_bench.reports.groups import named_groups
from petl_bench.reports.page import SCRIPTS, STYLES, page_data, render_page, write_page
from petl_bench.reports.report import write_report
from reports.generated import record as one_record
from reports.made_records import METHODS, TASKS, made_record, made_study

ROOT = Path(__file__).parents[2]
EVIL = '</script><img src=x onerror="window.hacked=1"><script>window.hacked=2</script>'
DESK = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


def embedded(page: str) -> dict:
    """The data of a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def rendered(records: list, **more) -> str:
    return render_page(page_data(named_groups(records), records, **more))


def test_the_parts_of_the_page_are_shipped():
    beside = {item.name for item in files("petl_bench.reports.page").iterdir() if item.is_file()}
    shipped = {name for name in beside if not name.endswith(".py")}
    assert shipped == {"page.html", *STYLES, *SCRIPTS}
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = built["package-data"]["petl_bench.reports.page"]
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in shipped)


def test_the_page_names_no_other_place():
    page = rendered(made_study(seeds=1))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert not re.search(r"\b(src|href)=\"(?!data:,|#)", page)
    assert "default-src 'none'" in page


def test_rows_hold_the_statistics_by_hand():
    records = [made_record("lora", "cola", seed) for seed in range(3)]
    for record, score in zip(records, (0.50, 0.52, 0.57), strict=True):
        record.scores.best["matthews_correlation"] = score
    (row,) = embedded(rendered(records))["rows"]
    assert (row["score"], row["sd"], row["median"]) == pytest.approx((53.0, 3.605551, 52.0))
    # 4.3027 standard errors of 3.6056 / sqrt(3) on either side.
    assert (row["low"], row["high"]) == pytest.approx((53 - 8.9568, 53 + 8.9568), abs=1e-3)
    assert row["estimated_peak_bytes"] == pytest.approx(records[0].memory.estimate.peak_bytes / 2**20)
    assert row["device_peak_bytes"] is None
    step, epoch, mean, _, n = row["history"][-1]
    assert (step, epoch, n) == (276, 3.0, 3)
    assert mean == pytest.approx(100 * sum(r.history[-1].scores["matthews_correlation"] for r in records) / 3)


def test_numbers_of_rows_share_the_name_of_their_method():
    data = embedded(rendered(made_study(seeds=1)))
    curves = {curve["method"]: [data["rows"][i]["rows"] for i in curve["rows"]] for curve in data["rows_curves"]}
    assert curves["bitfit"] == [100, 300, 1000, 3000]
    assert sorted(curves) == ["bitfit", "full", "lora layers.name=all"]


def test_a_study_names_its_runs_and_leaves_out_what_it_did_not_take(tmp_path):
    taken, rejected, foreign = (
        made_record("lora", "cola", seed, variant=rate) for seed, rate in ((0, 1e-3), (0, 1), (7, 1e-3))
    )
    for number, record in enumerate((taken, rejected, foreign)):
        RunFolder(tmp_path / str(number)).write(record)
    runs = [
        PlannedRun("LoRA of the paper", "CoLA", 0, taken.run_key, "0", []),
        PlannedRun("LoRA of the paper", "CoLA", 0, rejected.run_key, "1", [], chosen=False),
    ]
    study = StudyFile("a study", "What it asks.", ["LoRA of the paper"], ["CoLA"], [0], runs, deviations=["Smaller."])
    study.write(tmp_path)
    write_report([str(tmp_path)], "csv", None, lambda _: None, page=str(tmp_path / "page.html"))
    data = embedded((tmp_path / "page.html").read_text())
    assert [(row["method"], row["task"], row["n"]) for row in data["rows"]] == [("LoRA of the paper", "CoLA", 1)]
    assert (data["title"], data["descriptions"], data["deviations"]) == ("a study", ["What it asks."], ["Smaller."])
    assert data["origin"]["others"] == 2


def test_rows_that_a_study_names_alike_are_told_apart():
    records = [made_record("lora", "cola", 0, variant=rate) for rate in (1e-3, 1e-2)]
    runs = [PlannedRun("LoRA", "cola", 0, record.run_key, "", [], chosen=None) for record in records]
    named = named_groups(records, [StudyFile("s", "", ["LoRA"], ["cola"], [0], runs)])
    assert {item.method for item in named} == {"LoRA (lora learning_rate=0.001)", "LoRA (lora learning_rate=0.01)"}


def test_a_page_needs_an_ending_that_browsers_open(tmp_path):
    with pytest.raises(RequestError, match=r"--html .*page.txt: the ending must be one of .html, .htm"):
        write_page(page_data([], []), tmp_path / "page.txt")


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    file.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("petl_bench.process.os.fsync", full)
    with pytest.raises(OSError, match=r"page\.html"):
        write_page(page_data([], []), file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_long_history_is_thinned_to_what_a_plot_can_show():
    record = made_record("lora", "cola", 0)
    first = record.history[0]
    record.history = [replace(first, step=step) for step in range(1, 1001)]
    (row,) = page_data(named_groups([record]), [record])["rows"]
    steps = [step for step, *_ in row["history"]]
    assert len(steps) <= 121
    assert (steps[0], steps[-1]) == (1, 1000)


def test_fronts_join_rows_of_one_protocol_and_memory_names_its_batch():
    records = [made_record(method, "cola", 0) for method in ("lora", "full", "head")]
    records[2].config["train"]["epochs"] = 77
    data = page_data(named_groups(records), records)
    protocols = {row["method"]: row["protocol"] for row in data["rows"]}
    assert protocols["lora"] == protocols["full"] != protocols["head"]
    first = data["axes"][0]
    assert (first["key"], first["name"]) == ("estimated_peak_bytes", "estimated memory, MiB, batch of 32 rows")
    assert first["short"] == "estimated MiB (batch of 32 rows)"


def test_pairs_and_complete_tasks_go_by_the_runs():
    records = [made_record(method, task, 0) for method in ("lora", "full") for task in ("cola", "mrpc")]
    keys = [record.run_key for record in records]
    # The last is of a run that is not on the page.
    pairs = [(keys[0], keys[2], -1), (keys[0], "another", 1)]
    data = page_data(named_groups(records), records, pairs=pairs, incomplete={keys[1], keys[3]})
    ids = {(row["method"], row["task"]): row["id"] for row in data["rows"]}
    assert data["pairs"] == [[ids["lora", "cola"], ids["full", "cola"], -1]]
    assert {(row["task"], row["complete"]) for row in data["rows"]} == {("cola", True), ("mrpc", False)}


def test_a_report_tells_the_page_what_its_tests_show(tmp_path):
    scores = {"lora": (0.80, 0.81, 0.82), "full": (0.90, 0.92, 0.91), "head": (0.81, 0.80, 0.82)}
    made = [
        one_record(method, "mrpc", seed, score) for method, mine in scores.items() for seed, score in enumerate(mine)
    ]
    made.append(one_record("lora", "rte", 0, 0.5))
    for one in made:
        RunFolder(tmp_path / one.run_key).write(one)
    page = tmp_path / "page.html"
    # The box compares every pair, whatever the tables compare.
    write_report([str(tmp_path)], "csv", None, lambda _: None, page=str(page), reference="full")
    data = embedded(page.read_text())
    names = {row["id"]: row["method"] for row in data["rows"]}
    signs = {frozenset((names[a], names[b])): (names[a], sign) for a, b, sign in data["pairs"]}
    # Full against LoRA: 10, 11 and 9 points, t = 17.3, p = 0.003; against the head 9, 12, 9, t = 10, p = 0.01;
    # LoRA against the head: -1, 1, 0.
    assert len(data["pairs"]) == 3
    for other in ("lora", "head"):
        first, sign = signs[frozenset(("full", other))]
        assert sign == (1 if first == "full" else -1)
    assert signs[frozenset(("lora", "head"))][1] == 0
    assert {row["task"]: row["complete"] for row in data["rows"]} == {"mrpc": True, "rte": False}


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid(script):
    file = files("petl_bench.reports.page") / script
    done = subprocess.run(["node", "--check", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium whose requests are logged."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    binary, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("neither Chromium nor its chromedriver is installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page on a whole study, papers and claims included."""
    records = made_study()
    published = {
        "row": "LoRA", "source": "a paper, Table 2", "task": "cola", "metric": "mcc", "value": 63.45, "sd": 1.2,
        "ours_mean": 50.0, "ours_sd": 0.5, "n": 3, "comparable": False, "why": "a larger encoder",
    }  # fmt: skip
    claim = {"claim": "LoRA is on par.", "source": "a paper", "verdict": "reproduced", "numbers": "-0.61 points"}
    file = tmp_path_factory.mktemp("page") / "page.html"
    # On SST-2 "full" is told from all but LoRA and Houlsby; on the other tasks there is no test.
    keys = {method: next(r.run_key for r in records if r.run_key.startswith(f"{method}-sst2")) for method in METHODS}
    alike = ("full", "lora", "houlsby")
    pairs = [(keys[a], keys[b], int((a in alike) > (b in alike))) for a, b in combinations(METHODS, 2)]
    incomplete = {r.run_key for r in records if "-mrpc-" in r.run_key}
    data = page_data(
        named_groups(records), records, published=[published], claims=[claim], pairs=pairs, incomplete=incomplete
    )
    data["notes"] = ["not the same for all methods: epochs 3 (full); 10 (lora)"]
    write_page(data, file)
    return file.as_uri()


@pytest.fixture
def opened(browser, page):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", DESK)
    show(browser, page)
    yield browser
    assert browser.get_log("browser") == []


def show(browser, address: str) -> None:
    browser.get(address)
    drawn(browser)


def drawn(browser) -> None:
    """Waits until what was asked for is drawn."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def texts(browser, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
    return browser.execute_script(script, selector)


def click(browser, selector: str) -> None:
    node = browser.find_element("css selector", selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", node)
    node.click()
    drawn(browser)


def scores(browser) -> list[float]:
    return [float(text) for text in texts(browser, "#rows .mean")]


def count(browser, selector: str) -> int:
    return len(browser.find_elements("css selector", selector))


def test_the_page_asks_for_nothing_but_itself(browser, page):
    browser.get_log("performance")
    show(browser, page)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked[0] == page
    assert {address for address in asked[1:] if not address.startswith("data:")} == set()


def test_a_click_on_a_header_sorts_and_another_reverses(opened):
    before = scores(opened)
    click(opened, 'th[data-key="score"] button')
    assert scores(opened) == sorted(before, reverse=True) != before
    assert opened.find_element("css selector", 'th[data-key="score"]').get_attribute("aria-sort") == "descending"
    click(opened, 'th[data-key="score"] button')
    assert scores(opened) == sorted(before)
    assert count(opened, 'th[aria-sort="ascending"]') == 1


def choose(browser, task, **limits):
    """Sets the task and the limits of the box on top, as steps from the left; returns its answer."""
    script = """
    const [task, limits] = arguments;
    const menu = document.getElementById("use-task");
    menu.value = [...menu.options].find((option) => option.text.startsWith(task)).value;
    menu.dispatchEvent(new Event("change"));
    for (const [key, step] of Object.entries(limits)) {
      const slider = document.querySelector(`[data-limit="${key}"]`);
      slider.value = step;
      slider.dispatchEvent(new Event("input"));
    }"""
    browser.execute_script(script, task, limits)
    return texts(browser, "#use h3")[0], texts(browser, "#use .answer p")[0]


def test_the_box_names_no_winner_that_the_runs_do_not_carry(opened):
    title, text = choose(opened, "sst2")
    by_score = {
        row["method"]: row["score"] for row in opened.execute_script("return DATA.rows") if row["task"] == "sst2"
    }
    best = max(by_score, key=by_score.get)
    assert title == f"{best}, or one of 2 others"
    assert "these runs do not tell it from" in text
    assert sorted(texts(opened, "#use tbody td.text")) == ["full", "houlsby", "lora"]
    title, text = choose(opened, "cola")
    assert title.endswith("scores best, which may be chance")
    assert "too few seeds for a test against" in text


def test_the_box_keeps_to_the_limits(opened):
    # The methods by trained parameters: head, fl_tuning, bitfit, lora, prefix, ...
    assert choose(opened, "sst2", params_trainable=0)[0] == "Only head keeps within these limits"
    assert "at most 770" in texts(opened, "#use .sliders output")
    title, text = choose(opened, "sst2", params_trainable=3)
    assert (title, "all others are shown to be worse" in text) == ("Use lora", True)
    assert "Shown to be worse: bitfit, fl_tuning, head." in texts(opened, "#use .answer p")
    beyond = texts(opened, "#use .answer p")[-1]
    assert all(method in beyond for method in ("full", "houlsby", "coda"))
    # The fastest method is another one than the smallest.
    assert choose(opened, "sst2", params_trainable=0, train_seconds=0)[0].startswith(("Only head", "Nothing here"))


def test_cards_are_of_complete_tasks_alone(opened):
    cards = texts(opened, ".best-card .name")
    assert len(cards) == len(TASKS) - 1
    assert not any("mrpc" in card for card in cards)


def test_points_are_named_and_what_differs_is_listed(opened):
    assert count(opened, "#scores .name") >= 0.8 * count(opened, "#scores .pt")
    assert texts(opened, "#table .list li") == ["not the same for all methods: epochs 3 (full); 10 (lora)"]


def test_filters_take_rows_and_points_away(opened):
    assert (count(opened, "#rows tr"), count(opened, "#scores .pt")) == (40, 40)
    opened.find_element("id", "search").send_keys("lora cola")
    drawn(opened)
    assert texts(opened, "#rows tr td:first-child") == ["lora"]
    assert count(opened, "#scores .pt") == 1
    click(opened, "#reset")
    assert count(opened, "#rows tr") == 40
    opened.find_element("xpath", "//label[contains(@class, 'chip')][span[text()='bitfit']]").click()
    drawn(opened)
    assert "bitfit" not in texts(opened, "#rows tr td:first-child")
    assert (count(opened, "#rows tr"), count(opened, "#scores .pt")) == (34, 34)
    assert texts(opened, "#count") == ["34 of 40 rows"]


def test_a_point_tells_its_numbers_and_lights_up_its_method(opened):
    from selenium.webdriver import ActionChains

    # So high that nothing scrolls, which would take the tooltip away.
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**DESK, "height": 4000})
    drawn(opened)
    point = opened.find_element("css selector", '#scores .pt[aria-label^="houlsby"]')
    ActionChains(opened).move_to_element(point).perform()
    drawn(opened)
    tip = opened.find_element("id", "tooltip")
    (row,) = (
        row for row in opened.execute_script("return DATA.rows") if (row["method"], row["task"]) == ("houlsby", "cola")
    )
    assert tip.is_displayed()
    assert f"{row['score']:.1f} ± {row['sd']:.1f}" in tip.text
    assert f"{row['params_trainable']:,}" in tip.text
    assert texts(opened, "#rows tr.hot td:first-child") == ["houlsby"] * len(TASKS)
    assert count(opened, "#history .over path.line") == 1
    ActionChains(opened).move_to_element(opened.find_element("id", "title")).perform()
    assert not tip.is_displayed()
    assert count(opened, "tr.hot") == 0


def test_a_row_keeps_its_method_lit_up_until_escape(opened):
    from selenium.webdriver import ActionChains, Keys

    click(opened, "#rows tr .pin")
    ActionChains(opened).move_to_element(opened.find_element("id", "title")).perform()
    assert set(texts(opened, "tr.hot td:first-child")) == {"head"}
    assert count(opened, "#scores .over .shape") == len(TASKS)
    ActionChains(opened).send_keys(Keys.ESCAPE).perform()
    assert count(opened, ".hot") == count(opened, ".over .shape") == 0


def test_arrow_keys_walk_along_the_points(opened):
    from selenium.webdriver import ActionChains, Keys

    opened.find_element("id", "axis").send_keys(Keys.TAB)
    first = opened.switch_to.active_element.get_attribute("aria-label")
    ActionChains(opened).send_keys(Keys.ARROW_RIGHT).perform()
    assert opened.switch_to.active_element.get_attribute("aria-label") != first
    assert opened.find_element("id", "tooltip").is_displayed()


def test_another_cost_draws_other_points(opened):
    from selenium.webdriver.support.select import Select

    places = "return [...document.querySelectorAll('#scores .pt')].map((node) => node.getAttribute('transform'))"
    before = opened.execute_script(places)
    assert "estimated memory" in texts(opened, "#scores .axis-name")[0]
    Select(opened.find_element("id", "axis")).select_by_value("params_trainable")
    drawn(opened)
    assert opened.execute_script(places) != before
    assert "trained parameters" in texts(opened, "#scores .axis-name")[0]


def test_the_theme_changes_colours(opened):
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = opened.execute_script(colour)
    click(opened, "#theme")
    assert opened.execute_script(colour) != light
    assert texts(opened, "#theme") == ["Light theme"]


def test_every_section_is_there(opened):
    shown = [node.text for node in opened.find_elements("css selector", "h2") if node.is_displayed()]
    assert shown == [
        "What should I use?", "Score against cost", "Every method in numbers", "Learning curves", "Fewer training rows",
        "Variability by layer", "Published against reproduced", "Claims", "How to read this page",
    ]  # fmt: skip
    assert texts(opened, "#published td")[-5:] == [
        "63.45 ± 1.2", "50.0 ± 0.5", "3", "\N{MINUS SIGN}13.5", "no: a larger encoder",
    ]  # fmt: skip
    assert texts(opened, "#claims td")[-2:] == ["reproduced", "-0.61 points"]


def test_a_phone_scrolls_down_only(opened, page):
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    show(opened, page)
    wide, screen = opened.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= screen == 390
    tops = [opened.find_element("id", name).rect["y"] for name in ("use", "table", "cards", "filters", "scores")]
    assert tops == sorted(tops)
    # The scores are seen without scrolling sideways.
    mean = opened.find_element("css selector", "#rows .mean").rect
    assert mean["x"] + mean["width"] <= 390


def test_text_of_the_data_never_becomes_a_script(browser, tmp_path):
    records = [made_record("lora", "cola", seed) for seed in (0, 1)]
    for record in records:
        record.config["method"]["name"] = record.config["task"]["name"] = EVIL
        record.hardware["processor"] = record.versions["torch"] = EVIL
    study = StudyFile(f"{EVIL} {{{{script}}}}", EVIL, [], [], [], [], deviations=[EVIL])
    rows = {"published": [{"row": EVIL, "why": EVIL}], "claims": [{"claim": EVIL, "verdict": EVIL, "numbers": EVIL}]}
    write_page(page_data(named_groups(records), records, [study], **rows), tmp_path / "page.html")
    show(browser, (tmp_path / "page.html").as_uri())
    click(browser, "#rows .pin")
    assert browser.execute_script("return [window.hacked, document.images.length]") == [None, 0]
    assert texts(browser, "#rows td:first-child") == [EVIL]
    assert texts(browser, "#title") == [f"{EVIL} {{{{script}}}}"]
    assert browser.get_log("browser") == []
