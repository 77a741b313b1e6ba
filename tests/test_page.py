"""The service's page in a real browser, before a real server: quiet, accessible in every state, and with no request to another host."""

import asyncio
import io
import re
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason='no fastapi: pip install -e ".[serve]"')
from captioning.build.serving import open_captioner
from captioning.serving.app import STATIC as PAGE
from captioning.serving.problems import KINDS, Problem
from captioning.serving.server import listen, prepared
from captioning.serving.service import Limits, Service

SEEN = """
  window.said = [];
  addEventListener("DOMContentLoaded", () => ["status", "problem", "answer"].forEach(id => new MutationObserver(() => {
    const text = document.getElementById(id).textContent; if (text) said.push([id, text]);
  }).observe(document.getElementById(id), {childList: true, subtree: true, characterData: true})));
"""
SPEECH = """
  window.spoken = [];
  Object.defineProperty(window, "speechSynthesis", {configurable: true, value: {
    speak: (its) => { spoken.push([its.text, its.lang]); window.speaking = its; },
    cancel: () => { window.speaking?.onend?.(); window.speaking = null; },
  }});
"""
DROP = """([bytes, name]) => {
  const its = new DataTransfer();
  if (name) its.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
  const how = {bubbles: true, cancelable: true, dataTransfer: its};
  for (const kind of ["dragover", "drop"]) document.querySelector("footer").dispatchEvent(new DragEvent(kind, how));
}"""
CLIP = """async (bytes) => {
  const blob = new Blob([new Uint8Array(bytes)], {type: "image/png"});
  await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
}"""
RING = """() => {
  const its = getComputedStyle(document.activeElement);
  return its.outlineStyle != "none" && parseFloat(its.outlineWidth) >= 2;
}"""
DARK = """([left, top, width, height]) => {  // how dark this part of the overlay is, from 0 to 1; null without an overlay
  const its = document.getElementById("overlay");
  if (its.hidden) return null;
  const box = [left * its.width, top * its.height, width * its.width, height * its.height];
  const { data } = its.getContext("2d").getImageData(...box);
  return data.filter((_, place) => place % 4 == 3).reduce((sum, value) => sum + value, 0) / (data.length / 4) / 255;
}"""
NO_CLIPBOARD = """
  window.readText = navigator.clipboard.readText.bind(navigator.clipboard);
  Object.defineProperty(navigator, "clipboard", {value: undefined});
"""


def picture(width=48, height=32, form="PNG", noise=False) -> bytes:
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (height, width, 3), dtype=np.uint8) if noise else np.full((height, width, 3), 200, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form)
    return file.getvalue()


def upload(content: bytes, name="a picture.png", kind="image/png"):
    return {"name": name, "mimeType": kind, "buffer": content}


@contextmanager
def serving(service, model, api_key=None):
    listener = listen("127.0.0.1", 0)
    server = prepared(service, model, api_key=api_key)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = server.force_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def house(finished):
    """A service of one megabyte an image, without a key and with one."""
    captioner, model = open_captioner(finished, "cpu")
    service = Service(captioner, Limits(megabytes=1))
    while service.state == "starting":
        time.sleep(0.01)
    with serving(service, model) as base, serving(service, model, api_key="sesame-1") as locked:
        yield SimpleNamespace(service=service, base=base, locked=locked)


@pytest.fixture
def visit(chromium, house):
    """visit(**of the context) -> a tab on the page. In the end no tab has heard an error it did not ask for, nor asked another host."""
    contexts, heard, asked = [], [], []
    expected: set[tuple[str, str]] = set()  # what the console may say: (path, part of the text)

    def noted(message):
        path = message.location.get("url", "").partition("?")[0].rpartition("/")[2]
        if message.type in ("error", "warning") and not any(path == its and text in message.text for its, text in expected):
            heard.append((path, message.text))

    def open_tab(base=house.base, script="", **context):
        context = chromium.new_context(**{"viewport": {"width": 800, "height": 700}} | context)
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write", "camera"])
        context.add_init_script(SEEN + SPEECH + script)
        context.set_default_timeout(10_000)
        tab = context.new_page()
        tab.on("console", noted)
        tab.on("pageerror", lambda error: heard.append(("error", str(error))))
        tab.on("request", lambda request: asked.append(request.url))
        with tab.expect_response("**/v1/model"):
            tab.goto(base)
        tab.wait_for_selector("#model:not(:empty), #key-form:not([hidden])")
        return tab

    open_tab.expected = expected
    yield open_tab
    for context in contexts:
        context.close()
    assert heard == []
    assert not [url for url in asked if not url.startswith((house.base, house.locked, "data:", "blob:http://127.0.0.1:"))]


