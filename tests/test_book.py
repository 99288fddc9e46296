"""The built book in headless Chromium: pages readable by everybody, quiet, light and complete.

`shared/browser.py` says which book and which Chromium.
"""

from __future__ import annotations

import base64
import functools
import gzip
import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from refimpl_book import modules
from shared.browser import ROOT, needs_book

pytestmark = needs_book

BUDGET_PAGE = 1_000_000  # bytes of a page, gzipped, before figures
BUDGET_FIGURES = 600_000  # bytes of its figures
ALT_LENGTH = range(40, 251)
SHIFT = 0.1
COLOUR_RULES = ["color-contrast", "link-in-text-block"]  # all that a theme can change
NARROW_RULES = [  # what a narrow screen can change: what is shown, what scrolls, what is named
    *COLOUR_RULES,
    *("aria-hidden-focus", "button-name", "empty-table-header", "image-alt", "label"),
    *("label-content-name-mismatch", "landmark-unique", "link-name", "nested-interactive"),
    *("region", "scrollable-region-focusable", "select-name"),
]


def pages() -> list[str]:
    """Every page of the book, from the table of contents, before anything is built."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    found = [toc["root"]]

    def walk(node):
        if isinstance(node, list):
            for item in node:
                walk(item)
        elif isinstance(node, dict):
            if "file" in node:
                found.append(node["file"])
            for key in ("parts", "chapters", "sections"):
                walk(node.get(key))

    walk(toc["parts"])
    return [*found, *map(api_page, largest_modules()), "search", "genindex"]


def api_page(module: str) -> str:
    return f"book/api/{module}"


def largest_modules() -> list[str]:
    """A sample of the reference: of each room the module with the longest source."""

    def length(name: str) -> int:
        path = ROOT / Path(*name.split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        return file.stat().st_size

    return [max(names, key=length) for names in modules.rooms().values()]


PAGES = pages()
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]


@pytest.fixture(
    scope="module",
    params=[pytest.param(page, marks=pytest.mark.xdist_group(page)) for page in CHAPTERS],
)
def chapter(request) -> str:
    """Each chapter's page: its tests run one after the other, on one worker, in one window."""
    return request.param


def shows_explorer(page: str) -> bool:
    """Whether a stored chapter shows an attention explorer."""
    return "attention-explorer" in (ROOT / f"{page}.ipynb").read_text(encoding="utf-8")


@functools.cache
def weight(path: Path) -> int:
    """Bytes on the wire: texts gzipped, the rest as it is."""
    data = path.read_bytes()
    return (
        len(gzip.compress(data, 6))
        if path.suffix in (".html", ".css", ".js", ".svg", ".json")
        else len(data)
    )


def weights(root: Path, page: str, base: str, requests: list[dict]) -> tuple[int, int]:
    """(page before figures, figures) in bytes.

    Every figure of the page counts, also those that load only when scrolled to. Pictures inside
    the page (`data:`) count as part of it.
    """
    text = (root / f"{page}.html").read_text(encoding="utf-8")
    figures = {
        (root / page).parent / src
        for src in re.findall(r'<img[^>]* src="([^":]+)"', text)
        if "/_static/" not in src
    }
    files = {root / r["url"].removeprefix(base).split("?")[0].split("#")[0] for r in requests}
    return sum(weight(f) for f in files if f.parent.name != "_images"), sum(
        map(weight, {f.resolve() for f in figures})
    )


@pytest.mark.parametrize("module", modules.modules())
def test_every_module_has_its_page(book, module):
    text = (book / f"{api_page(module)}.html").read_text(encoding="utf-8")
    assert f'id="module-{module}"' in text


