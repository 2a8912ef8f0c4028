"""report.html in headless Chromium: sort, filter, open an item, read tokens, by keyboard, on hostile data."""

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.support.axe import axe_source, grave_violations
from tests.support.report_folders import make_page, make_run

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ITEMS = 200
HOSTILE = '</script><img src=x onerror="window.hacked=1"><svg onload="window.hacked=1">'
PATIENCE = 30  # seconds until what the page does at once counts as not done

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on PATH")


def edit(policy, row, tokens):
    if row["id"] == "test-3":
        row |= {"response": HOSTILE, "question": f"why {HOSTILE} ?", "value": HOSTILE}
        row["rewards"] = {HOSTILE: 1.0}
        tokens["tokens"][1] = HOSTILE
        tokens["values"]["intrinsic"][:3] = [-900.0, 900.0, 0.0]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return make_page(make_run(folder / "run", items=ITEMS, edit=edit), folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def chromium():
    options = Options()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1400,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a reader does with the page, and what is seen."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get("about:blank")
        driver.get(address)
        self.until("return document.documentElement.dataset.ready === 'yes'")

    def __call__(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, script, *arguments):
        """Wait until the script's answer is true; fails with the last answer."""
        end = time.monotonic() + PATIENCE
        while not (answer := self(script, *arguments)):
            assert time.monotonic() < end, f"{script}: still {answer!r}"
            time.sleep(0.02)
        return answer

    def all(self, selector):
        return self("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)

    def choose(self, name, value):
        self(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            f"f-{name}",
            value,
        )

    def shown(self, count):
        self.until("return document.getElementById('count').textContent === arguments[0]", count)

    def press(self, *keys):
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def item(self, name):
        self.until("return document.getElementById('item').ariaLabel === arguments[0]", f"Item {name}")


@pytest.fixture()
def opened(chromium, page):
    return lambda state="": Page(chromium, page + state)


def index_of(opened):
    """Who is right by the marks of the list, whole: policy -> list of bool."""
    folder = opened.driver.current_url.split("#")[0].removeprefix("file://").removesuffix("report.html")
    rows = {}
    for path in sorted(Path(folder, "run", "10_evaluation").glob("*/samples/predictions.jsonl")):
        rows[path.parents[1].name] = [json.loads(line) for line in path.read_text().splitlines()]
    return rows


def test_methods_sort_by_any_column_both_ways(opened):
    page = opened()
    accuracy = "#methods table.sortable tbody td:nth-child(2)"
    page("document.querySelector('#methods thead th:nth-child(2) button').click()")
    falling = [float(text.split()[0]) for text in page.all(accuracy)[:3]]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) > 1
    head = "return document.querySelector('#methods thead th:nth-child(2)').ariaSort"
    assert page(head) == "descending"
    page("document.querySelector('#methods thead th:nth-child(2) button').click()")
    assert [float(text.split()[0]) for text in page.all(accuracy)[:3]] == falling[::-1]
    assert page(head) == "ascending"


def test_in_a_narrow_window_chapters_stay_in_sight_and_a_pressed_row_shows_its_item(opened):
    page = opened()
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.until("return document.querySelector('.chapters a').getBoundingClientRect().right < innerWidth")
        assert page("return document.documentElement.scrollWidth") == 400
        page("document.getElementById('list').scrollIntoView()")
        page.until("return document.querySelectorAll('.item-row').length > 3")
        page("document.querySelectorAll('.item-row')[3].click()")
        page.until("return Math.abs(document.getElementById('item').getBoundingClientRect().top - 100) < 60")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_filters_find_what_the_files_say(opened):
    page = opened()
    rows = index_of(page)
    total = f"of {ITEMS} items"
    page.shown(f"{ITEMS} {total}")
    page.choose("policy", "1")
    page.choose("outcome", "wrong")
    page.shown(f"{sum(not row['correct'] for row in rows['ppo'])} {total}")
    page.choose("reason", "0")
    page.shown(f"{sum(row['failure_reason'] == 'cut_off' for row in rows['ppo'])} {total}")
    page("document.getElementById('f-reset').click()")
    page.choose("level", "2")
    page.choose("type", "0")
    page.shown(f"{sum(r['level'] == 2 and r['type'] == 'ratio' for r in rows['sft'])} {total}")
    page("document.getElementById('f-reset').click()")
    page.choose("change", "fixed")
    pairs = list(zip(rows["sft"], rows["grpo"], strict=True))
    page.shown(f"{sum(b['correct'] and not a['correct'] for a, b in pairs)} {total}")
    page.choose("change", "broken")
    page.shown(f"{sum(a['correct'] and not b['correct'] for a, b in pairs)} {total}")
    page("document.getElementById('f-reset').click()")
    page.choose("text", "ITEM NUMBER 19 ?")
    page.shown(f"1 {total}")
    page.choose("text", HOSTILE.split()[1])
    page.shown(f"1 {total}")
    page.choose("text", "no such text")
    page.shown(f"0 {total}")
    assert page.all(".empty") == ["No item passes these filters."]
    # Answers count on request only.
    answer = rows["ppo"][150]["response"].split("\n")[0].strip()
    page.choose("text", answer)
    page.shown(f"0 {total}")
    page("document.getElementById('f-deep').click()")
    texts = [[rows[name][i]["response"].lower() for name in rows] for i in range(ITEMS)]
    page.shown(f"{sum(any(answer.lower() in text for text in of) for of in texts)} {total}")


def test_a_changed_count_of_a_pair_shows_those_items(opened):
    page = opened()
    rows = index_of(page)
    page("document.querySelector('button[data-a=sft][data-b=ppo][data-kind=broken]').click()")
    pairs = zip(rows["sft"], rows["ppo"], strict=True)
    broken = [a["id"] for a, b in pairs if a["correct"] and not b["correct"]]
    page.shown(f"{len(broken)} of {ITEMS} items")
    page.item(broken[0])


def test_an_item_shows_answers_rewards_and_a_heat_map_that_keys_walk(opened):
    page = opened("#items?item=test-3")
    page.item("test-3")
    row, pieces = index_of(page)["ppo"][3], 12
    # Data are text: nothing ran, nothing was made of them, nothing was refused either.
    assert page("return window.hacked") is None
    assert page("return document.querySelectorAll('#items img, #items svg').length") == 0
    assert page.driver.get_log("browser") == []
    assert page.all("#item .question") == [row["question"]]
    assert page.all("#item .chips.rewards b") == ["1.00"] * 3
    assert HOSTILE in page.all("#item section[data-policy=ppo] .tok")
    assert len(page.all("#item section[data-policy=ppo] .tok")) == pieces
    # Sign without colour, the strongest bold, the unknown marked.
    look = "return [...document.querySelectorAll('section[data-policy=ppo] .tok')].map(e => e.className)"
    classes = page(look)
    assert "negative" in classes[0] and "big" in classes[0] and "unknown" in classes[-1]
    assert "negative" not in classes[1] and classes[2] == "tok"
    colours = page(
        "return [...document.querySelectorAll('section[data-policy=ppo] .tok')].map("
        "e => getComputedStyle(e).backgroundColor)"
    )
    assert colours[0].startswith("rgba(213, 94, 0, 0.6") and colours[1].startswith("rgba(0, 114, 178, 0.6")
    # Enter, Tab into the map, arrows, numbers.
    page("document.querySelector('section[data-policy=ppo] .tok').focus()")
    page.press(Keys.ARROW_RIGHT)
    readout = page.all("section[data-policy=ppo] .readout")[0]
    assert readout.startswith("2/12 ") and "Intrinsic +900.0" in readout and readout.endswith("nats")
    assert page("return document.activeElement.ariaLabel").endswith(", +900.0 nats")
    page.press(Keys.END)
    assert page.all("section[data-policy=ppo] .readout")[0].startswith("12/12 <|im_end|> Intrinsic unknown")
    # What stands in for an advantage says so; PPO has its own.
    page("document.querySelector('input[name=measure][value=advantage]').click()")
    instead = "return document.querySelector('[data-policy=sft] .readout').textContent"
    page.until(instead + ".includes('log policy')")
    assert "Point at a token" in page.all("section[data-policy=ppo] .readout")[0]


def test_keys_alone_reach_an_item_and_its_answers(opened):
    page = opened()
    page.press("j")
    page.item("test-0")
    page.press("j", "j")
    page.item("test-2")
    page.press("k")
    page.item("test-1")
    page.press("/")
    page.press("number 15 ?", Keys.ESCAPE)
    page.shown(f"1 of {ITEMS} items")
    assert page("return document.activeElement.id") == "list"
    page.press(Keys.ENTER)
    page.item("test-15")
    page.until("return document.activeElement.id === 'item'")
    page.press(Keys.ESCAPE)
    page("document.getElementById('f-reset').click()")
    page.shown(f"{ITEMS} of {ITEMS} items")
    page("document.getElementById('list').focus()")
    page.press(Keys.END)
    page.item(f"test-{ITEMS - 1}")
    active = page("return document.getElementById('list').getAttribute('aria-activedescendant')")
    assert page("return document.getElementById(arguments[0]).ariaSelected", active) == "true"


def test_only_the_rows_in_view_exist_and_prompts_come_on_demand(opened):
    page = opened("#items?item=test-60")
    page.item("test-60")
    assert len(page.all(".item-row")) < 60
    assert page.all("#item pre.long") == []
    page("document.querySelector('#item details').open = true")
    page.until("return document.querySelectorAll('#item pre.long').length === 2")
    assert page.all("#item pre.long")[1] == '{"program": "add(60, 1)"}'


def test_an_address_brings_back_the_view(opened):
    page = opened("#items?policy=2&outcome=right&level=nonsense&item=no-such-item")
    right = sum(row["correct"] for row in index_of(page)["grpo"])
    page.shown(f"{right} of {ITEMS} items")
    page.choose("level", "3")
    page.until("return location.hash.includes('level=3') && location.hash.includes('policy=2')")


def test_ready_filters_find_what_all_or_one_policy_fails(opened):
    page = opened()
    rows = index_of(page)
    right = [[rows[name][item]["correct"] for name in rows] for item in range(ITEMS)]
    wanted = {
        "wrong": sum(not any(of) for of in right),
        "one_right": sum(sum(of) == 1 for of in right),
        "one_wrong": sum(sum(of) == len(of) - 1 for of in right),
    }
    assert all(wanted.values()) and len(set(wanted.values())) == 3
    for outcome, count in wanted.items():
        page(f"document.querySelector('#ready button[data-outcome={outcome}]').click()")
        page.shown(f"{count} of {ITEMS} items")
        assert page.all(f"#ready button[data-outcome={outcome}]")[0].endswith(f"({count})")
        page.until("return location.hash.includes(arguments[0])", f"outcome={outcome}")
    page = opened("#items?outcome=one_right")
    page.shown(f"{wanted['one_right']} of {ITEMS} items")


def test_what_was_compared_stays_in_sight_and_columns_say_what_they_mean(opened):
    page = opened("#items?item=test-60")
    page.item("test-60")
    summary = page.all("nav .summary")[0]
    assert summary.startswith(f"{ITEMS} test items · sft ") and summary.endswith("quick test")
    top = "return document.querySelector('nav .summary').getBoundingClientRect().top"
    assert page("return scrollY") > 500 and 0 <= page(top) < 60
    titles = page("return [...document.querySelectorAll('#methods thead th[title]')].map(e => e.title)")
    assert titles[0] == "items that are right by the data set's official rule" and all(titles)
    assert page("return [...document.querySelectorAll('.segments label[title]')].map(e => e.title)")[0]


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    return axe_source(tmp_path_factory.mktemp("axe"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, axe, scheme):
    page = opened("#items?item=test-3")
    page.item("test-3")
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        assert grave_violations(page.driver, axe) == []
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
