"""The report's page in a real browser: headless Chromium opens the file as a user would."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from estep.report.figure import CELL_COLOR, CELL_STRENGTH
from estep.report.page import TEMPLATE, embedded, inline
from estep.report.write import write_report
from studies import GOLD, make_study, right

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


def in_chromium(test: Any) -> Any:
    """Marks a test that opens the page in a browser."""
    missing = not (CHROMIUM and DRIVER)
    return pytest.mark.slow(pytest.mark.skipif(missing, reason="needs chromium and chromedriver")(test))


SCRIPT = "</script><script>document.title='taken'</script>"
HOSTILE = f"{SCRIPT}<img src=x onerror=\"document.title='taken'\"> <b>bold</b> & \u2028"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose model says hostile things, and in which one test question is mended and one broken."""
    folder = tmp_path_factory.mktemp("page") / "study"
    broken = right(2)  # 2 right before; after, the first is wrong and 1, 2, 3 are right
    make_study(
        folder,
        {
            ("a<b>", "pps", 1): [broken, "9" + GOLD[1:4] + "------"],
            ("a<b>", "star", 1): [broken, right(5)],
        },
        say=HOSTILE,
    )
    return write_report(folder).page


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    addresses = set(re.findall(r"""(?:https?:)?//[\w.-]+""", text))
    # Names of XML namespaces and of matplotlib in the figures: nothing is fetched from them.
    assert addresses <= {"http://www.w3.org", "https://matplotlib.org", "http://purl.org", "http://creativecommons.org"}
    assert not re.search(r"<(?:link|img|iframe|object)\b", text.replace("\\u003c", ""))
    assert "default-src 'none'" in text


def test_no_text_ends_the_data(page: Path) -> None:
    data = page.read_text().split('id="data">')[1].split("</script>")[0]
    assert "<" not in data
    assert "\u2028" not in data
    assert embedded({"a": "</script>"}) == '{"a":"\\u003c/script>"}'


def test_a_figure_takes_the_pages_color() -> None:
    svg = '<?xml?><!DOCTYPE svg><svg><g id="a" style="fill: #1b1b1f; clip-path: url(#a)"/></svg>'
    assert inline(svg, "f1", 'of "x" & y') == (
        '<svg role="img" aria-label="of &#34;x&#34; &amp; y"><g id="f1-a" style="fill: currentColor; '
        'clip-path: url(#f1-a)"/></svg>'
    )


def test_the_numbers_of_a_heat_map_can_be_read_in_light_and_in_dark() -> None:
    schemes = re.findall(r"--ink: #(\w+);.* --paper: #(\w+);", TEMPLATE.read_text())
    assert len(schemes) == 2
    for ink, paper in schemes:
        cell = [
            CELL_STRENGTH * color + (1 - CELL_STRENGTH) * behind
            for color, behind in zip(channels(CELL_COLOR.removeprefix("#")), channels(paper), strict=True)
        ]
        low, high = sorted([luminance(channels(ink)), luminance(cell)])
        assert (high + 0.05) / (low + 0.05) > 4.5  # WCAG 2.2, level AA


def channels(color: str) -> list[float]:
    return [int(color[start : start + 2], 16) / 255 for start in (0, 2, 4)]


def luminance(color: list[float]) -> float:
    """The relative luminance of WCAG 2.2."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in color]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def opened(page: Path, width: int, height: int, dark: bool = False) -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(page.as_uri())
    return browser


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Any]:
    found = opened(page, 1200, 900)
    yield found
    found.quit()


def choose(browser: Any, name: str, value: str) -> None:
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'));",
        name,
        value,
    )


def texts(browser: Any, name: str) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('#' + arguments[0] + ' .item')].map((e) => e.innerText)", name
    )
    return found


@in_chromium
def test_hostile_text_is_text(browser: Any) -> None:
    assert browser.title == "Study made"
    assert SCRIPT in texts(browser, "test-list")[0]
    assert browser.execute_script("return document.querySelectorAll('main b, main img').length") == 0
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


@in_chromium
def test_the_references_texts_are_shown_first(page: Path, tmp_path: Path) -> None:
    from selenium.webdriver.support.select import Select

    write_report(page.parents[1], tmp_path, reference="star")
    browser = opened(tmp_path / "index.html", 1200, 900)
    shown = [Select(browser.find_element("id", f"{part}-run")) for part in ("test", "sample")]
    assert ["-star-" in select.first_selected_option.text for select in shown] == [True, True]
    browser.quit()


@in_chromium
def test_rationales_are_found_by_outcome_and_by_words(browser: Any) -> None:
    choose(browser, "test-run", "0")
    choose(browser, "test-outcome", "")
    choose(browser, "test-search", "")
    assert len(texts(browser, "test-list")) == 10
    for outcome, ids in {"mended": ["q2", "q3"], "broken": ["q0"], "right": ["q1"]}.items():
        choose(browser, "test-outcome", outcome)
        assert [text.split()[0] for text in texts(browser, "test-list")] == ids
    choose(browser, "test-outcome", "")
    choose(browser, "test-search", "NUMBER 7")
    (only,) = texts(browser, "test-list")
    assert only.startswith("q7 · correct answer 2")
    assert "no answer found" in only
    count = browser.find_element("id", "test-count").text
    assert count == "1 of 10 match (this page holds 10 of 10)"
    choose(browser, "test-search", "")


@in_chromium
def test_samples_tell_why_they_were_left_out(browser: Any) -> None:
    choose(browser, "sample-run", "1")
    choose(browser, "sample-outcome", "")
    told = [text.split("\n")[2] for text in texts(browser, "sample-list")]
    assert told == ["accepted", "wrong", "no answer found"]
    choose(browser, "sample-outcome", "wrong")
    assert len(texts(browser, "sample-list")) == 1


@in_chromium
def test_every_part_is_there(browser: Any) -> None:
    headings = [element.text for element in browser.find_elements("css selector", "h2")]
    assert headings == [
        "Summary",
        "Figures",
        "Tables",
        "Judge report",
        "Rationales before and after",
        "Accepted and rejected samples",
        "Provenance",
    ]
    assert len(browser.find_elements("css selector", "figure svg")) == 3
    assert len(browser.find_elements("css selector", "#judge svg")) == 1
    assert "configuration of a-b--pps-s1" in browser.find_element("id", "provenance").text


@pytest.mark.parametrize("dark", [False, True])
@in_chromium
def test_a_phone_shows_it_without_scrolling_sideways(page: Path, dark: bool) -> None:
    phone = opened(page, 390, 844, dark)
    try:
        width = phone.execute_script("return document.documentElement.scrollWidth")
        background = phone.execute_script("return getComputedStyle(document.body).backgroundColor")
        ink = phone.execute_script("return getComputedStyle(document.querySelector('figure svg text')).fill")
    finally:
        phone.quit()
    assert width <= 390
    assert background == ("rgb(21, 22, 26)" if dark else "rgb(252, 252, 250)")
    assert ink == ("rgb(232, 232, 234)" if dark else "rgb(27, 27, 31)")