@pytest.mark.parametrize("page", PAGES)
def test_page(browser, book, page):
    """One page at 1280 and 390 pixels, light and dark: scrolled through, then looked at."""
    assert (book / f"{page}.html").exists(), f"{page}.html was not built"
    for width in (1280, 390):
        browser.size(width)
        requests = browser.open(page)
        assert browser.scroll_through() < SHIFT, f"the layout shifts at {width} pixels"
        check_requests(browser, requests)
        text, figures = weights(book, page, browser.base, requests)
        assert text <= BUDGET_PAGE, f"{text:,} bytes gzipped before figures"
        assert figures <= BUDGET_FIGURES, f"{figures:,} bytes of figures"
        if width == 390:
            check_narrow(browser)
        check_boxes(browser)
        check_look(browser)
        browser.thin()
        browser.theme("light")
        assert browser.axe(NARROW_RULES if width == 390 else None) == []
        browser.theme("dark")
        assert browser.axe(COLOUR_RULES) == []


def check_requests(browser, requests: list[dict]) -> None:
    """Everything that was asked for came from here, and the console is empty."""
    foreign = [r["url"] for r in requests if not r["url"].startswith(browser.base)]
    assert not foreign, f"asks somebody else: {foreign}"
    missing = [
        r["url"]
        for r in requests
        if r.get("status", 200) >= 400 and not r["url"].endswith("/favicon.ico")
    ]
    assert not missing, f"not found: {missing}"
    assert browser.errors() == []


def check_narrow(browser) -> None:
    """No phone scrolls sideways, and no figure is smaller than its text allows."""
    for size in (320, 360, 390):
        browser.size(size)
        assert browser.run("return document.documentElement.scrollWidth") <= size, (
            f"scrolls sideways at {size} pixels: {widest(browser, size)}"
        )
    small = browser.run(
        """const least = (image) =>
             parseFloat(getComputedStyle(image).getPropertyValue('--least') || 0);
           return [...document.querySelectorAll('article img')]
             .filter((image) => image.checkVisibility()
               && !image.closest('.chapter-card, .chapter-lead'))
             .filter((image) => image.getBoundingClientRect().width < least(image) - 1)
             .map((image) => image.getAttribute('src'))"""
    )
    assert small == [], "text of less than 11 pixels"
    squeezed = browser.run(
        """return [...document.querySelectorAll('article img')]
             .filter((image) => image.checkVisibility() && image.naturalHeight
               && getComputedStyle(image).objectFit !== 'contain')
             .filter((image) => {
               const box = image.getBoundingClientRect();
               const drawn = image.naturalWidth / image.naturalHeight;
               return Math.abs(box.width / box.height / drawn - 1) > 0.03;
             }).map((image) => image.getAttribute('src'))"""
    )
    assert squeezed == [], "pictures of another shape than they were drawn"
    apart = browser.run(
        """return [...document.querySelectorAll('article table.numeric, article table.numbers')]
             .filter((table) => table.checkVisibility() && table.tHead && table.tBodies[0].rows[0])
             .filter((table) => {
               const [head, body] = [table.tHead.rows[0], table.tBodies[0].rows[0]].map((row) =>
                 [...row.cells].map((cell) => Math.round(cell.getBoundingClientRect().right)));
               return head.some((right, i) => Math.abs(right - body[i]) > 1);
             }).map((table) => table.textContent.trim().slice(0, 60))"""
    )
    assert apart == [], "numbers do not stand below their headings"


def check_boxes(browser) -> None:
    """Every box that scrolls can be reached and has a name; no output offers to copy itself."""
    nameless = browser.run(
        """const scrolls = (e) => e.scrollWidth > e.clientWidth + 1
             && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
           return [...document.querySelectorAll('article *')].filter((e) => scrolls(e)
             && e.checkVisibility() && !e.matches('input, select, textarea')
             && !(e.tabIndex >= 0 && e.getAttribute('aria-label'))
             && !e.querySelector('a[href], button, input, [tabindex="0"]'))
             .map((e) => e.outerHTML.slice(0, 160))"""
    )
    assert nameless == [], "a box that scrolls has no name"
    copied = browser.run(
        """return [...document.querySelectorAll('button.copybtn')]
             .filter((b) => !b.closest('.cell_input') || b.closest('.cell_output'))
             .map((b) => b.parentElement.outerHTML.slice(0, 160))"""
    )
    assert copied == [], "an output has a copy button"


