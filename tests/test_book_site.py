"""What surrounds the book's pages: search, links, header, footer, focus, reference, no script.

In headless Chromium before the built book, like tests/test_book.py.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("jupyter_book", reason="needs the extra 'book'")
pytest.importorskip("selenium", reason="needs the extra 'test'")

from refimpl_book import modules, sources

pytestmark = pytest.mark.browser

CHAPTERS = [f"notebooks/{paper.stem}" for paper in sources.papers() if sources.written(paper.stem)]
SPECIAL = [
    "book/intro",
    "book/parts/attention",
    "book/ledger",
    "book/exactness",
    "book/speed",
    "book/which",
    "book/kernels",
    "book/attention_atlas",
    "book/artifact_atlas",
    "book/differences",
    "book/notation",
    "book/api/index",
    "book/api/refimpl.layers",
]
WALKED = ["book/intro", "book/speed", "book/kernels", *CHAPTERS[:1], "search"]
KINDS = [*SPECIAL, *CHAPTERS[:1], "search"]  # one page of each kind


# -- links


class Page(HTMLParser):
    """Anchors of a page, and what it leads to."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("id"):
            self.anchors.append(given["id"])
        self.links += [given[name] for name in ("href", "src") if given.get(name)]


@functools.cache
def crawl(book: Path) -> dict[Path, Page]:
    """Every page of the book."""
    found = {}
    for file in sorted(book.rglob("*.html")):
        if not {"_static", "_sources"} & set(file.relative_to(book).parts):
            found[file] = Page(file.read_text(encoding="utf-8"))
    return found


def broken(pages: dict[Path, Page]) -> list[str]:
    """Links inside the book whose file or anchor is not there."""
    known = {file: set(page.anchors) for file, page in pages.items()}
    lost = []
    for file, page in pages.items():
        for link in sorted(set(page.links)):
            url = urlsplit(link)
            if url.scheme or url.netloc or "${" in link:
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file
            anchor = unquote(url.fragment)
            missing = anchor and target in known and anchor not in known[target]
            if missing or not target.exists():
                lost.append(f"{file.name}: {link}")
    return lost


@pytest.mark.xdist_group("crawl")
def test_no_link_is_broken(book):
    pages = crawl(book.resolve())
    assert len(pages) > 80
    assert broken(pages) == []


@pytest.mark.xdist_group("crawl")
def test_no_anchor_stands_twice(book):
    twice = {
        file.name: [anchor for anchor, n in Counter(page.anchors).items() if n > 1]
        for file, page in crawl(book.resolve()).items()
    }
    twice.pop("search.html")  # the theme's field, in the page and in the window over it
    assert {name: anchors for name, anchors in twice.items() if anchors} == {}


def test_the_crawler_sees_a_broken_link(tmp_path):
    here = tmp_path / "a.html"
    here.write_text(
        '<p id="x"><a href="#x"></a><a href="#y"></a><img src="none.png"></p>', encoding="utf-8"
    )
    assert broken({here: Page(here.read_text(encoding="utf-8"))}) == [
        "a.html: #y",
        "a.html: none.png",
    ]


@pytest.mark.xdist_group("crawl")
@pytest.mark.parametrize("index", ["genindex", "py-modindex"])
def test_indices_lead_to_every_module(book, index):
    page = crawl(book.resolve())[book.resolve() / f"{index}.html"]
    for name in modules.modules():
        assert f"book/api/{name}.html#module-{name}" in page.links


# -- search


@pytest.fixture
def search(browser):
    """What the search page finds for a query, first to last: where it leads."""
    browser.size(1280)
    browser.open("search")

    def find(query: str) -> list[str]:
        found = """return Search._performSearch(...Search._parseQuery(arguments[0])).reverse()
                     .map(([page, , anchor]) => `${page}.html${anchor}`)"""
        return browser.run(found, query)

    return find


