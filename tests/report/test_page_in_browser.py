"""A report in a real browser: it uses neither console nor network, and its controls work.

Debian's `chromium` and `chromium-driver` are driven by selenium; without them these tests are skipped.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysnap.report.page import write_report
from raysnap.store.store import Store
from tests.support.report_runs import everything, trial, write_run

selenium = pytest.importorskip("selenium", reason="needs selenium: pip install 'raysnap[dev]'")

from selenium import webdriver  # noqa: E402 - only where there is one
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="no chromium and chromedriver here (Debian: chromium, chromium-driver)"
)

LOADED = "return location.href === arguments[0] && document.readyState === 'complete'"

CONTRAST = """
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const light = (text) => {
  const [r, g, b] = channels(text).map((value) => value / 255)
    .map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = getComputedStyle(document.documentElement).backgroundColor;
const found = {};
const texts = "p, td, th, h1, h2, h3, a, li, dt, dd, .faint, svg text.tick, svg text.row";
for (const one of document.querySelectorAll(texts)) {
  if (one.closest(".chip, .fork-number")) continue;
  const style = getComputedStyle(one), ink = one.closest("svg") ? style.fill : style.color;
  const [a, b] = [light(ink), light(paper)];
  found[ink] = Math.min(found[ink] || 99, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
}
return found;
"""

ROWS = """
const [name, column] = arguments, table = document.getElementById("table-" + name);
const word = (cell) => cell.innerText.split("\\n")[0].replace(/[ ↑↓]+$/, "").trim();
const index = Array.from(table.tHead.rows[0].cells).map(word).indexOf(column);
return Array.from(table.tBodies).flatMap((body) => Array.from(body.rows))
  .filter((row) => row.getBoundingClientRect().height > 0).map((row) => word(row.cells[index]));
"""

OUTSIDE = """
const found = [];
for (const svg of document.querySelectorAll("svg.chart")) {
  const frame = svg.getBoundingClientRect();
  if (!frame.width) continue;
  for (const text of svg.querySelectorAll("text")) {
    const box = text.getBoundingClientRect();
    if (box.left < frame.left - 3 || box.right > frame.right + 12) {
      found.push(svg.getAttribute("aria-label") + ": " + text.textContent);
    }
  }
}
return found;
"""

MARKS = """
for (const details of document.querySelectorAll("details")) details.open = true;
return Array.from(document.querySelectorAll("svg.chart")).map((svg) => [
  svg.getAttribute("aria-label"),
  Array.from(svg.querySelectorAll(".mark")).filter((mark) => {
    const box = mark.getBoundingClientRect();
    return box.width + box.height > 0;
  }).length,
]);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Return the report of a run that has a bit of everything."""
    folder = tmp_path_factory.mktemp("everything")
    return write_report(everything(folder / "run", Store.open(folder / "store", create=True), folder / "data"))


@pytest.fixture
def opened(browser, page) -> Any:
    browser.get("about:blank")  # loading the page that is already open may end before it begins
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(LOADED, page.as_uri()))
    return browser


def requests_of(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


def rows_of(browser: Any, table: str, column: str) -> list[str]:
    """Return the cells of a column in the rows that are seen, from top to bottom."""
    return browser.execute_script(ROWS, table, column)


def heading(browser: Any, table: str, column: str) -> Any:
    found = browser.find_elements(By.CSS_SELECTOR, f"#table-{table} thead th button")
    return next(one for one in found if one.text.strip(" ↑↓") == column)


def click(browser: Any, element: Any) -> None:
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    webdriver.ActionChains(browser).move_to_element(element).click().perform()


def test_the_page_uses_neither_console_nor_network(opened, page):
    assert opened.get_log("browser") == []
    assert requests_of(opened) == [page.as_uri()]


def test_every_chart_has_marks_and_no_text_is_cut_off(opened):
    marks = opened.execute_script(MARKS)
    assert len(marks) > 20
    assert [name for name, num_marks in marks if not num_marks] == []
    assert opened.execute_script(OUTSIDE) == []


def test_every_picture_is_shown(opened):
    widths = opened.execute_script("return Array.from(document.images).map((image) => image.naturalWidth)")
    assert len(widths) > 10
    assert set(widths) == {112}


def test_clicks_on_a_heading_sort_up_and_then_down(opened):
    click(opened, heading(opened, "trials", "val acc."))
    values = rows_of(opened, "trials", "val acc.")
    known = [value for value in values if value != "–"]
    assert len(known) > 10
    assert known == sorted(known)
    assert values[len(known) :] == ["–"] * (len(values) - len(known))
    assert len(values) > len(known)
    click(opened, heading(opened, "trials", "val acc."))
    values = rows_of(opened, "trials", "val acc.")
    assert values[: len(known)] == sorted(known, reverse=True)
    assert values[-1] == "–"  # what is unknown stays last


def test_a_key_on_a_heading_sorts_too(opened):
    first = rows_of(opened, "trials", "trial")
    heading(opened, "trials", "trial").send_keys(Keys.ENTER)
    heading(opened, "trials", "trial").send_keys(Keys.ENTER)
    assert rows_of(opened, "trials", "trial") == sorted(first, reverse=True)


def test_typing_filters_and_a_status_narrows_it_further(opened):
    before = rows_of(opened, "trials", "trial")
    field = opened.find_element(By.CSS_SELECTOR, '.controls[data-for="trials"] .filter')
    click(opened, field)
    field.send_keys("sweep PETS")
    names = rows_of(opened, "trials", "trial")
    assert names == [f"00{n}-sweep" for n in range(8)]
    shown = opened.find_element(By.CSS_SELECTOR, '.controls[data-for="trials"] .shown')
    assert shown.text == f"8 of {len(before)} shown"
    field.send_keys(Keys.CONTROL + "a", Keys.DELETE)
    assert rows_of(opened, "trials", "trial") == before
    choices = opened.find_elements(By.CSS_SELECTOR, ".choice")
    click(opened, next(one for one in choices if one.text == "failed 1"))
    assert len(rows_of(opened, "trials", "trial")) == 1
    click(opened, next(one for one in choices if one.text.startswith("all")))
    assert rows_of(opened, "trials", "trial") == before


def test_a_long_table_opens_by_a_click(opened):
    assert len(rows_of(opened, "sweep_trials", "rank")) == 12
    click(opened, opened.find_element(By.CSS_SELECTOR, '.show-more[data-for="sweep_trials"]'))
    assert rows_of(opened, "sweep_trials", "rank") == [str(rank) for rank in range(1, 18)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(opened, scheme):
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        found = opened.execute_script(CONTRAST)
        paper = opened.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (sum(map(int, paper.strip("rgb()").split(","))) < 200) == (scheme == "dark")
    assert {ink: round(contrast, 2) for ink, contrast in found.items() if contrast < 4.5} == {}


def test_a_narrow_window_needs_no_sideways_scrolling(opened):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_printed_pages_have_every_row_and_no_control(opened):
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert len(rows_of(opened, "sweep_trials", "rank")) == 17
        assert not any(
            one.is_displayed() for one in opened.find_elements(By.CSS_SELECTOR, "nav, .controls, .show-more")
        )
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_hostile_names_run_nothing(browser, tmp_path):
    attack = "\"'><img src=x onerror=alert(1)><script>alert(2)</script></svg><iframe src=javascript:alert(3)>"
    rows = [trial(n, name=f"{attack}{n}", dataset=attack, architecture=attack, status=attack) for n in range(3)]
    page = write_report(write_run(tmp_path / "run", rows))
    browser.get_log("browser")
    browser.get(page.as_uri())
    click(browser, heading(browser, "trials", "trial"))
    assert browser.get_log("browser") == []
    assert attack in rows_of(browser, "trials", "trial")[0]
    assert browser.find_elements(By.CSS_SELECTOR, "iframe, img, script:not(:last-of-type)") == []