def refused(tab):
    tab.wait_for_selector("#problem p")
    return tab.inner_text("#problem")


def describe(tab, content=None, **named):
    """The description, once it stands there."""
    if content is not None:
        tab.set_input_files("#file", upload(content, **named))
    tab.click("#describe")
    return described(tab)


def described(tab):
    tab.wait_for_selector("#answer p")
    return tab.inner_text("#answer")


def focused(tab):
    return tab.evaluate("document.activeElement.id || document.activeElement.textContent")


def chooser(tab):
    """The dialog for a file, to be called once it was asked for. (`expect_file_chooser` begins to look out too late, at times.)"""
    chosen = []
    tab.on("filechooser", lambda its: chosen.append(its))

    def wait():
        while not chosen:
            tab.wait_for_timeout(20)
        return chosen[0]

    return wait


def said(tab, region):
    return [text for its, text in tab.evaluate("said") if its == region]


def check_accessible(tab):
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).parent / "axe.min.js"
    if not tab.evaluate("'axe' in window"):
        tab.evaluate(axe.read_text())
    found = tab.evaluate("axe.run({rules: {'color-contrast-enhanced': {enabled: true}, 'target-size': {enabled: true}}})")
    assert [(broken["id"], broken["nodes"][0]["html"]) for broken in found["violations"]] == [] and len(found["passes"]) > 15


def check_narrow(tab):
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = """[...document.querySelectorAll('button, input, summary')].map(its => [its.id || its.textContent, its.getBoundingClientRect()])
      .filter(([name, box]) => box.width && (box.height < 44 || box.width < 44 || box.right > innerWidth)).map(([name]) => name)"""
    assert tab.evaluate(small) == []


def test_an_image_is_chosen_and_its_description_is_said_once_and_again_for_the_next(visit):
    tab = visit()
    button = tab.get_by_role("button", name="Describe", disabled=True)
    assert button.count() == 1 and tab.inner_text("#missing") == "Choose an image first."
    tab.click("#describe", force=True)
    assert refused(tab) == "Choose an image first." and focused(tab) == "file"
    tab.set_input_files("#file", upload(picture()))
    assert tab.inner_text("#missing") == tab.inner_text("#problem") == "" and "a picture.png" in tab.inner_text("#name")
    text = describe(tab)
    assert text.endswith(".") and focused(tab) == "describe" and said(tab, "answer") == [text]
    assert tab.inner_text("#candidates li >> nth=0").startswith(text) or tab.text_content("#candidates li").startswith(text)
    assert describe(tab) == text and said(tab, "answer") == [text, text], "the same words are said again"
    tab.set_input_files("#file", upload(picture(), name="next.png"))
    assert tab.inner_text("#answer") == "" and not tab.is_visible("#more") and said(tab, "problem") == ["Choose an image first."]


def test_what_is_said_stands_in_regions_that_are_read_aloud_and_were_there_before(visit):
    tab = visit()
    client = tab.context.new_cdp_session(tab)

    def regions():
        its = client.send("Accessibility.getFullAXTree")["nodes"]
        live = [[value["value"]["value"] for value in node.get("properties", []) if value["name"] == "live"] for node in its]
        return sorted(value for values in live for value in values)

    assert regions().count("polite") >= 2 and "assertive" in regions()
    text = describe(tab, picture())
    nodes = client.send("Accessibility.getFullAXTree")["nodes"]
    spoken = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "StaticText" and not node.get("ignored")]
    assert spoken.count(text) == 1 and tab.get_attribute("#answer", "aria-live") == "polite"


