"""The page of a server in a real browser: a person types, watches, and asks what else fits."""

import browser
import httpx
import pytest
import tiny_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browser.BROWSER is None, reason=f"none of {', '.join(browser.BROWSERS)} is installed"
    ),
]
PROMPT = "the old {mask:9} mill and [MASK] salt"
DONE = "document.querySelector('#canvas i.open')"
TEXT = "document.getElementById('canvas').textContent"


@pytest.fixture
def page(server, tmp_path):
    with browser.opened(f"{server.address}/", tmp_path) as page:
        page.wait("document.getElementById('model').value !== ''")
        yield page


def write(page, prompt=PROMPT, **fields):
    for name, value in fields.items():
        page.type(f"#{name}", str(value))
    page.type("#prompt", prompt)
    page.click("#write")


def completed(server, prompt=PROMPT, **fields):
    answer = server.client.completions.create(model="tiny", prompt=prompt, seed=0, **fields)
    return answer.choices[0].text


def test_a_text_comes_to_be_and_is_what_the_api_writes(server, page):
    page.evaluate(
        "window.seen = []; new MutationObserver(() => window.seen.push("
        "document.querySelectorAll('#canvas i.blank').length)).observe("
        "document.getElementById('canvas'), { childList: true }); null"
    )
    write(page, steps=10)
    page.wait(DONE)
    assert page.evaluate(TEXT) == completed(server, extra_body={"steps": 10})
    blanks = page.evaluate("window.seen")
    assert blanks == sorted(blanks, reverse=True) and len({*blanks}) > 2 and blanks[-1] == 0
    assert page.evaluate("document.getElementById('count').textContent") == "10 evaluations"
    assert page.told == []
    # All of it comes from the server itself.
    assert {address.split("/")[2] for address in page.fetched} == {server.address.split("/")[2]}


def test_the_controls_are_those_of_the_request(server, page):
    write(page, strategy="threshold(0.2)", steps=5, temperature=0.5, seed=0)
    page.wait(DONE)
    fields = {"temperature": 0.5, "extra_body": {"steps": 5, "strategy": "threshold(0.2)"}}
    first = completed(server, **fields)
    assert page.evaluate(TEXT) == first
    page.click("#another")
    page.wait(f"{DONE} && {TEXT} !== {first!r}")
    assert page.evaluate("document.getElementById('seed').value") == "1"


def test_an_open_end_goes_on_and_asks_for_how_long(server, page):
    write(page, "the old mill")
    page.wait(DONE)
    assert page.evaluate(TEXT) == completed(server, "the old mill", echo=True)
    page.type("#max_tokens", "3")
    page.click("#write")
    whole = completed(server, "the old mill", echo=True, max_tokens=3)
    page.wait(f"{DONE} && {TEXT} === {whole!r}")
    page.type("#prompt", PROMPT)
    assert page.evaluate("document.getElementById('masks').hidden")


def test_it_is_played_again_step_by_step(page):
    write(page, steps=6)
    page.wait(f"{DONE} && !document.getElementById('step').hidden")
    whole = page.evaluate(TEXT)
    page.evaluate(
        "(() => { const s = document.getElementById('step'); s.value = 0;"
        " s.dispatchEvent(new Event('input')); })()"
    )
    assert page.evaluate("document.querySelectorAll('#canvas i.blank').length") > 0
    page.click("#play")
    page.wait(f"{DONE} && document.getElementById('play').textContent === 'Play'")
    assert page.evaluate(TEXT) == whole


@pytest.mark.parametrize("how", ["pointer", "keyboard"])
def test_a_token_tells_what_else_is_likely_there(server, page, how):
    write(page)
    page.wait(f"{DONE} && document.getElementById('play').textContent === 'Play'")
    third = "#canvas i.open:nth-of-type(3)"
    if how == "pointer":
        page.hover(third)
    else:
        page.evaluate(f"document.querySelector({third!r}).focus()")
    page.wait("!document.getElementById('alternatives').hidden")
    pieces = page.evaluate(
        "[...document.querySelectorAll('#alternatives .piece')].map((e) => e.textContent)"
    )
    (asked,) = [told for told in server.told[-3:] if told["path"] == "/v1/alternatives"]
    assert asked["status"] == 200 and 5 <= len(pieces) <= 6
    assert page.evaluate("document.querySelectorAll('#alternatives .chosen').length") == 1
    shares = page.evaluate("[...document.querySelectorAll('meter')].map((e) => e.value)")
    assert shares[:5] == sorted(shares[:5], reverse=True) and sum(shares) <= 1
    if how == "pointer":
        page.hover("h1")
    else:
        page.evaluate("document.activeElement.blur()")
    page.wait("document.getElementById('alternatives').hidden")


def test_what_is_wrong_is_told(page):
    write(page, strategy="greedy")
    page.wait("!document.getElementById('error').hidden")
    told = page.evaluate("document.getElementById('error').textContent")
    assert told.startswith("strategy 'greedy' is of a kind that this server does not offer")
    write(page, strategy="exact_count")
    page.wait(DONE)
    assert page.evaluate("document.getElementById('error').hidden")


def test_stop_gives_the_text_up(server, page):
    write(page, strategy="remask(cap, 0.1)", steps=100_000)
    page.wait("document.querySelector('#canvas i')")
    page.click("#stop")
    tiny_server.wait_until(lambda: not any(lane.active for lane in server.engine.stats().lanes))
    page.wait("document.getElementById('stop').hidden")
    assert page.evaluate("document.getElementById('error').hidden")


def test_a_model_of_pairs_answers(server, page):
    page.evaluate(
        "(() => { const m = document.getElementById('model'); m.value = 'talk';"
        " m.dispatchEvent(new Event('change')); })()"
    )
    assert not page.evaluate("document.getElementById('answers').hidden")
    write(page, "where is the mill?")
    page.wait(DONE)
    answer = server.client.chat.completions.create(
        model="talk", messages=[{"role": "user", "content": "where is the mill?"}], seed=0
    )
    assert page.evaluate(TEXT) == answer.choices[0].message.content


def test_a_key_is_asked_for(tiny, tmp_path):
    with (
        tiny_server.running({"tiny": tiny}, keys=[b"the-key"], api_key="the-key") as server,
        browser.opened(f"{server.address}/", tmp_path) as page,
    ):
        page.wait("!document.querySelector('.key').hidden")
        page.type("#key", "the-key")
        page.evaluate("document.getElementById('key').dispatchEvent(new Event('change'))")
        page.wait("document.getElementById('model').value === 'tiny'")
        write(page)
        page.wait(DONE)


def test_nothing_else_may_run_in_it(server):
    for path in ("/", "/page/page.js"):
        policy = httpx.get(f"{server.address}{path}").headers["content-security-policy"]
        assert policy.startswith("default-src 'self'")
    assert httpx.get(f"{server.address}/page/..%2ftables.py").status_code == 404
