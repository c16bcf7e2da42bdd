"""The page in a real browser; `make test-app` installs what this needs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.app, pytest.mark.slow]
#: Milliseconds that a step may take on a machine that is busy.
PATIENCE = 120_000
LOOKING = (Path(__file__).parent / "accessibility.js").read_text()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Run the command and return where the page is."""
    command = [sys.executable, "-c", "from zooprune.cli import main; main()", "app", "--port", "0"]
    folder = tmp_path_factory.mktemp("tmp")
    environment = os.environ | {"TMPDIR": str(folder), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline()
            yield re.search(r"http://\S+?(?=;)", line)[0]
        finally:
            process.terminate()
            process.wait(60)
    # Uploads go when the server stops.
    assert not list(folder.glob("zooprune-app-*"))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """Open the page as a visitor of its own."""
    contexts = contextlib.ExitStack()

    def visit(query="", **options):
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, **options)
        contexts.callback(context.close)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.elsewhere = []
        page.on("request", lambda request: page.elsewhere.append(request.url))
        page.goto(address + query)
        page.wait_for_selector(".zoo-table, .zoo-alert")
        return page

    with contexts:
        yield visit


def test_nothing_comes_from_elsewhere(visit, address):
    page = visit()
    page.get_by_role("button", name="Answer").click()
    page.get_by_text("Answered.").wait_for()
    assert page.elsewhere
    assert all(url.startswith((address, "data:", "blob:")) for url in page.elsewhere)
    host, port = re.match(r"http://(.+):(\d+)/", address).groups()
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    html = answer.read().decode()
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?:https?:)?//", html)
    connection.request("GET", "/", headers={"Host": "somewhere.example"})
    assert connection.getresponse().status == 400


def test_the_slider_redraws_from_the_keyboard_and_answers_follow_on_demand(visit):
    page = visit()
    page.get_by_text("64 of 576").wait_for()
    slider = page.locator("input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("65 of 576").wait_for()
    assert page.get_by_role("rowheader", name="Answer").count() == 0
    page.get_by_role("button", name="Answer").focus()
    page.keyboard.press("Enter")
    page.get_by_role("rowheader", name="Answer", exact=True).wait_for()
    assert "cat" in page.locator(".zoo-table").inner_text()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("not asked yet").wait_for()


def test_a_link_restores_two_methods_and_downloads_hold_them(visit, tmp_path):
    query = "?question=which+image+shows+an+apple%3F&against=divprune&keep=40&dropped=discard&positions=original"
    page = visit(f"{query}&example=pair-0")
    page.get_by_text("80 of 1,152").nth(1).wait_for()
    assert page.get_by_label("Question").input_value() == "which image shows an apple?"
    link = page.get_by_role("link", name="Link to these settings").get_attribute("href")
    for part in (*query[1:].split("&")[1:], "example=pair-0", "model=bundled"):
        assert part in link
    files = {}
    for name in ("Download picture", "Download settings"):
        with page.expect_download() as download:
            page.get_by_role("button", name=re.compile(name)).click()
        files[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[name])
    assert Image.open(files["Download picture"]).format == "PNG"
    told = json.loads(files["Download settings"].read_text())
    assert [method["plan"]["method"] for method in told["methods"]] == ["zoo", "divprune"]
    assert visit("?method=zooo").locator("[role=alert]").inner_text().startswith("Unknown method 'zooo'")


def test_an_example_is_a_click_and_own_pictures_reach_nobody_else(visit, tmp_path):
    mine = tmp_path / "mine-alone.png"
    Image.effect_noise((200, 150), 90).convert("RGB").save(mine)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    first, second = visit(), visit()
    first.get_by_role("button", name="sign", exact=True).click()
    first.get_by_role("table").get_by_text("what does the sign say?").wait_for()
    chosen = first.locator("input[type=file]")
    chosen.set_input_files(mine)
    first.get_by_alt_text(re.compile("mine-alone.png: the 64 patches")).wait_for()
    second.get_by_role("button", name="count", exact=True).click()
    second.get_by_role("table").get_by_text("how many").wait_for()
    assert "mine-alone" not in second.content()
    first.get_by_role("button", name="digit", exact=True).click()
    first.get_by_role("table").get_by_text("what digit is written?").wait_for()
    first.locator("input[type=file]").set_input_files(tmp_path / "bad.png")
    alert = first.get_by_role("alert").filter(has_text="bad.png")
    alert.wait_for()
    assert alert.inner_text() == "bad.png is not an image Pillow can read; convert it to PNG or JPEG."


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(visit, tmp_path):
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    large.write_bytes(bytes(20_000_001))
    Image.effect_noise((200, 150), 90).convert("RGB").save(small)
    page = visit()
    chosen = page.locator("#pictures input[type=file]")
    chosen.set_input_files(large)
    alert = page.get_by_role("alert").filter(has_text="large.png")
    alert.wait_for()
    assert alert.inner_text() == "large.png is larger than 20 MB; scale it down first."
    assert not any("upload" in url for url in page.elsewhere)
    chosen.set_input_files(small)
    page.get_by_alt_text(re.compile("small.png: the 64 patches")).wait_for()
    assert page.get_by_role("alert").filter(has_text="large.png").count() == 0


def test_a_model_that_is_none_gets_a_sentence(visit):
    page = visit()
    page.get_by_role("button", name=re.compile("^Model")).click()
    page.get_by_label("Checkpoint").fill("no-such/model")
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_role("alert").filter(has_text="Cannot load model 'no-such/model'").wait_for()
    page.get_by_label("Checkpoint").fill("bundled")
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_text("bundled is loaded.").wait_for()


def look(page, function: str):
    return page.evaluate(f"() => {{ {LOOKING}\nreturn {function}(); }}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_and_reached_by_keyboard(visit, scheme):
    page = visit(color_scheme=scheme)
    page.get_by_role("button", name="Answer").click()
    page.get_by_text("Answered.").wait_for()
    page.get_by_role("button", name=re.compile("^Model")).click()
    assert look(page, "poorContrast") == []
    assert look(page, "unnamed") == []
    # Every control is reached with Tab, and each shows that it has the focus.
    page.get_by_role("heading", name="zooprune").click()
    reached, hidden = set(), set()
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = look(page, "focused")
        reached.add(name)
        if name and outline < 2:
            hidden.add(name)
    assert hidden == set()
    for name in (
        "sign",
        "Question",
        "Method",
        "Compare with",
        "Dropped tokens",
        "Answer",
        "Checkpoint",
        "Link",
        "Load",
    ):
        assert any(name in one for one in reached), (name, reached)
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
