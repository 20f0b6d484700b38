"""What a person sees in MLflow's interface at the links that `runs ui` prints, in Chromium."""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWEEP = (
    *("-m", "model.hidden_units=8,32", "seed=0,1", "trainer.epochs=2"),
    *("data.train_limit=1000", "data.test_limit=500"),
)
SWEEP_NAME = "sweep hidden_units 8,32 × 2 seeds, e2 train1000 test500"  # noqa: RUF001
PICTURE = "confusion_matrix.png"


@pytest.fixture(scope="module")
def folder(doors, tmp_path_factory):
    """A folder with a sweep of two widths and two seeds."""
    folder = tmp_path_factory.mktemp("ui")
    swept = doors("run", folder, *SWEEP)
    assert swept.code == 0, swept.out + swept.err
    return folder


@pytest.fixture(scope="module")
def links(doors, folder):
    """The links that `runs ui SWEEP` prints, while it runs."""
    server = doors.start("runs", folder, "ui", SWEEP_NAME)
    end = time.monotonic() + 120
    while "Ctrl-C" not in server.out:
        assert server.running, server.err
        assert time.monotonic() < end, "no links within two minutes"
        time.sleep(0.2)
    found = re.findall(r"^(\S.*?)  +(http://127\.0\.0\.1:\d+/\S+)$", server.out, re.MULTILINE)
    yield dict(found)
    server.stop()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that reaches this machine alone."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no Chromium with its driver; on Debian: apt-get install chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        *("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1920,1400"),
        *("no-first-run", "disable-background-networking"),
        "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ):
        options.add_argument(f"--{argument}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def see(browser, tmp_path_factory):
    """Open a link as one who has never been there, and return a way to wait for things on it."""
    from selenium.common import StaleElementReferenceException, TimeoutException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def visible(path, number=1):
        """Wait until so many elements that fit an XPath are to be seen, and return them."""

        def found(_):
            elements = browser.find_elements(By.XPATH, path)
            seen = [element for element in elements if element.is_displayed()]
            return seen if len(seen) >= number else None

        try:
            return WebDriverWait(
                browser, 90, ignored_exceptions=[StaleElementReferenceException]
            ).until(found)
        except TimeoutException:
            picture = Path(tmp_path_factory.mktemp("seen"), "page.png")
            browser.save_screenshot(str(picture))
            text = browser.find_element(By.TAG_NAME, "body").text
            pytest.fail(f"not to be seen: {number} of {path}; see {picture}; the text is:\n{text}")

    def open_link(link):
        browser.get("about:blank")
        browser.get(link)
        return visible

    return open_link


def test_charts_of_a_sweeps_runs(see, links):
    visible = see(links["charts of its runs"])
    names = visible("//a[starts-with(normalize-space(), 'h')]", number=4)
    assert sorted(name.text for name in names) == ["h32 s0", "h32 s1", "h8 s0", "h8 s1"]
    for metric in ("accuracy/gap", "accuracy/test"):
        chart = f"//*[text()='{metric}']/ancestor::*[.//*[contains(@class, 'js-plotly-plot')]][1]"
        visible(f"{chart}//*[contains(@class, 'js-line')]", number=4)
        (card,) = visible(chart)
        assert all(f"{name.text} ({metric})" in card.text for name in names)


def test_the_compare_page_shows_pictures_side_by_side(see, links, browser):
    visible = see(links["both, with pictures at the end"])
    visible("//*[text()='Comparing 2 Runs from 1 Experiment']")
    (picture,) = visible(f"//*[@artifact-name='{PICTURE}']")
    browser.execute_script("arguments[0].scrollIntoView()", picture)
    picture.click()
    images = visible(f"//img[@alt='{PICTURE}']", number=2)
    sizes = [
        browser.execute_script("return [arguments[0].complete, arguments[0].naturalWidth]", image)
        for image in images
    ]
    assert all(complete and width > 400 for complete, width in sizes)
    left, right = (image.rect for image in images)
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


@pytest.mark.parametrize(("which", "name"), [("first", "h8 s0"), ("last", "h32 s1")])
def test_a_link_opens_at_a_picture(see, links, browser, which, name):
    visible = see(links[f"pictures of the {which}"])
    visible(f"//*[text()='{name}']")
    # MLflow's own logo is the only other one.
    images = visible("//img", number=2)
    widths = [browser.execute_script("return arguments[0].naturalWidth", each) for each in images]
    image = images[int(np.argmax(widths))]
    assert max(widths) > 400
    top, height = image.rect["y"], image.rect["height"]
    assert top > 0
    assert top + height < browser.execute_script("return window.innerHeight")
    visible("//*[text()='learning_curves.png']")


def test_the_sweep_itself_names_its_runs(see, links):
    visible = see(links[SWEEP_NAME])
    names = visible("//a[starts-with(normalize-space(), 'h')]", number=4)
    assert {name.text.strip(" ,") for name in names} == {"h8 s0", "h8 s1", "h32 s0", "h32 s1"}


@pytest.fixture(scope="module")
def page(doors, folder) -> str:
    """The address of the sweep's report."""
    told = doors("runs", folder, "report", SWEEP_NAME, "--output", "report")
    assert told.code == 0, told.err
    return (folder / "report/report.html").as_uri()


def test_the_report_page_draws_its_charts_and_needs_no_network(page, browser):
    browser.get_log("browser")  # What other pages have said is told but once.
    browser.get(page)
    charts = browser.find_elements("css selector", "section > figure")
    assert [chart.get_attribute("aria-label") for chart in charts] == [
        *("Test accuracy and gap by hidden units", "Test accuracy against epoch"),
        *("Accuracy gap against epoch", "Test accuracy against accuracy gap"),
    ]
    from selenium.webdriver.common.action_chains import ActionChains

    # The pointer is told of the mark that it is on.
    for mark in browser.find_elements("css selector", ".role-mark [aria-label]")[:4]:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
        ActionChains(browser).move_to_element(mark).perform()
        tip = browser.find_element("id", "tip")
        assert tip.is_displayed()
        assert re.match(r"hidden units (8|32)\ntest accuracy 0\.\d{4}", tip.text)
    assert all(chart.is_displayed() and chart.rect["height"] > 200 for chart in charts)
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not browser.execute_script("return performance.getEntriesByType('resource')")


def test_a_click_on_a_heading_of_the_report_sorts_by_its_column(page, browser):
    browser.get(page)

    def widths():
        rows = browser.find_elements("css selector", "section table tbody tr")[:2]
        return [row.find_element("tag name", "td").text for row in rows]

    heading = browser.find_element("xpath", "//th[text()='hidden units']")
    browser.execute_script("arguments[0].scrollIntoView()", heading)
    heading.click()
    assert widths() == ["8", "32"]
    heading.click()
    assert widths() == ["32", "8"]