SPELLINGS = [
    ("neighbour", "neighbor"),
    ("neighbourhood", "neighborhood"),
    ("quantisation", "quantization"),
    ("quantised", "quantized"),
    ("normalisation", "normalization"),
    ("normalise", "normalize"),
    ("colour", "color"),
    ("tumour", "tumor"),
    ("optimised", "optimized"),
    ("optimisation", "optimization"),
    ("centre", "center"),
    ("grey", "gray"),
    ("labelled", "labeled"),
]


@pytest.mark.parametrize(("british", "american"), SPELLINGS)
def test_both_spellings_find_the_same(search, british, american):
    assert search(british) == search(american) != []


def place_of(stem: str) -> str:
    """Where a paper is read: its chapter, or as long as it has none, the part's page."""
    (paper,) = (paper for paper in sources.papers() if paper.stem == stem)
    if sources.written(stem):
        return f"notebooks/{stem}.html"
    return f"book/parts/{paper.part}.html#{stem}"


QUERIES = {  # what is typed -> what comes first
    "efficientvit": "notebooks/efficientvit.html",
    "cascaded group attention": "notebooks/efficientvit.html",
    "state space": "notebooks/efficientvim",
    "nearest neighbor": "notebooks/leanvec.html",
    "tinyvit": "notebooks/tinyvit.html",
    "hint-aug": place_of("hint_aug"),
    "Dilated Neighbourhood Attention": place_of("medvitv2"),
    "fold_neighbours": "book/api/refimpl.deploy.html#refimpl.deploy.fold_neighbours",
}


@pytest.mark.parametrize("query", QUERIES)
def test_what_is_looked_for_comes_first(search, query):
    found = search(query)
    assert found and found[0].startswith(QUERIES[query]), found[:3]


def kind_of(where: str) -> int:
    planned = any(where.endswith(f"#{paper.stem}") for paper in sources.papers())
    if where.startswith("notebooks/") or planned:
        return 0
    if where.startswith("book/api/"):
        return 3
    return 2 if where.startswith("book/notation") else 1


@pytest.mark.parametrize("query", ["attention", "quantisation", "grey", "batch norm"])
def test_chapters_come_before_pages_before_glossary_before_reference(search, query):
    kinds = list(map(kind_of, search(query)))
    assert kinds == sorted(kinds) and len(set(kinds)) >= 3


def test_planned_papers_are_found(search):
    for paper in sources.papers():
        if not sources.written(paper.stem):
            place = place_of(paper.stem)
            assert place in search(paper.name)[:3] and place in search(paper.title), paper.stem


def test_snippets_are_sentences(browser, search):
    """What is typed into the field is found, and shown with the sentence that holds it."""
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    wanted = search("neighbor")
    field = browser.driver.find_element("css selector", ".bd-search-container input")
    field.send_keys("neighbor", Keys.ENTER)
    shown = """return [...document.querySelectorAll('#search-results li')]
                 .filter((item) => item.querySelector('p.context, span'))
                 .map((item) => item.querySelector('a').getAttribute('href'))"""
    WebDriverWait(browser.driver, 15).until(lambda _: browser.run(shown) == wanted)
    texts = browser.run(
        "return [...document.querySelectorAll('#search-results p.context')].map(p => p.textContent)"
    )
    assert len(texts) > 5
    for text in texts:
        assert re.match(r"[\w“\"'(*]", text) and len(text) > 20 and "$" not in text, text
    assert browser.run("return document.querySelectorAll('p.context .highlighted').length") > 5
    assert browser.errors() == []


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_lies_on_the_search_field_s_text(browser, width):
    browser.size(width)
    browser.open("search", "?q=attention")
    over = browser.run(
        """const field = document.querySelector('.bd-search-container input');
           const box = field.getBoundingClientRect(), style = getComputedStyle(field);
           const from = box.left + parseFloat(style.paddingLeft);
           const to = box.right - parseFloat(style.paddingRight);
           const beside = [...field.form.querySelectorAll('i, kbd')].filter((e) => e !== field);
           return beside.map((e) => e.getBoundingClientRect())
             .filter((r) => r.width && r.right > from && r.left < to).length"""
    )
    assert over == 0


