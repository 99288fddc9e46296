"""The theme's icons as one small font: the glyphs in use.

They are cut from the FontAwesome that the theme ships (SIL Open Font License).
"""

from __future__ import annotations

import re
from pathlib import Path

import pydata_sphinx_theme
import sphinx_book_theme
from fontTools import subset

THEMES = [
    Path(pydata_sphinx_theme.__file__).parent / "theme",
    Path(sphinx_book_theme.__file__).parent,
]
ALSO = "fa-github"  # named by the repository's provider
USED_BY = ("*.html", "*.py", "scripts/*.js", "styles/*.css")
FAMILIES = {
    "fa-solid-900.ttf": ("Font Awesome 6 Free", 900),
    "fa-brands-400.ttf": ("Font Awesome 6 Brands", 400),
}
CLASSES = """
.fa,.fas,.fa-solid,.fab,.fa-brands{-webkit-font-smoothing:antialiased;
  display:var(--fa-display,inline-block);font-style:normal;font-variant:normal;line-height:1;
  text-rendering:auto}
.fa,.fas,.fa-solid{font-family:"Font Awesome 6 Free";font-weight:900}
.fab,.fa-brands{font-family:"Font Awesome 6 Brands";font-weight:400}
.fa-lg{font-size:1.25em;line-height:.05em;vertical-align:-.075em}
:root{--fa-font-solid:normal 900 1em/1 "Font Awesome 6 Free";
  --fa-font-brands:normal 400 1em/1 "Font Awesome 6 Brands"}
"""
FONT_FACE = (
    '@font-face{{font-family:"{family}";font-style:normal;font-weight:{weight};font-display:block;'
    'src:url({file}) format("woff")}}\n'
)


def texts() -> str:
    """Everything in the two themes that can name an icon."""
    found = [
        f.read_text(encoding="utf-8", errors="ignore")
        for theme in THEMES
        for pattern in USED_BY
        for f in theme.rglob(pattern)
        if "vendor" not in f.parts
    ]
    return "\n".join([ALSO, *found])


def make(folder: Path) -> None:
    """Write `icons.css` and its fonts into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (vendor,) = THEMES[0].rglob("vendor/fontawesome/*/webfonts")
    rules = re.findall(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}', css_of(vendor))
    names = {
        name: int(code, 16)
        for selectors, code in rules
        for name in re.findall(r"\.(fa-[\w-]+):before", selectors)
    }
    text = texts()
    used = {name: names[name] for name in set(re.findall(r"fa-[\w-]+", text)) & names.keys()}
    codes = set(used.values())  # named by class, by the character itself, or by its code in CSS
    codes |= {ord(c) for c in text if 0xE000 <= ord(c) <= 0xF8FF}
    codes |= {int(c, 16) for c in re.findall(r"\\(f[0-9a-f]{3})(?![0-9a-f])", text)}
    css = CLASSES
    for file, (family, weight) in FAMILIES.items():
        target = folder / file.replace(".ttf", ".woff")
        options = subset.Options(
            flavor="woff",
            desubroutinize=True,
            notdef_outline=True,
            layout_features=[],
            name_IDs=[0, 1, 13, 14],
        )
        font = subset.load_font(vendor / file, options)
        cut = subset.Subsetter(options)
        cut.populate(unicodes=codes)
        cut.subset(font)
        subset.save_font(font, target, options)
        css += FONT_FACE.format(family=family, weight=weight, file=target.name)
    for name, code in sorted(used.items()):
        css += f'.{name}::before{{content:"\\{code:x}"}}\n'
    (folder / "icons.css").write_text(css, encoding="utf-8")


def css_of(vendor: Path) -> str:
    return (vendor.parent / "css" / "all.min.css").read_text(encoding="utf-8")


def build(app):
    folder = Path(app.doctreedir) / "static"
    if not (folder / "icons" / "icons.css").exists():
        make(folder / "icons")
    app.config.html_static_path.append(str(folder))


def setup(app):
    app.connect("builder-inited", build, priority=100)
    app.add_css_file("icons/icons.css")
