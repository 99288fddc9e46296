"""Headless Chromium for the tests: one window a worker, whatever is opened in it.

Fixtures: `window` (Selenium's driver, in its first state at every test), `book` (the folder of the
built book), `browser` (the window before a local server of the book).

The book is `book/_build/html` when that is newer than its sources, else it is built (under a lock,
once for all workers). `REFIMPL_BOOK=DIR` takes another built book, `REFIMPL_AXE=FILE` another
axe-core than the pinned one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER),
        reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
    ),
    pytest.mark.skipif(not importlib.util.find_spec("selenium"), reason="needs the extra 'test'"),
]
needs_book = [
    *needs_browser,
    pytest.mark.skipif(
        not importlib.util.find_spec("jupyter_book"), reason="needs the extra 'book'"
    ),
]


# -- the window


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """The one window of this worker."""
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("no chromium with chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture
def window(chromium):
    """Selenium's driver, as large as the window is, with a mouse and scripts, at an empty page."""
    command = chromium.execute_cdp_cmd
    command("Emulation.clearDeviceMetricsOverride", {})
    command("Emulation.setTouchEmulationEnabled", {"enabled": False})
    command("Emulation.setScriptExecutionDisabled", {"value": False})
    chromium.get("about:blank")
    chromium.get_log("browser")
    return chromium


# -- the book


def is_fresh(index: Path) -> bool:
    places = [
        ROOT / "_config.yml",
        *(ROOT / "book").rglob("*"),
        *(ROOT / "notebooks").glob("*.ipynb"),
        *(ROOT / "refimpl").rglob("*.py"),
    ]
    sources = [
        p
        for p in places
        if p.is_file() and "_build" not in p.parts and "__pycache__" not in p.parts
    ]
    return index.exists() and index.stat().st_mtime >= max(p.stat().st_mtime for p in sources)


@pytest.fixture(scope="session")
def book() -> Path:
    """The folder of the built book."""
    if given := os.environ.get("REFIMPL_BOOK"):
        return Path(given)
    from filelock import FileLock

    html = ROOT / "book" / "_build" / "html"
    html.mkdir(parents=True, exist_ok=True)
    with FileLock(html.parent / "tests.lock"):
        if not is_fresh(html / "index.html"):
            done = subprocess.run(
                [sys.executable, "book/tools/build.py"],
                cwd=ROOT,
                capture_output=True,
                encoding="utf-8",
            )
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return html


WATCH_SHIFT = """window.shift = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({type: 'layout-shift', buffered: true})"""