# -- focus


def picture(browser, around=None):
    """The window's pixels, or those of one element and 6 pixels around it."""
    from PIL import Image

    options = {}
    if around is not None:
        box = """const r = arguments[0].getBoundingClientRect();
                 return {x: Math.max(r.x - 6 + scrollX, 0), y: Math.max(r.y - 6 + scrollY, 0),
                   width: r.width + 12, height: r.height + 12, scale: 1}"""
        options["clip"] = browser.run(box, around)
    png = browser.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")


STOPS = """
const seen = new Set(arguments[0]);
const place = '[class*=sidebar], .bd-header-article, form, article, footer';
const kind = (e) =>
  [e.tagName, e.type, ...e.classList, 'in', e.closest(place)?.classList[0]].join(' ');
return [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex]')]
  .filter((e) => e.tabIndex >= 0 && !e.disabled && e.checkVisibility({visibilityProperty: true}))
  .filter((e) => !seen.has(kind(e)) && seen.add(kind(e))).map((e) => [kind(e), e]);
"""


SHOWN = """
const shown = (e) => e.matches('.sd-tab-set > input') ? e.nextElementSibling
  : e.matches('.chapter-card a') ? e.closest('.chapter-card')
  : e.matches('.has-children > details > summary') ? e.firstElementChild : e;
"""  # the element that is drawn for a control


def changed_by_focus(browser, control) -> int:
    """How many pixels of and around a control differ when the keyboard is on it."""
    from PIL import ImageChops

    browser.run(
        """document.activeElement.blur();
           arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})""",
        control,
    )
    shown = browser.run(f"{SHOWN} return shown(arguments[0])", control)
    before = picture(browser, shown)
    browser.run("arguments[0].focus({preventScroll: true, focusVisible: true})", control)
    difference = ImageChops.difference(before, picture(browser, shown)).convert("L")
    return sum(difference.histogram()[40:])


CHECKED: dict[int, set[str]] = {1280: set(), 390: set()}  # kinds of controls, once a width


@pytest.mark.parametrize("width", CHECKED)
@pytest.mark.parametrize("page", KINDS)
def test_focus_can_be_seen(browser, page, width):
    """One control of each kind, pixels before and after focus."""
    browser.size(width)
    browser.open(page)
    browser.run(  # a caret that blinks would count as a change
        "document.body.insertAdjacentHTML('beforeend', '<style>* {caret-color: #0000}</style>')"
    )
    unseen = []
    for kind, control in browser.run(STOPS, sorted(CHECKED[width])):
        CHECKED[width].add(kind)
        if changed_by_focus(browser, control) < 40:
            unseen.append(browser.run("return arguments[0].outerHTML.slice(0, 160)", control))
    assert unseen == []