def test_while_it_works_it_says_so_once_and_can_be_cancelled_and_the_service_lets_go(visit, house, monkeypatch):
    began, dropped = threading.Event(), threading.Event()

    async def endless(*its, **named):
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            dropped.set()
            raise

    tab = visit()
    monkeypatch.setattr(house.service, "describe", endless)
    tab.set_input_files("#file", upload(picture()))
    tab.click("#describe")
    assert began.wait(10)
    tab.wait_for_selector("#status p")
    assert tab.inner_text("#status") == "Describing…" and tab.is_visible("#bar")
    check_accessible(tab)
    tab.click("#describe", force=True)
    tab.focus("#cancel")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#status:has-text('Cancelled.')")
    assert dropped.wait(10) and said(tab, "status") == ["Describing…", "Cancelled."] and focused(tab) == "describe"
    assert not tab.is_visible("#bar") and not tab.is_visible("#cancel") and said(tab, "problem") == said(tab, "answer") == []
    monkeypatch.undo()
    assert describe(tab)


def test_an_image_is_dropped_anywhere_on_the_page(visit):
    tab = visit()
    tab.evaluate(DROP, [[], ""])
    assert "no image" in refused(tab)
    tab.evaluate(DROP, [list(picture()), "dropped.png"])
    tab.wait_for_selector("#status p")
    assert said(tab, "status") == ["dropped.png is chosen. Press Describe."] and tab.evaluate("file.files[0].name") == "dropped.png"
    assert tab.inner_text("#problem") == "" and describe(tab)


def test_an_image_is_pasted_from_the_clipboard(visit):
    tab = visit()
    tab.evaluate(CLIP, list(picture()))
    tab.keyboard.press("Control+V")
    tab.wait_for_selector("#status p")
    assert "is chosen" in tab.inner_text("#status") and describe(tab)
    tab.evaluate("navigator.clipboard.writeText('words')")
    tab.keyboard.press("Control+V")
    assert "no image" in refused(tab)


def test_a_photograph_is_taken_where_there_is_a_camera(visit):
    tab = visit()
    tab.click("#photograph")
    tab.wait_for_selector("#camera[open]")
    check_accessible(tab)
    assert focused(tab) == "shutter"
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#camera", state="hidden")
    assert focused(tab) == "photograph" and not tab.is_visible("#chosen")
    tab.click("#photograph")
    tab.click("#shutter")
    tab.wait_for_selector("#picture")
    assert "photo.jpg" in tab.inner_text("#name") and tab.evaluate("viewfinder.srcObject") is None
    assert describe(tab)


def test_without_a_camera_there_is_no_such_button_and_a_phone_uses_its_own(visit):
    none = visit(script="navigator.mediaDevices.enumerateDevices = async () => [];")
    none.wait_for_timeout(100)
    assert not none.is_visible("#photograph")
    denied = visit(script="navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError'); };")
    denied.click("#photograph")
    assert refused(denied).startswith("The camera cannot be used.") and focused(denied) == "photograph"
    phone = visit(script="Object.defineProperty(HTMLInputElement.prototype, 'capture', {value: ''});")
    chosen = chooser(phone)
    phone.click("#photograph")
    its = chosen()
    assert its.element.get_attribute("capture") == "environment"
    its.set_files(upload(picture(), "shot.png"))
    assert describe(phone)


def test_an_address_is_described_where_that_is_allowed_and_not_offered_elsewhere(visit, house, monkeypatch):
    assert not visit().is_visible("#url")
    asked = []

    async def download(url):
        asked.append(url)
        if "page" in url:
            raise Problem("url_not_image", "text/html")
        return picture(90, 30)

    monkeypatch.setattr(house.service, "download", download)
    tab = visit()
    assert tab.inner_text("#missing") == "Choose an image or give an address first."
    check_accessible(tab)
    tab.set_input_files("#file", upload(picture()))
    tab.fill("#url", "example.org/cat.png")
    assert tab.evaluate("file.files.length") == 0 and not tab.is_visible("#chosen")
    tab.keyboard.press("Enter")
    assert refused(tab).startswith("This is not the address") and not asked
    tab.fill("#url", "https://example.org/cat.png")
    tab.keyboard.press("Enter")
    assert described(tab) and asked == ["https://example.org/cat.png"]
    assert tab.get_attribute("#picture", "src").startswith("data:image/jpeg") and tab.is_visible("#picture")
    tab.focus("#words button")
    assert tab.evaluate(DARK, [0, 0.5, 1, 1]) is not None
    visit.expected.add(("describe", "422"))
    tab.fill("#url", "https://example.org/page")
    tab.keyboard.press("Enter")
    assert refused(tab).startswith("There is something else than an image at this address")
    tab.set_input_files("#file", upload(picture()))
    assert tab.input_value("#url") == "" and describe(tab)


