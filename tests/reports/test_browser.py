"""The page in a real browser: offline, without errors, by mouse and keyboard, on any screen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reports.leaderboard import render_leaderboard
from reports.pages import write
from reports.pictures import make_feature_pictures
from reports.report import Report
from reports.summary import Summary
from tests.reports.test_features import arrays
from tests.reports.test_leaderboard import column, leaderboard

pytestmark = pytest.mark.cluster

TASKS = [
    "voc/linear (A)",
    "voc/linear (B)",
    "nyu-depth/linear",
    "imagenet/linear",
    "flickr30k/retrieval",
]
CHROMIUM = (
    os.environ.get("CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="no Playwright: pip install -e '.[dev]'"
    )
    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install -y chromium (or set CHROMIUM to one)")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=120_000
        )
        yield chromium
        chromium.close()


@contextmanager
def open_page(browser, path: Path, width: int = 1280) -> Iterator[Any]:
    """The open page; at the end: nothing went to the console, nothing to the network, and nothing
    runs over the edge."""
    context = browser.new_context(viewport={"width": width, "height": 800}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(120_000)
    messages, urls = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: urls.append(request.url.partition("#")[0]))
    page.goto(path.as_uri())
    yield page
    assert [text for text in messages if not text.startswith("Canvas2D")] == []  # of the test
    assert {url for url in urls if not url.startswith("data:")} == {path.as_uri()}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


@pytest.fixture(scope="module")
def path(report, tmp_path_factory):
    (path,) = write(report, tmp_path_factory.mktemp("browser"))
    return path


@pytest.fixture
def page(browser, path):
    with open_page(browser, path) as page:
        yield page


def column_of(page, index: int) -> list[str]:
    return page.eval_on_selector_all(
        "#t-overview tbody tr:not([hidden])",
        f"rows => rows.map(row => row.cells[{index}].querySelector('data')?.value ??"
        f" row.cells[{index}].textContent.trim())",
    )


def test_sort_and_filter(page):
    head = page.locator("#t-overview thead th").nth(2)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    values = column_of(page, 2)
    assert values[-1] == "" and [float(v) for v in values[:-1]] == sorted(
        (float(v) for v in values[:-1]), reverse=True
    )
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and column_of(page, 2)[-1] == "", (
        "missing numbers stay last"
    )
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert column_of(page, 0) == TASKS

    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    page.keyboard.type("depth")
    assert column_of(page, 0) == ["nyu-depth/linear"]
    page.keyboard.press("Escape")
    page.select_option("#kind", "segmentation")
    assert column_of(page, 0) == TASKS[:2]
    page.fill("#find", "nothing like this")
    assert column_of(page, 0) == [] and page.locator("#none").is_visible()

    page.locator("nav a", has_text="Provenance").click()
    assert page.evaluate("document.querySelector('#provenance').getBoundingClientRect().top") < 800
    link = page.locator("#t-kind-segmentation td .num a").first.get_attribute("href")
    assert link.startswith("http://127.0.0.1:5000/#/compare-runs?runs=")


def test_gallery_figures_and_colours(page):
    tile = page.locator(".strip button").nth(2)
    tile.focus()
    page.keyboard.press("Enter")
    box = page.locator("#lightbox")
    assert box.is_visible() and "clip-ft" in page.locator("#light-text").inner_text()
    page.keyboard.press("ArrowRight")
    assert "cliptex" in page.locator("#light-text").inner_text()
    assert page.evaluate("document.querySelector('#lightbox img').naturalWidth") > 0
    page.keyboard.press("Escape")
    assert not box.is_visible()
    page.locator('[data-figure="forest"]').scroll_into_view_if_needed()
    page.locator('[data-figure="forest"].js-plotly-plot .scatterlayer').wait_for()
    page.locator("html[data-figures=drawn]").wait_for(
        state="attached"
    )  # the others too, without scrolling
    assert page.locator(".plot:not(.js-plotly-plot)").count() == 0
    page.locator("#theme").click()
    with page.expect_download() as download:
        page.locator(".svg").first.click()
    svg = Path(download.value.path()).read_text()
    assert (
        download.value.suggested_filename == "forest.svg"
        and "voc/linear" in svg
        and "var:" not in svg
    )
    assert "rgb(28, 32, 36)" in svg, "text is dark, whatever the page's colours"
    page.locator("#theme").click()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_menus_select_what_a_figure_shows(page):
    plot = page.locator('[data-figure="cost"]')
    plot.scroll_into_view_if_needed()
    page.locator('[data-figure="cost"].js-plotly-plot .scatterlayer').wait_for()
    shown = lambda: plot.evaluate("plot => plot.data.map(trace => [trace.x[0], trace.y[0]])")
    before = shown()
    menus = page.locator('figure:has([data-figure="cost"]) select')
    menus.nth(1).select_option(label="peak memory (MB)")
    assert {x for x, _ in shown()} == {100}
    assert [y for _, y in shown()] == [y for _, y in before]
    menus.nth(0).select_option(label="voc/linear (A): mIoU (%)")
    page.wait_for_function("document.querySelector('[data-figure=cost]').data[0].y[0] > 1")


def test_nothing_runs_over_the_edge_of_a_phone(browser, path):
    with open_page(browser, path, 360) as page:
        for plot in page.query_selector_all(".plot"):
            plot.scroll_into_view_if_needed()
        page.locator(".plot.js-plotly-plot").last.wait_for()


def test_likeness_follows_the_selected_part(browser, tmp_path):
    features = make_feature_pictures("voc", {"a": arrays(4), "b": arrays(6)})
    report = Report("Features", "", Summary("open", "", []), store="", features=features)
    (path,) = write(report, tmp_path)
    pixel = """([index, x, y]) => [...document.querySelectorAll('canvas')[index]
        .getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"""
    like_itself = [253, 231, 37]
    with open_page(browser, path, 390) as page:
        page.locator(".features").focus()
        for key in ("ArrowDown", *["ArrowRight"] * 4):
            page.keyboard.press(key)
        assert page.evaluate(pixel, [0, 6, 3]) == like_itself, "of the second image"
        assert page.evaluate(pixel, [1, 9, 5]) == like_itself, "the same place of another backbone"
        page.locator(".map img").first.click(position={"x": 3, "y": 3})
        page.locator("#centred").uncheck()
        assert page.evaluate(pixel, [0, 0, 0]) == like_itself


@pytest.fixture
def board_page(browser, tmp_path):
    results = leaderboard(
        column({"a": 0.7, "b": 0.5, "constructor": 0.3}),
        column({"a": 0.2, "b": 0.4}, "nyu/linear", direction=-1),
        a=90e6,
        b=5e6,
        constructor=5e6,
    )
    path = tmp_path / "index.html"
    path.write_text(render_leaderboard(results, "Leaderboard", "three backbones"), encoding="utf-8")
    with open_page(browser, path, 390) as page:
        yield page


def test_places_follow_the_selected_tasks_and_sizes(board_page):
    page = board_page
    shown = lambda: page.eval_on_selector_all(
        "#rows tr",
        "rows => rows.map(row => [row.cells[0].firstChild.data, row.cells[1].textContent])",
    )
    assert shown() == [["a", "1"], ["b", "2"], ["constructor", "–"]]
    nyu = page.locator("#head button", has_text="nyu/linear")
    nyu.click()
    nyu.click()
    assert shown() == [["b", "2"], ["a", "1"], ["constructor", "–"]], "missing numbers stay last"
    page.select_option("#group", label="voc/linear")
    assert shown() == [["a", "1"], ["b", "2"], ["constructor", "3"]]
    page.locator("html[data-figures=drawn]").wait_for(state="attached")
    beaten = "document.querySelector('.plot').data.map(trace => trace.opacity < 1)"
    assert page.evaluate(beaten) == [False, False, True], "b is better at the same cost"
    page.select_option("#size", label="25 M")
    page.fill("#text", "B")
    assert shown() == [["b", "2"]]
    page.locator("td button").first.click()
    assert '"task": "voc/linear"' in page.locator("#detail-protocol").inner_text()


def test_published_numbers_are_filtered_and_sorted(board_page):
    page = board_page
    numbers = page.locator("#p-rows tr:visible")
    assert "voc/linear" in page.locator("#p-explain").inner_text(), "a task that is ranked"
    drawn = "document.querySelectorAll('.plot')[1].data.map(trace => [trace.name, trace.x.length])"
    page.locator("html[data-figures=drawn]").wait_for(state="attached")
    (_, published), shared = page.evaluate(drawn)
    assert published > 1 and shared == ["shared results", 3]
    page.select_option("#p-task", label="imagenet_sketch · top1 (1556)")
    assert page.evaluate(drawn) == [["published", 1556]]
    assert numbers.count() == 100
    page.select_option("#p-size", label="25 M")
    page.locator("#p-more").click()
    assert 100 < numbers.count() < 1000
    page.select_option("#p-size", label="any size")
    page.select_option("#p-protocol", label="zero-shot, as CLIP Benchmark and DataComp evaluate")
    assert numbers.count() == 0
    page.select_option("#p-protocol", label="any")
    page.locator("#p-more").click()
    assert numbers.count() == 1556
    name = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    page.fill("#p-text", name)
    assert numbers.count() == 1 and "45.106" in numbers.inner_text()
    page.locator("#p-rows button").press("Enter")
    about = page.locator("#detail-protocol").inner_text()
    assert "not a probe" in about and "commit: aa4b585" in about
    assert "costs at 224 px: parameters (M) 86.57" in about
    page.locator("#close").click()
    link = page.evaluate("location.href")
    page.goto(link)
    page.reload()
    assert numbers.count() == 1, "the address keeps what was chosen"
    page.fill("#p-text", "")
    values = lambda: [float(text) for text in page.locator("#p-rows td button").all_inner_texts()]
    assert values() == sorted(values(), reverse=True)
    page.locator("#p-head button").nth(1).dblclick()
    assert values() == sorted(values())
