"""The page of ``foveate explore`` in a browser: what is shown, what is refused, what is left."""

import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(
    (at for at in ("/usr/bin/chromium", "/usr/bin/google-chrome") if Path(at).exists()), None
)
ROOT = Path(__file__).parents[1]
EVIL = "<img src=x onerror=alert(1)>"
TEMPLATES = "${alert(1)} {{this}}"
RESULTS = "(document.querySelector('.fv-columns')?.innerHTML ?? '')"
WAIT = 60_000
"""Milliseconds, on a machine that does much else."""


@dataclass
class Site:
    url: str
    process: subprocess.Popen[str]
    temporary: Path
    log: Path

    @property
    def netloc(self) -> str:
        return self.url.removeprefix("http://")

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        connection = http.client.HTTPConnection(self.netloc, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        connection.close()
        return answer.status, text, answer.headers

    def forge(self, element: str, event: str, value: Any, session: str) -> str:
        """What is answered to an event that no page has sent."""
        config = json.loads(self.ask("GET", "/config")[1])
        target = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == element)
        told = next(d for d in config["dependencies"] if [target, event] in d["targets"])
        data = [value if one == target else None for one in told["inputs"]]
        body = {"data": data, "fn_index": told["id"], "session_hash": session}
        status, text, _ = self.ask(
            "POST",
            "/gradio_api/queue/join",
            json.dumps(body).encode(),
            **{"content-type": "application/json"},
        )
        assert status == 200, text
        answer = self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")[1]
        assert "process_completed" in answer
        return answer

    def most_memory(self) -> int:
        found = re.search(
            r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text()
        )
        return int(found[1]) // 1024


def start(folder: Path) -> Site:
    data = folder / "data"
    for number, name in enumerate(("cat/a.png", f"{TEMPLATES}/b.png", f"dog/{EVIL}.png")):
        at = data / name
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(noise(number))
    (folder / "secret.png").write_bytes(noise(9))
    (data / "link.png").symlink_to(folder / "secret.png")
    (folder / "names.txt").write_text(f"{EVIL}\ncat\n{TEMPLATES}\n")
    temporary = folder / "tmp"
    temporary.mkdir()
    words = ["explore", "explored:reading", "--against", "explored:weighing", "--size", "16"]
    words += ["--data", str(data), "--classes", str(folder / "names.txt"), "--no-browser"]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-uc",
                f"import sys; from foveate.cli import main; sys.exit(main({words}))",
            ],
            env=os.environ
            | {"PYTHONPATH": paths, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line + (folder / "log").read_text()
    return Site(found[0], process, temporary, folder / "log")


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Site]]:
    started: list[Site] = []
    yield started
    for site in started:
        site.process.kill()
        site.process.communicate()