def check_look(browser) -> None:
    """Figures without the theme's card and filter, every picture described, every formula set."""
    browser.theme("dark")
    dressed = browser.run(
        """const pictures = 'article .cell_output img, article .gallery img';
           return [...document.querySelectorAll(pictures)].filter((image) => {
             const style = getComputedStyle(image);
             return style.filter !== 'none' || style.backgroundColor !== 'rgba(0, 0, 0, 0)';
           }).map((image) => image.outerHTML.slice(0, 200))"""
    )
    assert dressed == [], "the theme's card or filter is back"
    assert browser.run("return document.querySelectorAll('.katex-error').length") == 0
    check_images(browser)


def widest(browser, width: int) -> str:
    return browser.run(
        """const wide = (e) => e.getBoundingClientRect().right > arguments[0] + 1;
           return [...document.querySelectorAll('main *')].filter(wide).slice(0, 3)
             .map((e) => e.outerHTML.slice(0, 120)).join(' | ')""",
        width,
    )


def check_images(browser) -> None:
    images = browser.run(
        """return [...document.querySelectorAll('article img')].map(
             (i) => [i.getAttribute('alt') || '', i.getAttribute('src').slice(0, 80)])"""
    )
    for alt, source in images:
        assert (
            len(alt) in ALT_LENGTH
            and not alt.startswith(("_images/", "<Figure"))
            and "/" not in alt.split()[0]
        ), f"{source}: alternative text {alt!r}"
    assert len({alt for alt, _ in images}) == len(images), (
        "two images with the same alternative text"
    )


def test_checks_can_fail(browser):
    """What is wrong on a page is found: each kind of fault, planted."""
    browser.size(390)
    browser.open("book/check")
    browser.run(
        """document.querySelector('article').insertAdjacentHTML('afterbegin',
             `<p style="color:#999;background:#aaa">grey on grey</p><button></button>
             <div style="width:600px">wide</div><img src="../_static/logo.svg" alt="logo">
             <div style="width:50px;overflow-x:auto"><p style="width:99px">box</p></div>`);
           new Image().src = 'http://nobody.invalid/pixel.png'"""
    )
    found = " ".join(browser.axe())
    assert "color-contrast" in found and "button-name" in found
    assert browser.run("return document.documentElement.scrollWidth") > 390 and "wide" in widest(
        browser, 390
    )
    with pytest.raises(AssertionError, match="alternative text"):
        check_images(browser)
    with pytest.raises(AssertionError, match="has no name"):
        check_boxes(browser)
    assert any("nobody.invalid" in error for error in browser.errors())


def test_chapter_has_its_buttons(browser, chapter):
    """Download always; Colab and source where the repository has an address, else nowhere."""
    from refimpl_book import sources

    browser.at(chapter)
    stem = chapter.removeprefix("notebooks/")
    links = browser.run(
        "return [...document.querySelectorAll('.header-article-items a, .facts-box a')]"
        ".map((a) => a.href)"
    )
    assert any(url.endswith(f"/_sources/notebooks/{stem}.ipynb") for url in links), links
    assert browser.run("return document.querySelectorAll('button.copybtn').length") > 5
    assert any(f"refimpl.papers.{stem}" in url for url in links)
    colab = rf"https://colab\.research\.google\.com/github/.+/notebooks/{stem}\.ipynb"
    source = rf"https://github\.com/[\w.-]+/[\w.-]+/.*{stem}"
    for pattern in (colab, source):
        found = [url for url in links if re.fullmatch(pattern, url) or re.match(pattern, url)]
        own = [url for url in found if sources.repository().split("github.com/")[1] in url]
        assert bool(own) != sources.placeholder(), (pattern, links)


