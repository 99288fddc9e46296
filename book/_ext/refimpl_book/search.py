"""The search page: both spellings find the same pages, chapters come first, planned papers too.

Sphinx's own index and script stay. The language of the index gets the rules of `SPELLINGS`, in
Python for the index and in JavaScript for what a reader types; `search.js` orders the results and
writes their snippets. Papers are objects of a small domain, so that a chapter is found by its
paper's title, and a planned one is a result that leads to its place on its part's page.
"""

from __future__ import annotations

import json
import re

from docutils import nodes
from sphinx.domains import Domain, ObjType
from sphinx.search.en import SearchEnglish

from refimpl_book import sources

SPELLINGS = [  # British -> American, on lower-case words; read by Python and by JavaScript
    (r"(col|neighb|tum|behavi|fav|flav|hon|lab|vap|hum|rig|arm)our", r"$1or"),
    (r"([a-z]{3})is(e|ed|es|er|ers|ing|able|ations?|ational)$", r"$1iz$2"),
    (r"([a-z]{2})ys(e|ed|es|er|ers|ing)$", r"$1yz$2"),
    (r"(cent|met|fib|lit|calib|spect)re(s|d)?$", r"$1er$2"),
    (r"(cent)r(ing)$", r"$1er$2"),
    (r"^grey", "gray"),
    (r"(mod|lab|trav|canc|lev|chann|sign|equ|tot)([ea])ll(ed|ing|er|ers)$", r"$1$2l$3"),
    (r"^(lic|def|off|pret)ence(s|d)?$", r"$1ense$2"),
    (r"^artefact", "artifact"),
    (r"^(program)me(s)?$", r"$1$2"),
    (r"^(catal|anal|dial)ogue(s)?$", r"$1og$2"),
    (r"^(judg|acknowledg)ement", r"$1ment"),
]
BRITISH = [  # back again, for names and titles, which Sphinx compares letter by letter
    (r"(col|neighb|tum|behavi|fav|flav|hon|lab|vap|hum|rig)or", r"$1our"),
    (r"([a-z]{3})iz(e|ed|es|er|ers|ing|able|ations?|ational)$", r"$1is$2"),
    (r"([a-z]{2})yz(e|ed|es|er|ers|ing)$", r"$1ys$2"),
    (r"(cent|met|fib|lit|calib|spect)er(s)?$", r"$1re$2"),
    (r"^gray", "grey"),
]
STEMMER = """
const respell = (word, [from, to]) => word.replace(new RegExp(from), to);
const spelling = (rules) => (word) => rules.reduce(respell, word);
const american = spelling(%s), british = spelling(%s);
const PlainStemmer = Stemmer;
Stemmer = function () {
  const plain = new PlainStemmer();
  this.stemWord = (word) => plain.stemWord(american(word));
};
"""
BLOCK = re.compile(
    r"(</(?:h\d|p|li|dt|dd|td|th|div|summary|option|caption|figcaption)>|<br>)(?=\S)"
)


def american(word: str) -> str:
    """A lower-case word in American spelling; some words become no word, but always the same."""
    for british, instead in SPELLINGS:
        word = re.sub(british, instead.replace("$", "\\"), word)
    return word


class English(SearchEnglish):
    """Sphinx's English, which takes both spellings for one word."""

    js_stemmer_code = SearchEnglish.js_stemmer_code + STEMMER % (
        json.dumps(SPELLINGS),
        json.dumps(BRITISH),
    )

    def stem(self, word: str) -> str:
        return super().stem(american(word.lower()))


class Papers(Domain):
    """Papers by name and title: at their chapter's question, or at their place on a part's page."""

    name = "paper"
    label = "Paper"
    object_types = {"planned": ObjType("planned paper"), "chapter": ObjType("paper")}

    def get_objects(self):
        for paper in sources.papers():
            title = f"{paper.name}: {paper.title.removeprefix(f'{paper.name}: ')}"
            kind, place, anchor = "planned", f"book/parts/{paper.part}", paper.stem
            if sources.written(paper.stem):
                kind, place, anchor = "chapter", f"notebooks/{paper.stem}", "the-question"
            yield f"paper.{paper.stem}", title, kind, place, anchor, 1

    def get_type_name(self, type, primary=False):
        return type.lname

    def merge_domaindata(self, docnames, otherdata):
        """Nothing is kept: the catalogue has it."""


def part_words(app, tree, docname):
    """Sphinx strips tags before it reads words: cells and paragraphs must not grow together."""
    for node in tree.findall(nodes.raw):
        if node.get("format") == "html" and BLOCK.search(node.astext()):
            spaced = nodes.raw("", BLOCK.sub(r"\1\n", node.astext()), format="html")
            node.replace_self(spaced)


def load_script(app, pagename, templatename, context, doctree):
    if pagename == "search":
        app.add_js_file("search.js", loading_method="defer")


def setup(app):
    app.add_search_language(English)
    app.add_domain(Papers)
    app.connect("doctree-resolved", part_words, priority=950)
    app.connect("html-page-context", load_script)