@pytest.fixture
def site(sites: list[Site], tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The server of these tests; another one after a test that has ended it."""
    if not sites or sites[-1].process.poll() is not None:
        sites.append(start(tmp_path_factory.mktemp("site")))
    return sites[-1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        try:
            opened = running.chromium.launch(executable_path=CHROMIUM)
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


class Tab:
    """A page of its own, and everything that it asked for or complained of."""

    def __init__(self, browser: Any, site: Site, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("dialog", self._opened)
        self.page.goto(site.url)
        self.page.wait_for_selector(".fv-drop")

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _opened(self, dialog: Any) -> None:
        self.complaints.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def drop(self, name: str, content: bytes) -> None:
        self.page.set_input_files(
            "#drop input[type=file]",
            files=[{"name": name, "mimeType": "image/png", "buffer": content}],
        )

    def let_fall(self, name: str, size: int) -> None:
        """Drag a file of zeros onto the middle of the page."""
        self.page.evaluate(
            """([name, size]) => {
              const dataTransfer = new DataTransfer();
              dataTransfer.items.add(new File([new Uint8Array(size)], name));
              const how = {dataTransfer, bubbles: true, cancelable: true};
              document.querySelector('h1').dispatchEvent(new DragEvent('drop', how));
            }""",
            [name, size],
        )

    def show(self, name: str, content: bytes) -> None:
        before = self.results()
        self.drop(name, content)
        self.page.wait_for_function(
            "name => document.querySelector('.fv-stage b')?.innerText === name", arg=name
        )
        self.wait_for_others(before)

    def results(self) -> str:
        return self.page.evaluate(RESULTS)

    def wait_for_others(self, before: str) -> None:
        """The picture may be there before the results are."""
        self.page.wait_for_function(f"before => {RESULTS} !== before", arg=before)

    def click(self, y: float, x: float) -> None:
        box = self.page.locator(".fv-picture").bounding_box()
        before = self.results()
        self.page.locator(".fv-picture").click(
            position={"x": x * box["width"], "y": y * box["height"]}
        )
        self.wait_for_others(before)

    def told(self) -> str:
        return self.page.locator(".fv-message").inner_text()

    def text(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def sources(self) -> list[str]:
        return self.page.eval_on_selector_all("#results img", "all => all.map(one => one.src)")


@pytest.fixture
def tab(browser: Any, site: Site) -> Iterator[Tab]:
    """A tab, which in the end has asked nobody else and complained of nothing."""
    tab = Tab(browser, site)
    yield tab
    tab.context.close()
    assert tab.complaints == []
    assert {url.split("/")[2] for url in tab.asked if not url.startswith("data:")} == {site.netloc}


def noise(seed: int, side: int = 24) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (side, side, 3)))


def encoded(pixels: Any, ending: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, ending)
    return buffer.getvalue()


def test_picture_is_dropped_clicked_compared_and_saved(tab: Tab) -> None:
    assert tab.text("h1") == ["What does it attend to?"]
    tab.show("own.png", noise(5))
    assert len(tab.text(".fv-classes tr")) == 3
    assert tab.text(".fv-told") == ["Click the picture to see where that point attends."]
    assert tab.text(".fv-evidence h3")[0].startswith("Class evidence, not attention: what speaks")
    tab.click(0.3, 0.8)
    assert tab.text(".fv-affinity h3") == ["Whom a point reads: affinities"]
    top, left = tab.page.eval_on_selector(
        ".fv-affinity .fv-mark", "mark => [parseFloat(mark.style.top), parseFloat(mark.style.left)]"
    )
    assert (top, left) == pytest.approx((100 * 4.5 / 16, 100 * 12.5 / 16), abs=0.01)  # of 16 cells
    tab.page.check("#compare input")
    tab.page.wait_for_selector(".fv-column:nth-child(2)")
    assert tab.text(".fv-column h2") == ["explored:reading", "explored:weighing"]
    assert "No position of this network reads another" in tab.text(".fv-told")[0]
    assert tab.text(".fv-column:nth-child(2) .fv-affinity") == []
    for ending in ("png", "svg"):
        with tab.page.expect_download() as saved:
            tab.page.get_by_text(f"Download {ending.upper()}").click()
        assert saved.value.suggested_filename == f"own-attention.{ending}"
        content = Path(saved.value.path()).read_bytes()
        if ending == "png":
            assert Image.open(io.BytesIO(content)).size[0] > 2000
        else:
            assert "explored:weighing" in "".join(ElementTree.fromstring(content).itertext())
    assert tab.page.locator(".fv-message").count() == 0


def test_layers_are_chosen(tab: Tab) -> None:
    tab.show("own.png", noise(5))
    assert tab.text(".fv-features h3") == ["Features: 5 strongest of 8 maps of attention"]
    tab.page.get_by_text("Choose layers and class evidence").click()
    tab.page.locator("#features0 input").click()
    tab.page.get_by_role("option", name="conv").click()
    tab.page.get_by_text("5 strongest of 8 maps of conv").wait_for()
    tab.page.locator("#cam input").click()
    tab.page.get_by_role("option", name="none").click()
    tab.page.wait_for_selector(".fv-evidence", state="detached")


def test_broken_images_are_one_line_each(tab: Tab, site: Site) -> None:
    tab.show("own.png", noise(5))
    before = tab.sources()
    for name, content, reason in (
        ("text.png", b"no image", "'text.png' is not an image that can be read"),
        ("empty.png", b"", "'empty.png' is not an image that can be read"),
        ("cut.png", noise(5)[:-300], "'cut.png' cannot be read as an image: "),
        ("21 MB.png", None, "'21 MB.png' is too large; accepted: up to 20 MB"),
    ):
        if content is None:
            tab.let_fall(name, 21 * 2**20)
        else:
            tab.drop(name, content)
        tab.page.wait_for_function(
            "name => document.querySelector('.fv-message')?.innerText.includes(name)", arg=name
        )
        assert tab.told().startswith(reason)
        assert len(tab.told().splitlines()) == 1
        assert tab.page.locator(".fv-message").bounding_box()["y"] >= 0  # wherever one has scrolled
        tab.page.mouse.wheel(0, 400)
    assert tab.sources() == before
    tab.page.locator(".fv-message").click()
    tab.page.wait_for_selector(".fv-message", state="detached")
    assert "Traceback" not in tab.page.content() + site.log.read_text()
    tab.show("good.png", noise(6))
    assert tab.page.locator(".fv-message").count() == 0


def test_50_megapixels_take_little_memory(tab: Tab, site: Site) -> None:
    tab.show("small.png", noise(5))
    before = site.most_memory()
    pixels = np.zeros((6250, 8000), dtype=np.uint8)
    tab.drop("huge.png", encoded(pixels))
    tab.page.wait_for_selector(".fv-message")
    assert tab.told() == (
        "'huge.png' has 50.0 megapixels (8000 by 6250); accepted: up to 25 for PNG"
    )
    tab.show("huge.jpg", encoded(np.stack([pixels] * 3, axis=2), "JPEG"))
    assert tab.page.locator(".fv-message").count() == 0
    assert site.most_memory() - before < 60  # whole, the picture alone takes 150


def test_two_tabs_do_not_know_of_each_other(browser: Any, site: Site, tab: Tab) -> None:
    other = Tab(browser, site)
    tab.show("one.png", noise(5))
    other.show("two.png", noise(6))
    tab.click(0.2, 0.2)
    seen = tab.sources()
    other.page.check("#compare input")
    other.page.wait_for_selector(".fv-column:nth-child(2)")
    assert other.text(".fv-told")[0].startswith("Click the picture")
    tab.click(0.8, 0.8)
    tab.click(0.2, 0.2)
    assert tab.sources() == seen
    assert (tab.text(".fv-stage b"), other.text(".fv-stage b")) == (["one.png"], ["two.png"])
    assert len(tab.text(".fv-column")) == 1
    other.context.close()
    assert other.complaints == []


def test_names_are_shown_as_text(tab: Tab) -> None:
    tab.page.locator("#picker input").click()
    options = tab.text("[role=option]")
    assert [one.strip().removeprefix("✓").strip() for one in options] == [
        f"{TEMPLATES}/b.png",
        "cat/a.png",
        f"dog/{EVIL}.png",
    ]
    tab.page.get_by_role("option", name=EVIL).click()
    tab.page.wait_for_selector(".fv-column")
    assert tab.text(".fv-stage b") == [f"dog/{EVIL}.png"]
    assert {EVIL, "cat", TEMPLATES} == set(tab.text(".fv-classes th"))
    tab.page.locator("#picker input").click()
    tab.page.get_by_role("option", name=f"{TEMPLATES}/b.png").click()
    tab.page.wait_for_selector(".fv-truth")
    assert tab.text(".fv-truth b") == [TEMPLATES]
    tab.show(f"{EVIL}.png", noise(3))
    tab.drop(f"{EVIL}.png", b"broken")
    tab.page.wait_for_selector(".fv-message")
    assert tab.told() == f"'{EVIL}.png' is not an image that can be read"
    assert tab.page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_legible(browser: Any, site: Site, scheme: str) -> None:
    """On a telephone nothing is cut off, and text stands out from what is behind it."""
    tab = Tab(browser, site, viewport={"width": 360, "height": 800}, color_scheme=scheme)
    tab.show("own.png", noise(5))
    tab.click(0.5, 0.5)
    tab.page.check("#compare input")
    tab.page.wait_for_selector(".fv-column:nth-child(2)")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
    for kind in (".fv-quiet", ".fv-told", ".fv-ends", ".fv-here", ".fv-column h3", ".fv-drop"):
        assert contrast(tab, kind) >= 4.5, kind
    tab.context.close()


def contrast(tab: Tab, selector: str) -> float:
    """The ratio of WCAG 2 between the colour of a text and what is painted behind it."""
    colours = tab.page.eval_on_selector(
        selector,
        """found => {
          const ink = getComputedStyle(found).color;
          let paper = found;
          const clear = (one) => /^rgba.* 0\\)$/.test(getComputedStyle(one).backgroundColor);
          while (clear(paper)) paper = paper.parentElement;
          return [ink, getComputedStyle(paper).backgroundColor];
        }""",
    )
    shades = []
    for colour in colours:
        parts = np.array([float(n) for n in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        shades.append(float(linear @ (0.2126, 0.7152, 0.0722)) + 0.05)
    return max(shades) / min(shades)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", f"/gradio_api/file={at}", 404) for at in ("/etc/passwd", "../../etc/passwd")),
        ("GET", "/gradio_api/file/../../../etc/passwd", 404),
        ("GET", "/file=/etc/passwd", 404),
        ("GET", "/static/../../../../../../../../etc/passwd", 403),
        ("GET", "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/gradio_api/proxy=http://example.com", 404),
        ("POST", "/gradio_api/upload", 404),
        ("GET", "/gradio_api/runs", 404),
        ("GET", "/docs", 404),
        ("PUT", "/", 404),
    ],
)
def test_other_routes_are_closed(site: Site, method: str, path: str, status: int) -> None:
    found, text, _ = site.ask(method, path)
    assert found in (status, 403, 404)
    assert "root:" not in text


def test_door_is_for_this_page_alone(site: Site) -> None:
    status, _, headers = site.ask("GET", "/")
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self' data: blob:")
    assert site.ask("GET", "/", host="attacker.example")[0] == 421
    join = "/gradio_api/queue/join"
    assert site.ask("POST", join, b"{}", origin="http://attacker.example")[0] == 403
    assert site.ask("POST", join, b"", **{"content-length": str(2**30)})[0] == 413
    assert site.ask("POST", join, iter([b"{}"]))[0] == 411
    port = int(site.netloc.partition(":")[2])
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {one[1] for one in sockets if one[3] == "0A" and one[1].endswith(f":{port:04X}")}
    assert listening == {f"0100007F:{port:04X}"}  # 127.0.0.1


@pytest.mark.parametrize(
    "picked", ["../../../etc/passwd", "/etc/passwd", "../secret.png", "cat/a.png", 3, -1, None, [0]]
)
def test_forged_picks_give_nothing(site: Site, picked: Any) -> None:
    answer = site.forge("picker", "input", picked, "forged")
    for betrayed in ("root:", "data:image", "Traceback"):
        assert betrayed not in answer


def test_closed_tab_is_forgotten(browser: Any, site: Site) -> None:
    tab = Tab(browser, site)
    tab.show("private.png", noise(78))
    session = next(m[1] for url in tab.asked if (m := re.search(r"heartbeat/(\w+)", url)))
    assert "private-attention.png" in site.forge("save-png", "click", None, session)
    tab.context.close()
    until = time.monotonic() + 20
    while "there is no picture yet" not in site.forge("save-png", "click", None, session):
        assert time.monotonic() < until
        time.sleep(0.3)


def test_nothing_is_kept_and_ctrl_c_ends_it(browser: Any, site: Site) -> None:
    tab = Tab(browser, site)
    logged = site.log.read_text()
    content = noise(77)
    tab.show("private.png", content)
    tab.click(0.5, 0.5)
    tab.drop("private.png", content[:-300])
    tab.page.wait_for_selector(".fv-message")
    left = [at for at in site.log.parent.rglob("*") if at.is_file() and at.stat().st_size]
    assert not [at for at in left if content[100:200] in at.read_bytes()]
    assert not [at for at in site.temporary.rglob("*") if at.is_file() and "foveate" in str(at)]
    assert list(site.temporary.glob("foveate-explore-*"))
    site.process.send_signal(signal.SIGINT)  # while the tab is open
    began = time.monotonic()
    assert site.process.wait(30) == 0
    assert time.monotonic() - began < 20
    assert not list(site.temporary.glob("*gradio*")) + list(site.temporary.glob("foveate*"))
    assert site.log.read_text() == logged
    tab.context.close()