def test_an_invisible_focus_is_noticed(browser):
    browser.size(1280)
    browser.open("book/check")
    browser.run(
        """document.querySelector('article').insertAdjacentHTML('afterbegin',
             '<button id="planted" style="outline: none !important">planted</button>')"""
    )
    planted = browser.driver.find_element("id", "planted")
    assert changed_by_focus(browser, planted) < 40


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", WALKED)
def test_every_tab_stop_can_be_seen(browser, page, width):
    """Walked with the Tab key: what has the focus has a size and lies in the window."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.size(width)
    browser.open(page)
    browser.run("document.activeElement.blur(); scrollTo(0, 0)")
    hidden, first = [], None
    for _ in range(200):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        html, box, inside = browser.run(
            SHOWN
            + """const e = document.activeElement, r = shown(e).getBoundingClientRect();
               return [e.outerHTML.slice(0, 160), r.width * r.height,
                 r.bottom > 0 && r.top < innerHeight && r.right > 0 && r.left < innerWidth]"""
        )
        if html.startswith("<body") or html == first:
            break
        first = first or html
        if box < 16 or not inside:
            hidden.append(html)
    assert hidden == []


# -- header, footer, what others show of a page


@pytest.mark.parametrize("page", KINDS)
def test_a_phone_s_header_leads_home(browser, page):
    browser.size(390)
    browser.open(page)
    home = browser.driver.find_element("css selector", ".bd-header-article .header-home")
    assert home.is_displayed() and home.text == "Where the time goes"
    assert (
        browser.run("return arguments[0].href", home).removesuffix("#").endswith("book/intro.html")
    )
    boxes = browser.run(
        """return [...document.querySelectorAll('.bd-header-article :is(a, button)')]
             .filter((e) => e.checkVisibility() && e.getClientRects().length)
             .map((e) => e.getBoundingClientRect()).map((r) => [r.left, r.right])"""
    )
    assert all(left >= -1 and right <= 391 for left, right in boxes)
    ordered = sorted(boxes)
    assert all(a[1] <= b[0] + 1 for a, b in zip(ordered, ordered[1:], strict=False)), ordered
    browser.size(1280)
    assert not home.is_displayed()


def test_every_page_is_described(book):
    described = Counter()
    for file in crawl(book.resolve()):
        if file.name == "index.html" and file.parent == book.resolve():
            continue  # leads on
        text = file.read_text(encoding="utf-8")
        (found,) = re.findall(r'<meta name="description" content="([^"]+)"', text)
        assert 10 < len(found) <= 300, (file.name, found)
        described[found] += 1
        social = 'property="og:image"' in text
        assert social != sources.placeholder(), file.name
    assert described.most_common(1)[0][1] <= 2


@pytest.mark.parametrize("page", ["book/intro", *CHAPTERS[:1]])
def test_footer_names_licence_citation_and_where_to_report(browser, book, page):
    browser.size(1280)
    browser.open(page)
    footer = browser.driver.find_element("css selector", ".bd-footer-content")
    assert "MIT licence" in footer.text and "How to cite" in footer.text
    licence = browser.run("return document.querySelector('.bd-footer-content a').href")
    text = (book / licence.removeprefix(browser.base)).read_text(encoding="utf-8")
    assert "Permission is hereby granted" in text
    assert ("Report a problem" in footer.text) != sources.placeholder()
    footer.find_element("css selector", "summary").click()
    assert "@software{refimpl," in footer.text


# -- tables on a phone


@pytest.mark.parametrize("page", ["book/notation", "book/exactness", "book/kernels", *CHAPTERS[:2]])
def test_tables_on_a_phone_scroll_beside_their_first_column_or_become_cards(browser, page):
    browser.size(390)
    browser.open(page)
    found = browser.run(
        """document.querySelectorAll('article details').forEach((fold) => { fold.open = true });
           const style = (e) => getComputedStyle(e);
           const tables = [...document.querySelectorAll('article :is(.numeric, .numbers, .cards)')]
             .filter((t) => t.checkVisibility() && t.tBodies?.[0]?.rows.length
               && !t.matches('.explorer, .matrix'));
           return tables.map((t) => {
             const row = t.tBodies[0].rows[0], first = row.cells[0];
             const good = t.matches('.numeric, .numbers') ? style(first).position === 'sticky'
               : ['block', 'grid'].includes(style(row).display)
                 && t.getBoundingClientRect().right <= innerWidth;
             return [good, t.outerHTML.slice(0, 200)] })"""
    )
    assert found and [html for good, html in found if not good] == []


def test_notation_is_readable_on_a_phone(browser):
    """A meaning has most of the window's width, and every cell knows its column."""
    browser.size(390)
    browser.open("book/notation")
    cells = browser.run(
        """return [...document.querySelectorAll('table.written td:nth-child(2)')]
             .map((td) => [td.getBoundingClientRect().width, td.dataset.label])"""
    )
    assert len(cells) > 40
    assert all(width > 230 and label for width, label in cells)


