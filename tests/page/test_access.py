"""Who can use the page: with a keyboard, with a screen reader, on a phone, with a key."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from gateway import Gateway

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 320, "height": 700}, "is_mobile": True, "has_touch": True}
# Levels A and AA of WCAG 2.2, and axe's best practices.
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def check_axe(app, what):
    results = Axe().run(app.page, options=RULES)
    assert results.violations_count == 0, f"{what}\n{results.generate_report()}"


def check_width(app, what):
    wider = app.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0, f"{what} is {wider} pixels wider than the screen"


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_is_accessible_and_fits(open_page, screen, scheme):
    app = open_page(**screen, color_scheme=scheme, reduced_motion="reduce").opened()

    def check(what):
        check_axe(app, what)
        check_width(app, what)

    check("the page at first")
    app.choose("tiny", "Text to image")
    app.page.get_by_text("Advanced", exact=True).click()
    app.page.get_by_role("checkbox", name="style").check()
    check("the open form")
    app.make("a word_that_is_much_longer_than_a_phone_is_wide_and_has_no_place_to_break_it" * 2, seed=1)
    check("the result")
    app.gallery().first.click()
    check("the viewer")
    app.page.keyboard.press("Escape")
    app.by_id("outcome-actions").get_by_role("button", name="Inpaint").click()
    app.by_id("mask-draw").click()
    app.page.get_by_text("Rectangle by numbers").click()
    check("the mask editor")
    app.page.keyboard.press("Escape")
    app.by_id("generate").click()
    expect(app.by_id("error")).to_be_visible()
    check("an error")
    app.by_id("gallery-clear").click()
    check("the question")


def test_the_theme_can_be_chosen_and_stays(open_page):
    app = open_page(**DESKTOP, color_scheme="light").opened()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = app.page.evaluate(ground)
    app.page.get_by_role("radio", name="Dark").check(force=True)
    dark = app.page.evaluate(ground)
    assert light != dark
    app.page.reload()
    assert app.page.evaluate(ground) == dark
    app.page.get_by_role("radio", name="As the system").check(force=True)
    assert app.page.evaluate(ground) == light


def test_an_image_is_made_with_the_keyboard_alone(open_page):
    app = open_page(**DESKTOP).opened()
    press = app.page.keyboard.press
    press("Tab")
    expect(app.page.get_by_role("link", name="Skip to the prompt")).to_be_focused()
    press("Enter")
    expect(app.by_id("prompt")).to_be_focused()
    app.page.keyboard.type("a red circle")
    while not app.by_id("number-num_inference_steps").evaluate("(field) => field === document.activeElement"):
        press("Tab")
    press("Control+a")
    app.page.keyboard.type("3")
    press("Control+Enter")
    app.finished()
    while not app.gallery().first.evaluate("(button) => button === document.activeElement"):
        press("Tab")
    press("Enter")
    expect(app.by_id("viewer")).to_be_visible()
    press("Escape")
    expect(app.gallery().first).to_be_focused()


def test_a_screen_reader_hears_what_happens_and_not_each_step(open_page):
    app = open_page(**DESKTOP).opened()
    app.page.evaluate("""() => {
        window.heard = [];
        new MutationObserver(() => window.heard.push(document.getElementById("announce").textContent))
            .observe(document.getElementById("announce"), { childList: true });
    }""")
    app.choose("tiny", "Text to image")
    app.make(steps=60)
    heard = app.page.evaluate("window.heard")
    assert heard[0] == "Generating 1 image." and heard[-1].startswith("1 image in ")
    assert len(heard) < 6


def test_the_key_is_asked_for_kept_and_sent(server, open_page):
    with Gateway(server.grpc_address, key="secret") as keyed:
        app = open_page(keyed.url.removesuffix("v1"), **DESKTOP)
        app.page.goto(app.url)
        dialog = app.by_id("key")
        expect(dialog).to_contain_text("need its API key")
        expect(app.by_id("key-input")).to_be_focused()
        app.page.keyboard.type("wrong")
        app.page.keyboard.press("Enter")
        expect(dialog).to_contain_text("did not accept this API key")
        check_axe(app, "the question for the key")
        app.by_id("key-input").fill("secret")
        app.by_id("key-save").click()
        app.choose("tiny", "Text to image")
        app.make()
        app.page.reload()
        app.page.locator("html[data-ready]").wait_for()
        app.make()
        assert app.sent().headers["authorization"] == "Bearer secret"
        app.page.evaluate("localStorage.setItem('triton-diffusion.key', 'old')")
        app.generate()
        expect(dialog).to_contain_text("did not accept this API key")
        app.page.keyboard.press("Escape")
        expect(app.by_id("error")).to_contain_text("API key")


def test_a_gateway_without_a_triton_is_named_and_asked_again(open_page):
    with Gateway("127.0.0.1:1") as lonely:
        app = open_page(lonely.url.removesuffix("v1"), **DESKTOP)
        app.page.goto(app.url)
        expect(app.by_id("server-notice")).to_contain_text("no Triton answers")
        app.page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": [{"id": "later"}]}))
        expect(app.page.get_by_label("Model", exact=True)).to_have_value("later")
        expect(app.by_id("server-notice")).to_be_hidden()


def test_the_page_can_be_left_out(server):
    with Gateway(server.grpc_address, arguments=["--no-page"]) as bare:
        assert bare.send("GET", "/")[0] == 404
        assert bare.send("GET", "/v1/models")[0] == 200