def test_attention_explorers_answer(browser, chapter):
    """Pointer and arrow keys change what an attention explorer says."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    if not shows_explorer(chapter):
        pytest.skip("shows none")
    browser.at(chapter)
    pads = browser.driver.find_elements("css selector", ".attention-explorer .ax-pad")
    assert pads
    for i, pad in enumerate(pads):
        said = (
            f"return document.querySelectorAll('.attention-explorer .ax-summary')[{i}].textContent"
        )
        browser.run("arguments[0].scrollIntoView({block: 'center'})", pad)
        before = browser.run(said)
        ActionChains(browser.driver).move_to_element_with_offset(pad, -60, -60).perform()
        hovered = browser.run(said)
        pad.find_element("xpath", "self::*[@tabindex] | .//*[@tabindex]").send_keys(
            Keys.ARROW_RIGHT, Keys.ARROW_DOWN
        )
        assert before != hovered != browser.run(said)


def test_search_finds_every_chapter(browser):
    if not CHAPTERS:
        pytest.skip("no chapter is written yet")
    browser.size(1280)
    browser.open("search")
    for page in CHAPTERS:
        found = browser.run(
            """return Search._performSearch(...Search._parseQuery(arguments[0]))
                 .map(([page]) => page)""",
            page.removeprefix("notebooks/"),
        )
        assert page in found, f"search does not find {page}"


@pytest.fixture
def explorer(browser):
    results = ROOT / "book" / "results" / "cpu"
    if not any(results.glob("*.json")) and "REFIMPL_BOOK" not in os.environ:
        pytest.skip("nothing is measured yet: make bench")
    browser.size(1280)
    browser.open("book/speed")
    return browser


def column(browser, name: str) -> list[str]:
    return browser.run(
        """const table = document.querySelector('table.explorer');
           const heads = [...table.tHead.rows[0].cells];
           const i = heads.findIndex((c) => c.textContent.startsWith(arguments[0]));
           const value = (cell) => cell.dataset.value ?? cell.textContent.trim();
           return [...table.tBodies[0].rows].filter((r) => !r.hidden)
             .map((r) => value(r.cells[i]))""",
        name,
    )


def test_speeds_sort_by_keyboard(explorer):
    from selenium.webdriver.common.keys import Keys

    button = explorer.driver.find_element(
        "xpath", "//table[contains(@class,'explorer')]//th/button[text()='Time, measured here']"
    )
    # The preset begins with the fastest first.
    for key, state, reverse in ((Keys.ENTER, "descending", True), (Keys.SPACE, "ascending", False)):
        button.send_keys(key)
        sorted_by = "table.explorer th[aria-sort]:not([aria-sort=none])"
        head = explorer.driver.find_element("css selector", sorted_by)
        assert head.get_attribute("aria-sort") == state
        values = [float(v) for v in column(explorer, "Time, measured here")]
        assert values == sorted(values, reverse=reverse) and len(set(values)) > 1
    assert explorer.axe() == []


def test_speeds_show_one_row_per_model_until_asked(explorer):
    names = column(explorer, "Model")
    assert len(names) == len(set(names)) > 1
    buttons = explorer.driver.find_elements("css selector", ".explorer-presets button")
    buttons[-1].click()  # all measurements
    assert len(column(explorer, "Model")) > len(names)
    assert buttons[-1].get_attribute("aria-pressed") == "true"


def test_speeds_say_when_nothing_fits(explorer):
    explorer.driver.find_element("css selector", ".explorer-controls input[type=search]").send_keys(
        "nosuchmodel"
    )
    empty = explorer.driver.find_element("css selector", ".explorer-box .not-yet")
    assert empty.is_displayed() and column(explorer, "Model") == []
    empty.find_element("css selector", "button").click()
    assert not empty.is_displayed() and column(explorer, "Model")


def test_which_model_answers_a_budget(browser):
    browser.size(1280)
    browser.open("book/which", "?budget=0.5&unit=time")
    cards = browser.run(
        "return [...document.querySelectorAll('.which-list > ol > li')].map((li) => li.textContent)"
    )
    assert 2 <= len(cards) <= 3
    times = [float(re.search(r"([\d.]+) × DeiT-Tiny", card)[1]) for card in cards]
    assert all(time <= 0.5 for time in times)
    assert all("published by its authors" in card and "Licence" in card for card in cards)
    browser.open("book/which", "?budget=0.01&unit=time")
    assert "Nothing that was measured fits" in browser.run(
        "return document.querySelector('.which-list').textContent"
    )


def test_speeds_filter_select_and_remember(explorer):
    field = explorer.driver.find_element("css selector", ".explorer-controls input[type=search]")
    first = column(explorer, "Model")[0]
    field.send_keys(first)
    assert len(column(explorer, "Model")) >= 1 and all(
        first in name for name in column(explorer, "Model")
    )
    tick = explorer.driver.find_element(
        "css selector", "table.explorer tbody tr:not([hidden]) input"
    )
    tick.click()
    only = explorer.driver.find_element("css selector", ".explorer-controls label.tick input")
    only.click()
    assert len(column(explorer, "Model")) == 1
    address = explorer.run("return location.hash")
    explorer.open("book/speed", address)
    assert column(explorer, "Model") == [first]
    assert explorer.run(
        "return document.querySelector('table.explorer tbody tr:not([hidden]) input').checked"
    )


def test_speeds_download(explorer):
    explorer.run(
        """window.saved = []; HTMLAnchorElement.prototype.click = () => {};
           URL.createObjectURL = (blob) => {
             blob.text().then((text) => saved.push(text));
             return '#';
           }"""
    )
    for text in ("CSV", "JSON"):
        explorer.driver.find_element(
            "xpath", f"//div[contains(@class,'explorer-controls')]//button[text()='{text}']"
        ).click()
    csv, data = explorer.driver.execute_async_script(
        """const done = arguments[0];
           const wait = () => saved.length < 2 ? setTimeout(wait, 20) : done(saved);
           wait();"""
    )
    rows = json.loads(data)["models"]
    assert (
        explorer.run("return document.querySelector('.explorer-box').dataset.name") == "cpu"
    )  # the file's name, and the address's
    assert len(csv.strip().splitlines()) == len(rows) + 1 == len(column(explorer, "Model")) + 1
    assert csv.startswith("name,") and rows[0]["seconds"] > 0


def test_chart_of_speeds_answers_pointer_and_keys(explorer):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def status() -> str:
        return explorer.run("return document.querySelector('.explorer-status').textContent")

    svg = explorer.driver.find_element("css selector", ".explorer-chart svg")
    svg.send_keys(Keys.ARROW_RIGHT)
    one = status()
    svg.send_keys(Keys.ARROW_RIGHT)
    assert " ms here," in one and " ms here," in status() and status() != one
    assert (
        explorer.run("return document.querySelectorAll('.explorer-chart .point.pointed').length")
        == 1
    )
    circle = explorer.driver.find_elements("css selector", ".explorer-chart circle[data-i]")[-1]
    ActionChains(explorer.driver).move_to_element(circle).perform()
    assert (
        status() != one
        and explorer.run("return document.querySelectorAll('table.explorer tr.pointed').length")
        == 1
    )
    svg = explorer.driver.find_element("css selector", ".explorer-chart svg")
    svg.send_keys(Keys.ARROW_LEFT, Keys.ENTER)
    assert explorer.run("return document.querySelectorAll('table.explorer tr.picked').length") == 1


def test_every_model_is_in_the_table_or_named_beside_it(explorer):
    import refimpl

    text = explorer.run("return document.querySelector('article').textContent")
    assert [m for m in refimpl.list_models() if m not in text] == []


@pytest.mark.parametrize("page", ["book/attention_atlas", "book/artifact_atlas"])
def test_atlases_sort_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    browser.size(1280)
    browser.open(page)
    buttons = browser.driver.find_elements("css selector", "table.sortable thead button")
    if not buttons:
        pytest.skip("no chapter has left a row yet")
    numbers = """
        const raw = (cell) => cell.dataset.value ?? cell.textContent;
        const value = (row) => raw(row.cells[1]) === '–' ? NaN : Number(raw(row.cells[1]));
        return [...document.querySelectorAll('table.sortable tbody tr')].map(value);
    """
    for key, state, reverse in ((Keys.ENTER, "ascending", False), (Keys.SPACE, "descending", True)):
        buttons[1].send_keys(key)
        assert (
            browser.run(
                "return document.querySelectorAll('table.sortable th')[1].getAttribute('aria-sort')"
            )
            == state
        )
        values = browser.run(numbers)
        assert values == sorted(values, reverse=reverse)
    assert browser.axe() == []


def test_ledger_is_scanned_filtered_and_linked(browser):
    browser.size(1280)
    browser.open("book/ledger")
    papers = browser.run("return document.querySelectorAll('.matrix tbody tr').length")
    screens = browser.run("return document.documentElement.scrollHeight") / 900
    assert screens <= 6 * max(1, papers / 7)
    lost = browser.run(
        """return [...document.querySelectorAll('.matrix a')]
             .filter((a) => !document.getElementById(a.hash.slice(1))).map((a) => a.hash)"""
    )
    assert lost == []
    shown = """return [...document.querySelectorAll('.claim.item')]
                 .filter((claim) => claim.checkVisibility()).map((claim) => claim.dataset)"""
    everything = browser.run(shown)
    browser.run(
        """const select = document.querySelector('select[name=order]');
           select.value = 'contradicts';
           select.dispatchEvent(new Event('change'))"""
    )
    ordered = [claim["verdict"] for claim in browser.run(shown)]
    first = ordered.count("contradicts")
    assert len(ordered) == len(everything) and set(ordered[:first]) <= {"contradicts"}
    assert browser.run("return location.search") == "?order=contradicts"
    chosen = everything[0]
    browser.open("book/ledger", f"?verdict={chosen['verdict']}&paper={chosen['paper']}")
    found = browser.run(shown)
    assert found and all(
        (claim["verdict"], claim["paper"]) == (chosen["verdict"], chosen["paper"])
        for claim in found
    )
    anchor = browser.run("return document.querySelectorAll('.claim.item')[3].id")
    assert re.fullmatch(r"\w+\.\d+", anchor)
    browser.open("book/ledger", f"#{anchor}")
    place = "return document.getElementById(arguments[0]).getBoundingClientRect().top"
    assert 0 <= browser.run(place, anchor) <= 900


def test_kernels_begin_with_an_overview(browser):
    """Every operation has its row and leads to its section: equations, heart, the rest folded."""
    from refimpl_book import sources

    browser.size(1280)
    browser.open("book/kernels")
    rows = browser.run(
        """return [...document.querySelectorAll('.kernels-table tbody tr')].map((row) => {
             const section = document.querySelector(row.querySelector('th a').hash);
             return [row.cells.length, section.querySelectorAll('.equations .katex').length,
               section.querySelectorAll('details[open]').length,
               section.querySelectorAll('.sd-tab-content').length];
           })"""
    )
    assert len(rows) == len(sources.operations())
    assert all(
        cells == 8 and equations and not opened and forms == 4
        for cells, equations, opened, forms in rows
    )


@pytest.mark.parametrize("page", ["book/attention_atlas", "book/artifact_atlas"])
def test_atlases_show_pictures_before_numbers(browser, page):
    browser.size(1280)
    browser.open(page)
    order = browser.run(
        """return [...document.querySelectorAll('article figure.atlas-row, article table')]
             .filter((element) => element.checkVisibility()).map((element) => element.tagName)"""
    )
    if not order:
        pytest.skip("no chapter has left a row yet")
    assert order == sorted(order), "figures, then the table"
    assert not browser.run("return document.querySelector('article details').open")


def test_one_cursor_asks_both_models(browser):
    from selenium.webdriver.common.keys import Keys

    browser.size(1280)
    browser.open("book/attention_atlas")
    pads = browser.driver.find_elements("css selector", ".compare-pad")
    if not pads:
        pytest.skip("no stored row holds its maps yet")
    marks = """return [...document.querySelectorAll('.compare-mark')]
                 .map((mark) => [mark.style.left, mark.style.top].join(' '))"""
    looks = """return [...document.querySelectorAll('.compare-side')].map((side) =>
                 [...side.querySelectorAll('canvas')].map((c) => c.toDataURL()).join(''))"""
    before, seen = browser.run(marks), browser.run(looks)
    assert len(before) == 2 and all(seen)
    pads[0].send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    after, now = browser.run(marks), browser.run(looks)
    assert all(a != b for a, b in zip(before, after, strict=True)), "both marks moved"
    assert seen != now, "models were asked again; one whose maps are flat looks the same"


@pytest.mark.parametrize("page", [page for page in PAGES if "/" in page])
def test_a_page_leads_somewhere(book, page):
    """A link in the body, besides those of the headings."""
    text = (book / f"{page}.html").read_text(encoding="utf-8")
    article = re.search(r"<article\b.*?</article>", text, re.S)[0]
    links = re.findall(r"<a\b[^>]*>", article)
    assert [link for link in links if "headerlink" not in link and "href" in link]


def test_no_page_is_an_orphan(book):
    """Every local link and every picture leads to a file of the book."""
    lost = []
    for file in book.rglob("*.html"):
        if "_static" in file.parts or "_sources" in file.parts:
            continue
        for url in re.findall(r'(?:href|src)="([^"]+)"', file.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:|//|#", url) or "${" in url:
                continue
            path = (file.parent / url.split("#")[0].split("?")[0]).resolve()
            if not path.exists():
                lost.append(f"{file.relative_to(book)}: {url}")
    assert lost == []


def test_mathematics_is_set(book):
    """KaTeX ran at build time, with MathML for screen readers; script and style sheet agree."""
    text = (book / "book" / "check.html").read_text(encoding="utf-8")
    assert (
        text.count('class="katex"') >= 5
        and "<math" in text
        and "\\mathcal" not in re.sub(r"<annotation.*?</annotation>", "", text)
    )
    script = (
        Path(importlib.util.find_spec("sphinxcontrib.katex").origin)
        .with_name("katex.min.js")
        .read_text(encoding="utf-8")
    )
    version = re.search(r'version:"([\d.]+)"', script)[1]
    assert f'content:"{version}"' in (book / "_static" / "katex" / "katex.min.css").read_text(
        encoding="utf-8"
    )


# -- a chapter read: head first, story or all code, cards, print, no script

TAB_STOPS = 90
PRINTED = {"notebooks/efficientvit": 15}  # pages of the story
WIDE = 84  # columns of a cell that the page promises to show whole


def top_of(browser, selector: str) -> float:
    return browser.run(
        "return document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY",
        selector,
    )


def test_question_comes_before_code(browser, chapter):
    """Title, picture, summary and facts, then the question; the set-up is one line."""
    browser.at(chapter)
    assert top_of(browser, ".chapter-head") < top_of(browser, "#the-question") <= 1350
    assert not browser.run("return document.querySelector('details.set-up').open")
    seen = browser.run(
        """const question = document.querySelector('#the-question').getBoundingClientRect().top;
           return [...document.querySelectorAll('.cell_input')].filter((cell) =>
             cell.checkVisibility() && cell.getBoundingClientRect().top < question).length"""
    )
    assert seen == 0, "code stands before the question"
    facts = browser.run("return document.querySelector('.facts-box').textContent")
    assert all(label in facts for label in ("Paper", "Official code", "Certificate", "Download"))


def test_code_is_not_cut_and_tab_stops_are_few(browser, chapter):
    browser.at(chapter)
    cut = browser.run(
        """return [...document.querySelectorAll('.cell_input pre')].filter((pre) =>
             pre.checkVisibility() && pre.scrollWidth > pre.clientWidth + 1
             && Math.max(...pre.textContent.split('\\n').map((line) => line.length)) <= arguments[0]
           ).map((pre) => pre.textContent.slice(0, 80))""",
        WIDE,
    )
    assert cut == []
    # A cell wider than that scrolls and so is a stop: its chapter has to be mended, not the page.
    stops = browser.run(
        """const wide = (e) => e.matches('.cell_input pre')
             && Math.max(...e.textContent.split('\\n').map((line) => line.length)) > arguments[0];
           return [...document.querySelectorAll('a[href],button,input,select,summary,[tabindex]')]
             .filter((e) => e.tabIndex >= 0 && !e.disabled && !wide(e)
               && e.checkVisibility({visibilityProperty: true})).length""",
        WIDE,
    )
    assert stops <= TAB_STOPS


def test_a_term_opens_its_card_and_escape_closes_it(browser, chapter):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.at(chapter)
    term = browser.driver.find_element("css selector", "a.term")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", term)
    ActionChains(browser.driver).move_to_element(term).pause(0.5).perform()
    card = browser.driver.find_element("css selector", ".card-of-term")
    assert card.is_displayed() and len(card.text) > 20
    assert term.get_attribute("aria-describedby") == "card"
    browser.driver.find_element("css selector", "body").send_keys(Keys.ESCAPE)
    assert not card.is_displayed()


def test_story_folds_code_and_is_remembered(browser, chapter):
    shown = """return [...document.querySelectorAll('.cell_input')]
                 .filter((cell) => cell.checkVisibility()).length"""
    browser.at(chapter)
    full = browser.run(shown)
    assert full >= 4, "the heart and three exercises"
    browser.driver.find_element("css selector", ".reading [data-view=story]").click()
    assert browser.run(shown) == 0
    browser.open(chapter)
    assert browser.run(shown) == 0, "the choice was forgotten"
    fold = browser.driver.find_element("css selector", "button.unfold")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", fold)
    fold.click()
    assert fold.get_attribute("aria-expanded") == "true" and browser.run(shown) > 0
    browser.run("scrollTo({top: 0, behavior: 'instant'})")
    browser.driver.find_element("css selector", ".reading [data-view=full]").click()
    assert browser.run(shown) >= full, "with what was unfolded"
    browser.open(chapter, "?view=story")
    assert browser.run(shown) == 0
    browser.run("localStorage.removeItem('view')")


def test_story_prints_on_few_pages(browser, chapter):
    if chapter not in PRINTED:
        pytest.skip("has no limit of its own")
    browser.at(chapter, "?view=story")
    made = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    pages = len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(made["data"])))
    assert pages <= PRINTED[chapter]


def test_without_a_script_everything_is_there(browser, chapter):
    """Full text, tables, a still of what moves; no switch that would do nothing."""
    browser.size(1280)
    with browser.without_script(chapter):
        find = browser.driver.find_elements
        assert any(cell.is_displayed() for cell in find("css selector", ".cell_input"))
        assert not any(e.is_displayed() for e in find("css selector", ".reading, button.unfold"))
        assert any(e.is_displayed() for e in find("css selector", "figure.chapter-figure"))
        for explorer in find("css selector", ".attention-explorer"):
            assert explorer.find_element("css selector", ".ax-heads img").is_displayed()