# -- without a script


@pytest.mark.parametrize("page", [*SPECIAL, *CHAPTERS[:1]])
def test_without_a_script_colours_tables_and_pictures_remain(browser, page):
    browser.size(1280)
    command = browser.driver.execute_cdp_cmd
    command("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.driver.get(f"{browser.base}{page}.html")
        shown = picture(browser)
    finally:
        command("Emulation.setScriptExecutionDisabled", {"value": False})
    link, text = browser.run(
        """const style = (s) => getComputedStyle(document.querySelector(s));
           return [style('article a[href]:not(.headerlink)').color, style('article').color]"""
    )
    assert link != text and link not in ("rgb(0, 0, 238)", "rgb(0, 0, 0)")
    drawn = browser.run(  # of those that the page has
        """const all = [...document.querySelectorAll('article table, article img')];
           return !all.length || all.some((e) => e.getClientRects().length)"""
    )
    assert drawn
    empty = browser.run(
        """return [...document.querySelectorAll('.attention-explorer, .explorer-box, .slider')]
             .filter((e) => !e.querySelector('img, svg, table, noscript')
               && !e.parentElement.querySelector('img, table, noscript'))
             .map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert empty == []
    assert len(shown.getcolors(1 << 24)) > 20


# -- nothing moves


@pytest.mark.parametrize("page", ["book/intro", *CHAPTERS[:1]])
def test_nothing_slides_when_the_window_crosses_a_breakpoint(browser, page):
    """The article stands still between two frames after a change of the window's width."""
    browser.size(1280)
    browser.open(page)
    for width in (1240, 1190, 1000, 950, 700, 950, 1190, 1280):
        browser.size(width)
        places = browser.driver.execute_async_script(
            """const done = arguments[0], places = [];
               const look = () => {
                 places.push(document.querySelector('article').getBoundingClientRect().left);
                 places.length < 12 ? requestAnimationFrame(look) : done(places) };
               requestAnimationFrame(() => requestAnimationFrame(look))"""
        )
        assert len(set(map(round, places))) == 1, (width, places)


# -- reference


def test_reference_names_are_whole(browser):
    """No name of a module is cut inside a word, in the index, the titles and the sidebar."""
    broken_names = """
      const lines = (e) => { const range = document.createRange(); range.selectNodeContents(e);
        return new Set([...range.getClientRects()].map((r) => Math.round(r.top))).size };
      const selector = 'th a > code, h1 code, a.module, dt.sig .sig-name';
      return [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility()
          && e.getClientRects().length && lines(e) > 1 && !e.querySelector('wbr'))
        .map((e) => e.textContent)"""
    for width in (1280, 390):
        browser.size(width)
        for page in ("book/api/index", "book/api/refimpl.layers"):
            browser.open(page)
            assert browser.run(broken_names) == []


def test_reference_lists_what_a_function_takes_and_who_uses_it(book):
    text = (book / "book" / "api" / "refimpl.layers.html").read_text(encoding="utf-8")
    assert re.search(r"<li><code>padding</code>: half the kernel", text)
    assert re.search(r'used in <a [^>]*href="../../notebooks/', text)
    room = (book / "book" / "api" / "refimpl.lab.measure.html").read_text(encoding="utf-8")
    assert "refimpl.lab.measure.timing.html#refimpl.lab.measure.timing.compare" in room


def test_the_tree_has_short_names(browser):
    browser.size(1280)
    browser.open("book/api/refimpl.lab.measure")
    names = browser.run(
        "return [...document.querySelectorAll('nav.bd-links a.module')].map((a) => a.textContent)"
    )
    assert len(names) == len(modules.modules())
    assert {"layers", "lab", "timing", "papers.convit"} <= set(names)
    assert not [name for name in names if name.startswith("refimpl.")]