def test_the_keyboard_alone_leads_from_the_beginning_to_the_copied_description(visit):
    tab = visit()
    stops = []

    def go_to(name):
        for _ in range(20):
            tab.keyboard.press("Tab")
            stops.append(focused(tab))
            assert tab.evaluate(RING), f"no ring around {stops[-1]}"
            if stops[-1] == name:
                return
        raise AssertionError(stops)

    chosen = chooser(tab)
    go_to("file")
    tab.keyboard.press("Space")
    chosen().set_files(upload(picture()))
    go_to("describe")
    tab.keyboard.press("Enter")
    text = described(tab)
    go_to("copy")
    tab.keyboard.press("Space")
    tab.wait_for_selector("#status:has-text('Copied.')")
    assert tab.evaluate("navigator.clipboard.readText()") == text and focused(tab) == "copy"
    words = tab.locator("#words button").all_inner_texts()
    go_to(words[0])
    tab.keyboard.press("End")
    assert focused(tab) == words[-1] and tab.evaluate(RING)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.tagName") == "SUMMARY", "the words are one stop"
    tab.keyboard.press("Enter")
    assert tab.is_visible("#candidates")
    assert stops[:4] == ["file", "photograph", "describe", "speak"]


def answer_of(*words, frame=(0, 0, 1, 1)):
    sentence = " ".join(word for word, _ in words).capitalize() + "."
    return {
        "description": sentence,
        "candidates": [{"description": sentence, "log_p": -1.0}],
        "words": [{"word": word, "attention": attention} for word, attention in words],
        "frame": dict(zip(("left", "top", "width", "height"), frame)),
    }


def at(row, column, side=3):
    return [[float((row, column) == (down, across)) for across in range(side)] for down in range(side)]


def test_words_show_on_the_image_and_in_words_where_the_model_looked(visit):
    tab = visit()
    even = [[1 / 9] * 3] * 3
    two = [[0.5, 0, 0], [0, 0, 0], [0, 0, 0.5]]
    visit.expected.add(("", "Canvas2D"))  # of this test, which reads the canvas
    answer = answer_of(("dogs", at(0, 0)), ("run", at(2, 2)), ("and", two), ("play", even), frame=(0.2, 0, 0.6, 1))
    tab.route("**/describe*", lambda route: route.fulfill(json=answer))
    describe(tab, picture(60, 30))
    words = tab.locator("#words button")
    labels = [word.get_attribute("aria-label") for word in words.all()]
    assert labels == [
        "dogs: looked mostly at the upper left",
        "run: looked mostly at the lower right",
        "and: looked mostly at the upper left and the lower right",
        "play: looked all over the image",
    ]
    assert [word.get_attribute("tabindex") for word in words.all()] == ["0", "-1", "-1", "-1"]
    assert tab.evaluate(DARK, [0, 0, 1, 1]) is None
    words.nth(0).focus()
    box = [tab.locator(its).bounding_box() for its in ("#picture", "#overlay")]
    assert box[0] == box[1]
    cell, other, outside = [0.2, 0, 0.05, 0.1], [0.74, 0.9, 0.05, 0.1], [0, 0, 0.19, 1]
    assert tab.evaluate(DARK, cell) < 0.1 and tab.evaluate(DARK, other) > 0.7 and tab.evaluate(DARK, outside) > 0.7
    assert tab.inner_text("#looked") == labels[0]
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate(DARK, cell) > 0.7 and tab.evaluate(DARK, other) < 0.1
    assert [word.get_attribute("tabindex") for word in words.all()] == ["-1", "0", "-1", "-1"]
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert focused(tab) == "play" and tab.evaluate(DARK, [0.3, 0.1, 0.4, 0.8]) < 0.1, "an even look is bright everywhere"
    words.nth(0).hover()
    assert tab.evaluate(DARK, cell) < 0.1 and tab.inner_text("#looked") == labels[0], "the pointer goes before the focus"
    tab.mouse.move(1, 1)
    assert tab.inner_text("#looked") == labels[3]
    tab.focus("#copy")
    assert tab.evaluate(DARK, cell) is None and tab.text_content("#looked") == ""
    words.nth(1).click()
    tab.mouse.move(1, 1)
    tab.focus("#copy")
    assert words.nth(1).get_attribute("aria-pressed") == "true" and tab.evaluate(DARK, other) < 0.1, "what is pressed stays"
    check_accessible(tab)
    words.nth(1).focus()
    tab.keyboard.press("Escape")
    assert tab.evaluate(DARK, cell) is None


