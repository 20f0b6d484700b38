"""What a person sees in Chromium: MLflow's interface, the report, and a served model's page."""

import base64
import re
import shutil
import signal
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
        # A camera that films a moving figure, and is lent to every page.
        *("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream"),
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


@pytest.fixture(scope="module")
def served(doors, folder):
    """The address of the page of a served model."""
    server = doors.start("runs", folder, "serve", "h32 s0")
    end = time.monotonic() + 120
    while "Ctrl-C" not in server.out:
        assert server.running, server.err
        assert time.monotonic() < end, "no address within two minutes"
        time.sleep(0.2)
    yield re.findall(r"^a page for photographs +(http://127\.0\.0\.1:\d+/)$", server.out, re.M)[0]
    server.kill(signal.SIGTERM)
    assert (server.code, server.err) == (143, "")


@pytest.fixture
def asked(served, browser):
    """Open the page, and return a way to wait for an answer and to read it."""
    browser.get_log("browser")
    browser.get(served)

    def answer(after: str = "") -> dict:
        """Return what the page says, once its caption of the photograph is another."""
        from selenium.webdriver.support.ui import WebDriverWait

        def text(name: str) -> str:
            return browser.find_element("id", name).text

        WebDriverWait(browser, 30).until(lambda _: text("said") or text("found") != after)
        return {name: text(name) for name in ("said", "found", "how", "verdict", "confidences")}

    return answer


@pytest.fixture
def shirt(tmp_path) -> Path:
    """A photograph on its side, which only its EXIF data put upright."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (300, 400), (236, 232, 226))
    ImageDraw.Draw(image).polygon(
        [(100, 60), (200, 60), (260, 130), (210, 160), (210, 340), (90, 340), (90, 160), (40, 130)],
        fill=(30, 60, 140),
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "shirt.jpg", exif=exif)
    return tmp_path / "shirt.jpg"


def check_picture(browser, said: dict) -> None:
    """Check that a photograph, its box and what the model sees of it are shown."""
    from fmnist_lab import data

    assert said["said"] == ""
    assert said["verdict"] in data.FASHION_MNIST.class_names
    assert said["confidences"].startswith(said["verdict"])
    assert said["confidences"].count("%") == 10
    drawn = browser.execute_script(
        "const c = document.getElementById('seen');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return [c.width, c.height, Math.max(...d.filter((_, place) => place % 4 === 0))]"
    )
    assert drawn == [28, 28, 255]
    picture, box = (browser.find_element("id", name).rect for name in ("photograph", "box"))
    assert picture["width"] > 100
    assert picture["x"] <= box["x"] + 3
    assert box["x"] + box["width"] <= picture["x"] + picture["width"] + 3
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_a_chosen_photograph_is_shown_as_the_model_sees_it(asked, browser, shirt):
    browser.find_element("id", "file").send_keys(str(shirt))
    said = asked()
    check_picture(browser, said)
    assert said["found"].startswith("300×400 pixels, background pale grey")  # noqa: RUF001
    assert "light and dark exchanged" in said["how"]
    picture, box = (browser.find_element("id", name).rect for name in ("photograph", "box"))
    scale = picture["width"] / 300
    assert picture["height"] == pytest.approx(400 * scale, abs=2)
    edges = (box["x"] - picture["x"], box["y"] - picture["y"], box["width"], box["height"])
    assert edges == pytest.approx([40 * scale, 60 * scale, 220 * scale, 280 * scale], abs=6)
    assert not browser.execute_script(
        "return performance.getEntriesByType('resource')"
        ".filter(each => !each.name.startsWith(location.origin)).length"
    )


def test_a_photograph_is_dropped_on_the_page(asked, browser, shirt):
    content = base64.b64encode(shirt.read_bytes()).decode()
    browser.execute_script(
        "const bytes = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt(0));"
        "const transfer = new DataTransfer();"
        "transfer.items.add(new File([bytes], 'shirt.jpg', { type: 'image/jpeg' }));"
        "for (const kind of ['dragenter', 'dragover', 'drop'])"
        "  document.getElementById('drop').dispatchEvent(new DragEvent(kind,"
        "    { dataTransfer: transfer, bubbles: true, cancelable: true }));",
        content,
    )
    check_picture(browser, asked())


def test_a_picture_is_taken_with_the_camera(asked, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.find_element("id", "camera").click()
    video = browser.find_element("id", "video")
    WebDriverWait(browser, 30).until(lambda _: int(video.get_property("videoWidth")) > 0)
    browser.find_element("id", "shoot").click()
    check_picture(browser, asked())
    browser.find_element("id", "stop").click()
    assert not video.is_displayed()


def test_a_file_that_is_no_picture_is_told_and_the_next_one_shown(asked, browser, shirt, tmp_path):
    (tmp_path / "words.txt").write_text("hello")
    browser.find_element("id", "file").send_keys(str(tmp_path / "words.txt"))
    said = asked()
    assert said["said"].startswith("It cannot be read as an image")
    assert said["verdict"] == ""
    browser.get_log("browser")  # It has the refusal as well.
    browser.find_element("id", "file").send_keys(str(shirt))
    check_picture(browser, {**asked(), "said": ""})
