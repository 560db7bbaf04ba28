"""The pages in a real browser: no errors, nothing fetched, and the player plays."""

import functools
import http.server
import re
import shutil
import subprocess
import threading
from html import unescape
from typing import NamedTuple

import pytest
from pages import CARD, CONFIG, EVALUATION, FILLED, FREE, SAMPLES, canvases, write_run

from mdlm_jax.pages import animation
from mdlm_jax.pages.comparison import write_comparison
from mdlm_jax.pages.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--dump-dom"),
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed"),
]
STEPS = 4  # of FREE, whose tokens are written at 3, 0, 1, 1, 3, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    records = [(4, "train", {"loss": 3.0}), (4, "eval", {"nats_per_token": 6.0})]
    files = {"config": CONFIG, "records": records, "data": CARD, "samples": SAMPLES}
    files["evaluation_validation"] = EVALUATION
    for name in ("one", "two"):
        write_run(folder / name, **files)
    write_report(folder / "one")
    write_comparison([folder / "one", folder / "two"], folder / "comparison.html")
    (folder / "animation.html").write_text(animation.page(SAMPLES, "Samples"))
    (folder / "free.html").write_text(animation.page([FREE], "Free"))
    return folder


# When all is loaded, the page tells what it asked for, wherever that is and whether it came or not.
FETCHED = """<script>addEventListener("load", () => {
  const asked = performance.getEntriesByType("resource").map((entry) => entry.name);
  document.body.dataset.fetched = asked.join(" ");
});</script>"""


class Opened(NamedTuple):
    dom: str  # after the scripts
    console: list[str]
    fetched: list[str]


def opened(path, *flags, fragment="", script=""):
    """Opens a page, with `script` at its end, over HTTP: of files no browser tells the fetched."""
    copy = path.with_name("opened.html")
    page = path.read_text(encoding="utf-8").replace("</body>", f"{FETCHED}{script}</body>")
    copy.write_text(page, encoding="utf-8")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=path.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{copy.name}{fragment}"
        profile = f"--user-data-dir={path.with_name('profile')}"
        done = subprocess.run(
            [BROWSER, *FLAGS, profile, *flags, address],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        server.shutdown()
    console = re.findall(r".*CONSOLE.*", done.stderr)
    fetched = re.search(r'data-fetched="(.*?)"', done.stdout)[1].split()
    return Opened(done.stdout, [each for each in console if "favicon" not in each], fetched)


def blanks(dom):
    """For each generated token of the page whether it is covered."""
    kinds = re.findall(r'<i class="?([^">]*)', dom.split("<body>")[-1])
    return ["blank" in kind.split() for kind in kinds]


def count(dom):
    return re.findall(r'<span class="count">(.*?)</span>', dom)


@pytest.mark.parametrize("page", ["one/report.html", "comparison.html", "animation.html"])
def test_pages_run_without_errors_fetch_nothing_and_show_the_final_text(folder, page):
    dom, console, fetched = opened(folder / page)
    assert console == fetched == []
    shown = [FREE["text"]] * 2 if page == "comparison.html" else [FILLED["text"], FREE["text"]]
    assert [unescape(text) for text in canvases(dom)] == shown
    assert not any(blanks(dom))
    assert "step 4 of 4" in count(dom)


def test_what_a_page_logs_and_fetches_would_be_seen(folder):
    script = """<script>console.error("told");</script>
      <img src="seen.png"><img src="https://example.invalid/b.png">"""
    _, console, fetched = opened(folder / "free.html", script=script)
    assert any("told" in line for line in console)
    assert [each.rsplit("/", 1)[1] for each in fetched] == ["seen.png", "b.png"]


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 99])
def test_the_fragment_of_the_address_opens_a_step(folder, step):
    dom, *_ = opened(folder / "free.html", fragment=f"#step={step}")
    assert blanks(dom) == [at >= step for at in (3, 0, 1, 1, 3, 2)]
    assert count(dom) == [f"step {min(step, STEPS)} of 4"]
    assert canvases(dom) == [FREE["text"]]


def test_play_starts_from_nothing_and_ends_with_the_text(folder):
    script = """<script>
      document.querySelector(".player button").click();
      const seen = [];
      new MutationObserver(() => seen.push(document.querySelectorAll("i.blank").length)).observe(
        document.querySelector(".count"), { childList: true });
      seen.push(document.querySelectorAll("i.blank").length);
      const tell = () => { document.body.dataset.seen = [...new Set(seen)]; };
      setTimeout(tell, 8000);
    </script>"""
    dom, console, _ = opened(folder / "free.html", "--virtual-time-budget=12000", script=script)
    assert console == []
    assert re.search(r'data-seen="(.*?)"', dom)[1] == "6,5,3,2,0"
    assert count(dom) == ["step 4 of 4"] and ">Play</button>" in dom


def test_pause_and_the_keyboard_stop_the_canvas(folder):
    script = """<script>
      const [button, slider] = document.querySelectorAll(".player button, .player input");
      const space = () => slider.dispatchEvent(new KeyboardEvent("keydown", { key: " " }));
      space();
      const label = button.textContent;
      space();
      document.body.dataset.labels = [label, button.textContent];
    </script>"""
    dom, *_ = opened(folder / "free.html", "--virtual-time-budget=6000", script=script)
    assert 'data-labels="Pause,Play"' in dom
    assert count(dom) == ["step 0 of 4"]


def test_play_all_plays_every_player(folder):
    script = "<script>document.querySelector('.all').click();</script>"
    dom, *_ = opened(folder / "animation.html", script=script)
    assert count(dom) == ["step 0 of 64", "step 0 of 4"] and all(blanks(dom))
    assert ">Pause all</button>" in dom


def test_the_text_does_not_move_while_it_is_written(folder):
    script = """<script>
      const canvas = document.querySelector(".canvas"), all = [];
      for (let step = 0; step <= 4; step++) {
        location.hash = `#step=${step}`;
        dispatchEvent(new Event("hashchange"));
        all.push([...canvas.querySelectorAll("i")].map((token) =>
          JSON.stringify(token.getBoundingClientRect())).join());
      }
      document.body.dataset.places = new Set(all).size;
    </script>"""
    dom, *_ = opened(folder / "free.html", "--window-size=420,800", script=script)
    assert 'data-places="1"' in dom


def test_reduced_motion_steps_slowly(folder):
    script = "<script>document.querySelector('.player button').click();</script>"
    long = {**FREE, "steps": 60}
    path = folder / "long.html"
    path.write_text(animation.page([long], "Long"))
    budget = "--virtual-time-budget=1100"
    dom, *_ = opened(path, budget, "--force-prefers-reduced-motion", script=script)
    assert count(dom) == ["step 5 of 60"]  # a twelfth after half a second, the next after one more