def test_a_real_models_words_are_the_descriptions(visit):
    tab = visit()
    text = describe(tab, picture(noise=True))
    words = tab.locator("#words button").all_inner_texts()
    assert " ".join(words).lower() == text.lower().rstrip(".") and tab.get_by_role("toolbar", name="Where the model looked").count() == 1
    tab.focus("#words button")
    assert tab.evaluate(DARK, [0, 0, 1, 1]) > 0.05


def test_a_model_that_does_not_attend_shows_no_words_and_texts_are_never_html(visit):
    tab = visit()
    evil = "<img src=x onerror=alert(1)><b>dog</b>"
    tab.route("**/describe*", lambda route: route.fulfill(json=answer_of((evil, None))))
    assert describe(tab, picture(), name=f"{evil.replace('/', '')}.png").lower() == f"{evil}.".lower() and not tab.is_visible("#looks")
    assert tab.locator("main img").count() == 1 and tab.locator("main b").count() == 0


def test_the_description_is_spoken_until_it_is_stopped(visit):
    tab = visit()
    text = describe(tab, picture())
    tab.click("#speak")
    assert tab.evaluate("spoken") == [[text, "en"]] and tab.inner_text("#speak") == "Stop speaking"
    tab.click("#speak")
    assert tab.evaluate("window.speaking") is None and tab.inner_text("#speak") == "Speak aloud"
    tab.click("#speak")
    tab.evaluate("window.speaking.onend()")
    assert tab.inner_text("#speak") == "Speak aloud"
    tab.click("#speak")
    tab.set_input_files("#file", upload(picture()))
    assert tab.evaluate("window.speaking") is None and len(tab.evaluate("spoken")) == 3
    without = visit(script="delete window.speechSynthesis;")
    assert describe(without, picture()) and not without.is_visible("#speak") and without.is_visible("#copy")


def test_it_is_copied_also_where_there_is_no_clipboard_to_ask(visit):
    tab = visit(script=NO_CLIPBOARD)
    text = describe(tab, picture())
    tab.click("#copy")
    tab.wait_for_selector("#status p")
    assert tab.inner_text("#status") == "Copied." and tab.evaluate("readText()") == text and focused(tab) == "copy"
    tab.click("#copy")
    tab.wait_for_selector("#status p")
    assert said(tab, "status")[-2:] == ["Copied.", "Copied."]


def answered(route, status, body, **more):
    route.fulfill(status=status, json=body, **more)