class Browser:
    """The window before a local server of the book."""

    def __init__(self, driver, root: Path):
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

        self.root = root
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.base = f"http://127.0.0.1:{self.server.server_port}/"
        self.driver = driver
        self.run = driver.execute_script
        self.opened = None  # page and address, as long as the page is as it was loaded
        # no colour halfway between two themes
        still = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": still})
        remember = "localStorage.setItem('mode', 'light'); localStorage.setItem('theme', 'light')"
        driver.execute_cdp_cmd(
            "Page.addScriptToEvaluateOnNewDocument", {"source": f"try {{ {remember} }} catch {{}}"}
        )
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH_SHIFT})

    def size(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, page: str, address: str = "") -> list[dict]:
        """Load a page afresh; the requests it made: url, status, whether it failed."""
        self.driver.get("about:blank")
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(f"{self.base}{page}.html{address}")
        self.opened = (page, address)
        requests = {}
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                requests[message["params"]["requestId"]] = {
                    "url": message["params"]["request"]["url"]
                }
            elif (
                message["method"] == "Network.responseReceived"
                and message["params"]["requestId"] in requests
            ):
                requests[message["params"]["requestId"]]["status"] = message["params"]["response"][
                    "status"
                ]
        return [
            r for r in requests.values() if not r["url"].startswith(("data:", "blob:", "about:"))
        ]

    def at(self, page: str, address: str = "") -> None:
        """Be at the top of a page, light, on a wide screen; it is loaded only where it is not open.

        What a test leaves open or chosen there stays; `open` begins anew.
        """
        self.size(1280)
        if self.opened != (page, address):
            self.open(page, address)
        self.theme("light")
        self.run("scrollTo({top: 0, behavior: 'instant'})")

    @contextmanager
    def without_script(self, page: str) -> Iterator[None]:
        """A page as it is where scripts are off."""
        self.opened = None
        switch = partial(self.driver.execute_cdp_cmd, "Emulation.setScriptExecutionDisabled")
        switch({"value": True})
        try:
            self.driver.get(f"{self.base}{page}.html")
            yield
        finally:
            switch({"value": False})

    def theme(self, name: str) -> None:
        self.run(
            "const root = document.documentElement.dataset; root.theme = root.mode = arguments[0]",
            name,
        )

    def errors(self) -> list[str]:
        return [
            e["message"]
            for e in self.driver.get_log("browser")
            if e["level"] in ("SEVERE", "WARNING")
        ]

    def scroll_through(self) -> float:
        """From top to bottom and back; how far the layout shifted since the page was asked for."""
        return self.driver.execute_async_script(
            """const done = arguments[0];
               let y = 0;
               const step = () => {
                 scrollTo({top: y += 800, behavior: 'instant'});
                 if (y < document.documentElement.scrollHeight) return requestAnimationFrame(step);
                 setTimeout(() => { scrollTo({top: 0, behavior: 'instant'}); done(shift); }, 100);
               };
               step()"""
        )

    def thin(self) -> None:
        """Keep three of each kind of code token, formula, icon and entry of the sidebar.

        Equal class, equal roles: axe needs time for every element.
        """
        self.opened = None
        self.run(
            """const seen = {}, often = (key) => (seen[key] = (seen[key] ?? 0) + 1) > 3;
               const places = '.cell_input, .cell_output, .sd-tab-content, dt, article';
               const place = (element) => element.closest(places)?.className;
               for (const token of document.querySelectorAll('pre span'))
                 if (often(token.className + place(token)))
                   token.replaceWith(...token.childNodes);
               for (const formula of document.querySelectorAll('.katex-html'))
                 if (often(place(formula))) formula.replaceChildren();
               for (const formula of document.querySelectorAll('.katex-mathml'))
                 if (often(`mathml ${place(formula)}`)) formula.replaceChildren();
               for (const icon of document.querySelectorAll('svg[aria-hidden=true], button svg'))
                 if (often(`icon ${icon.parentElement.className}`))
                   icon.replaceChildren(...icon.querySelectorAll('title'));
               for (const entry of document.querySelectorAll('.bd-sidebar-primary li'))
                 if (often(`entry ${entry.className}`)) entry.remove();
               document.querySelectorAll('pre').forEach((pre) => pre.normalize());"""
        )

    def axe(self, rules: list[str] | None = None) -> list[str]:
        """Violations as readable lines.

        The rules of colour look at `LOOKS` elements of each look: letters and everything behind.
        """
        if not self.run("return !!window.axe"):
            self.run(axe_source())
            self.run(
                """const rules = {
                     'color-contrast': '[data-look]', 'link-in-text-block': 'a[data-look]'};
                   axe.configure({rules: Object.entries(rules).map(
                     ([id, selector]) => ({id, selector}))})"""
            )
        self.run(MARK_LOOKS, LOOKS)
        # preloading asks for style sheets at wrong addresses
        options = {"resultTypes": ["violations"], "preload": False}
        if rules:
            options["runOnly"] = {"type": "rule", "values": rules}
        else:
            options["rules"] = {"label-content-name-mismatch": {"enabled": True}}
        found = self.driver.execute_async_script(
            """const [options, done] = arguments;
               axe.run(document, options).then(
                 (result) => done(result.violations),
                 (error) => done([{id: String(error), nodes: []}]));""",
            options,
        )
        nothing = {"html": "", "failureSummary": ""}
        return [
            f"{v['id']}: {n['html'][:160]} — {' '.join(n['failureSummary'].split())[:160]}"
            for v in found
            for n in v["nodes"][:3] or [nothing]
        ]


LOOKS = 3  # elements of each look whose colours are compared: axe needs milliseconds for every one

# Marks with `data-look` the elements with text of their own, and what one types into, at most so
# many of each look: colours, size and weight of the letters, of the parent's, and what is behind.
MARK_LOOKS = """
const most = arguments[0], seen = new Map(), behind = new Map();
const clear = 'rgba(0, 0, 0, 0)';
const background = (element) => {
  if (!element) return '';
  if (!behind.has(element)) {
    const style = getComputedStyle(element);
    const own = style.backgroundColor === clear ? '' : style.backgroundColor;
    const image = style.backgroundImage === 'none' ? '' : style.backgroundImage;
    const dim = style.opacity === '1' ? '' : style.opacity;
    const opaque = own.startsWith('rgb(') && !image && !dim;
    const rest = opaque ? '' : background(element.parentElement);
    behind.set(element, [own, image, dim, rest].join('|'));
  }
  return behind.get(element);
};
const has_text = (element) =>
  [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
for (const element of document.body.querySelectorAll('*')) {
  element.removeAttribute('data-look');
  if (!has_text(element) && !element.matches('input, select, textarea')) continue;
  if (!element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const look = [element.tagName, style.color, style.fontSize, style.fontWeight, style.textShadow,
    style.textDecorationLine, style.borderBottomStyle, style.filter,
    getComputedStyle(element.parentElement).color, background(element)].join(' ');
  seen.set(look, (seen.get(look) ?? 0) + 1);
  if (seen.get(look) <= most) element.setAttribute('data-look', '');
}
"""


@cache
def axe_source() -> str:
    if given := os.environ.get("REFIMPL_AXE"):
        return Path(given).read_text(encoding="utf-8")
    package = Path(importlib.util.find_spec("selenium_axe_python").origin).parent
    return (package / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def browser(book, chromium):
    made = Browser(chromium, book)
    yield made
    made.server.shutdown()
