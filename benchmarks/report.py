"""Size and speed of report.html at 1,500 items x 6 policies, in headless Chromium.

    python benchmarks/report.py

Makes up evaluations whose numbers are random and so hardly compress (answers of 160 tokens with five or six
measures, prompts of 600 words, two samples each), writes the page, opens it from disk and drives it. Prints a
Markdown table in seconds; times of the browser include its own polling of 2 ms and, for filters, the 60 ms
that the page waits for more typing. Needs selenium, chromium and chromedriver.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.support.report_folders import make_page, make_run
from utils.documents.document import Table, block_markdown

POLICIES = ("base", "sft", "ppo", "grpo", "rloo", "dpo")
# Sets filters and opens items as a reader would, and resolves with milliseconds of each.
DRIVE = """
const done = arguments[arguments.length - 1];
const until = (holds) => new Promise((resolve) => {
  const start = performance.now();
  (function look() { holds() ? resolve(performance.now() - start) : setTimeout(look, 2); })();
});
const get = (id) => document.getElementById(id), count = () => get("count").textContent;
const set = (id, value) => {
  const was = count();
  get(id).value = value;
  get(id).dispatchEvent(new Event("input", { bubbles: true }));
  return until(() => count() !== was && !count().startsWith("Reading"));
};
const press = (key) => {
  const was = get("item").dataset.item;
  get("list").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  return until(() => get("item").dataset.item !== was);
};
(async () => {
  const all = count(), took = {};
  get("f-policy").value = "1";
  took["filter by outcome"] = await set("f-outcome", "wrong");
  took["filter by change"] = await set("f-change", "fixed");
  took["search in questions"] = await set("f-text", "cash");
  get("f-deep").checked = true;
  took["first search in all answers"] = await set("f-text", "cash 2018");
  get("f-reset").click();
  await until(() => count() === all);
  for (const key of ["End", "Home", "PageDown"]) took[`open an item (${key})`] = await press(key);
  done(took);
})().catch((error) => done({ error: String(error) }));
"""


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def measure(items: int, passes: int) -> list[tuple[str, str]]:
    """Rows (what, figure) for a page of this many items; times are the fastest of the passes."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", items=items, policies=POLICIES, tokens=160, prompt_words=600)
        start = time.perf_counter()
        page = make_page(run, Path(folder) / "report.html")
        rows = [
            ("size", f"{page.stat().st_size / 1e6:.1f} MB"),
            ("build", f"{time.perf_counter() - start:.1f} s"),
        ]
        took: dict[str, list[float]] = {}
        driver = browser()
        try:
            driver.set_script_timeout(300)
            for _ in range(passes):
                driver.get("about:blank")
                start = time.perf_counter()
                driver.get(page.as_uri())
                while not driver.execute_script("return document.documentElement.dataset.ready"):
                    time.sleep(0.005)
                took.setdefault("ready", []).append(time.perf_counter() - start)
                found = driver.execute_async_script(DRIVE)
                if "error" in found:
                    raise SystemExit(f"error: the page could not be driven: {found['error']}")
                for what, milliseconds in found.items():
                    took.setdefault(what, []).append(milliseconds / 1000)
        finally:
            driver.quit()
    return rows + [(what, f"{min(seconds):.2f} s") for what, seconds in took.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, default=1500)
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    heads = [f"{options.items:,} items x {len(POLICIES)} policies", "figure"]
    print(block_markdown(Table(heads, measure(options.items, options.passes))))


if __name__ == "__main__":
    main()