def test_every_refusal_of_the_service_has_a_sentence_of_its_own(visit):
    tab = visit()
    tab.set_input_files("#file", upload(picture()))
    sentences = {}
    for code, kind in KINDS.items():
        visit.expected.add(("describe", str(kind.status)))
        body = Problem(code, f"about {code}").body("the-id")
        tab.route("**/describe*", partial(answered, status=kind.status, body=body))
        tab.click("#describe")
        sentences[code] = refused(tab)
        assert f"about {code}" in tab.inner_text("#trace") and "the-id" in tab.inner_text("#trace") and said(tab, "answer") == []
        assert focused(tab) == ("key" if code == "unauthorized" else "describe")
        assert tab.is_visible("#again") == (code in ("overloaded", "not_ready", "deadline", "internal", "request_timeout", "url_timeout"))
        if code in ("unauthorized", "overloaded"):
            check_accessible(tab)
    assert len(set(sentences.values())) == len(KINDS) == len(said(tab, "problem"))
    assert not [text for text in sentences.values() if "does not know" in text or not text.endswith(".") or not 20 < len(text) < 200]
    assert "At most 1 MB are taken." in sentences["too_large"]
    tab.route("**/describe*", partial(answered, status=418, body={"error": {"code": "new"}}))
    visit.expected.add(("describe", "418"))
    tab.click("#describe")
    assert refused(tab).endswith("Its code is new.")


def test_what_is_no_image_is_refused_by_the_service_and_what_is_too_large_before_it_is_sent(visit):
    visit.expected.add(("describe", "422"))
    tab = visit()
    sent = []
    tab.on("request", lambda request: sent.append(len(request.post_data_buffer or b"")) if "describe" in request.url else None)
    tab.set_input_files("#file", upload(b"no image", "notes.png"))
    tab.wait_for_selector("#unseen")
    tab.click("#describe")
    assert refused(tab).startswith("This file cannot be read as an image.") and "not an image of a known format" in tab.inner_text("#trace")
    check_accessible(tab)
    tab.set_input_files("#file", upload(bytes(1_200_000), "large.bin", "application/octet-stream"))
    tab.click("#describe")
    assert refused(tab).startswith("This image is too large") and "At most 1 MB" in tab.inner_text("#problem") and sent == [8]
    large = picture(2000, 1000, noise=True)
    assert len(large) > 5_000_000
    assert describe(tab, large) and 10_000 < sent[-1] < 2**20 and "5.7 MB" in tab.inner_text("#name"), "a large photograph is made smaller"


def test_an_image_that_the_browser_cannot_show_is_described_all_the_same(visit):
    tab = visit()
    tab.set_input_files("#file", upload(picture(form="TIFF"), "scan.tiff", "image/tiff"))
    tab.wait_for_selector("#unseen")
    assert not tab.is_visible("#picture") and describe(tab)
    tab.focus("#words button")
    assert "looked" in tab.inner_text("#looked")
    check_accessible(tab)


def test_a_busy_service_is_waited_for_without_a_flood_of_words(visit):
    visit.expected.add(("describe", "503"))
    tab = visit()
    body = Problem("overloaded", "").body("x")
    tab.route("**/describe*", partial(answered, status=503, body=body, headers={"Retry-After": "2"}))
    tab.set_input_files("#file", upload(picture()))
    tab.click("#describe")
    assert "busy" in refused(tab) and not tab.is_visible("#again")
    assert tab.inner_text("#wait") == "You can try again in 2 seconds."
    tab.unroute("**/describe*")
    tab.wait_for_selector("#again")
    assert not tab.is_visible("#wait")
    tab.wait_for_selector("#status p")
    tab.click("#again")
    assert described(tab) and focused(tab) == "describe" and not tab.is_visible("#after-problem")
    assert len(said(tab, "problem")) == 1 and [text for text in said(tab, "status") if "again" in text] == ["You can try again now."]


def test_who_is_offline_or_meets_something_else_than_the_service_is_told_and_may_try_again(visit):
    visit.expected.update({("describe", "net::"), ("describe", "502")})
    tab = visit()
    tab.set_input_files("#file", upload(picture()))
    tab.context.set_offline(True)
    tab.click("#describe")
    assert refused(tab).startswith("You are offline.")
    tab.context.set_offline(False)
    for answer, begins in [
        (lambda route: route.abort(), "The service cannot be reached."),
        (lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"), "Something else than the service answered."),
        (lambda route: route.fulfill(status=200, json={"hello": 1}), "Something else than the service answered."),
    ]:
        tab.route("**/describe*", answer)
        tab.click("#again")
        assert refused(tab).startswith(begins) and focused(tab) == "describe"
    tab.unroute("**/describe*")
    tab.click("#again")
    assert described(tab)


def test_a_key_is_asked_for_kept_for_the_tab_and_sent(visit, house):
    visit.expected.update({("describe", "401"), ("model", "401")})
    tab = visit(house.locked)
    assert tab.is_visible("#key") and not tab.is_visible("#url") and said(tab, "problem") == []
    check_accessible(tab)
    tab.set_input_files("#file", upload(picture()))
    tab.click("#describe")
    assert refused(tab).startswith("This service needs an API key.") and focused(tab) == "key"
    for wrong in ("no", "sésame"):
        tab.fill("#key", wrong)
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#problem:has-text('This API key is wrong')")
        assert focused(tab) == "key" and tab.evaluate("sessionStorage.length") == 0
    tab.fill("#key", "sesame-1")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#key-form", state="hidden")
    assert focused(tab) == "file" and describe(tab)
    assert tab.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    tab.reload()
    tab.wait_for_selector("#model:not(:empty)")
    assert describe(tab, picture()) and not tab.is_visible("#key")
    with tab.context.expect_page() as opened:
        tab.evaluate("open('/', '_blank', 'noopener')")
    opened.value.wait_for_selector("#key")


@pytest.mark.parametrize(
    "how", [{"viewport": {"width": 320, "height": 568}}, {"viewport": {"width": 640, "height": 512}, "device_scale_factor": 2}, "letters"]
)
def test_a_small_screen_and_large_letters_need_no_scrolling_sideways(visit, house, monkeypatch, how):
    monkeypatch.setattr(house.service, "download", lambda url: None)
    visit.expected.add(("describe", "422"))
    tab = visit(**({"viewport": {"width": 640, "height": 800}} if how == "letters" else how))
    if how == "letters":
        tab.evaluate("document.documentElement.style.fontSize = '200%'")
    check_narrow(tab)
    long = "un-supercalifragilistic-" * 12
    words = [(word, at(0, 0)) for word in ("a", "of", *[long[:70]] * 2)]
    tab.route("**/describe*", lambda route: route.fulfill(json=answer_of(*words)))
    describe(tab, picture(900, 30), name=f"{long[:200]}.png")
    tab.click("#others summary")
    tab.focus("#words button")
    check_narrow(tab)
    tab.unroute("**/describe*")
    tab.set_input_files("#file", upload(b"no", f"{long[:200]}.png"))
    tab.click("#describe")
    refused(tab)
    check_narrow(tab)


@pytest.mark.parametrize("how", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"forced_colors": "active"}])
def test_in_both_schemes_and_with_forced_colours_every_state_is_accessible(visit, how):
    tab = visit(**how)
    check_accessible(tab)
    tab.set_input_files("#file", upload(picture()))
    tab.wait_for_selector("#picture")
    check_accessible(tab)
    describe(tab)
    tab.click("#others summary")
    tab.focus("#words button")
    check_accessible(tab)
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    if "color_scheme" in how:
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[how["color_scheme"]]


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_those_who_do_not_want_it(visit, motion):
    tab = visit(reduced_motion=motion)
    tab.evaluate("bar.hidden = false")
    moving = tab.evaluate("document.getAnimations().length")
    assert moving == (0 if motion == "reduce" else 1) and tab.evaluate("document.getElementById('bar').getBoundingClientRect().height > 4")


def test_without_javascript_a_plain_form_is_sent(visit, house, chromium):
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(house.base)
    tab.set_input_files("#file", upload(picture()))
    tab.click("#describe", no_wait_after=True)
    tab.wait_for_url("**/describe", timeout=2_000)
    assert '"description"' in tab.content()
    context.close()


def test_the_page_is_light_and_names_no_other_host():
    files = {path.name: path.read_text() for path in PAGE.iterdir()}
    assert sum(len(text.encode()) for text in files.values()) < 48 * 1024
    assert not [name for name, text in files.items() if "innerHTML" in text or "localStorage" in text or "document.cookie" in text]
    assert [re.findall(r"//[\w.]", text) for text in files.values()] == [[]] * len(files)
