/* What every page does beyond showing: switches that are remembered, folds that open for a link, boxes that the keyboard can scroll. No dependencies. */
"use strict";

const root = document.documentElement;

/** Keep a choice for the next page; a browser that forbids it forgets. */
function remember(name, value) {
  try { localStorage.setItem(name, value); } catch { /* private windows */ }
}

function showReading() {
  const story = root.dataset.view === "story";
  for (const button of document.querySelectorAll(".reading [data-view]")) button.setAttribute("aria-pressed", String((button.dataset.view === "story") === story));
  for (const button of document.querySelectorAll(".reading [data-wrap]")) button.setAttribute("aria-pressed", String(root.dataset.wrap === "on"));
}

/** Change what is shown and keep the place: the same element stays under the same line of the window. */
function keepingPlace(change) {
  const here = [...document.querySelectorAll(".bd-article :is(h2, h3, p, figure)")].find((e) => e.getClientRects().length && e.getBoundingClientRect().bottom > 80);
  const before = here?.getBoundingClientRect().top;
  change();
  if (here?.getClientRects().length) scrollBy({ top: here.getBoundingClientRect().top - before, behavior: "instant" });
}

for (const button of document.querySelectorAll(".reading button")) {
  button.addEventListener("click", () => keepingPlace(() => {
    if (button.dataset.view) { root.dataset.view = button.dataset.view; remember("view", root.dataset.view); }
    else { root.dataset.wrap = root.dataset.wrap === "on" ? "off" : "on"; remember("wrap", root.dataset.wrap); }
    showReading();
    dispatchEvent(new Event("resize")); // boxes that no longer scroll give up the focus
  }));
}
showReading();

/** The cells that a button of the story unfolds: its neighbours, up to the next text. */
function runOf(button) {
  const run = [];
  for (let next = button.nextElementSibling; next?.classList.contains("cell"); next = next.nextElementSibling) run.push(next);
  return run;
}

function unfold(button, open) {
  button.setAttribute("aria-expanded", String(open));
  for (const cell of runOf(button)) {
    cell.classList.toggle("unfolded", open);
    for (const fold of cell.querySelectorAll(":scope > details.hide")) fold.open = open; // asked for once is enough
  }
}

for (const button of document.querySelectorAll("button.unfold")) button.addEventListener("click", () => unfold(button, button.getAttribute("aria-expanded") !== "true"));

/** A link into what a story or a fold hides opens it first. */
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  const cell = target.closest(".cell");
  for (let before = cell; before; before = before.previousElementSibling) if (before.matches("button.unfold")) { if (!target.getClientRects().length) unfold(before, true); break; }
  target.scrollIntoView();
}
addEventListener("hashchange", openTarget);
openTarget();

/** One stop for the keyboard in a crowd of small controls: arrow keys walk on, Home and End go to the ends. */
function rove(selector, inGroup = (e) => e.getClientRects().length > 0) {
  const members = () => [...document.querySelectorAll(selector)].filter(inGroup);
  const choose = (chosen) => { for (const e of document.querySelectorAll(selector)) e.tabIndex = e === chosen ? 0 : -1; };
  choose(members()[0]);
  document.addEventListener("focusin", (event) => { if (event.target.matches?.(selector)) choose(event.target); });
  document.addEventListener("keydown", (event) => {
    if (!event.target.matches?.(selector) || event.ctrlKey || event.altKey || event.metaKey) return;
    const all = members(), i = all.indexOf(event.target);
    const to = { ArrowDown: i + 1, ArrowRight: i + 1, ArrowUp: i - 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || !all[to]) return;
    event.preventDefault();
    all[to].focus();
  });
  return () => choose(members()[0]);
}

/** Cards of terms and symbols: shown while the pointer or the keyboard is on a link or on the card, put away by Escape; the first touch opens. */
class Cards {
  constructor(data) {
    this.data = JSON.parse(data.textContent);
    this.box = document.createElement("div");
    Object.assign(this.box, { id: "card", className: "card-of-term", hidden: true });
    this.box.setAttribute("role", "tooltip");
    document.querySelector(".bd-article").append(this.box);
    for (const link of document.querySelectorAll("a.term")) {
      link.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") this.later(() => this.show(link), 180); });
      link.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") this.later(() => this.hide(), 250); });
      link.addEventListener("focus", () => { if (link.matches(":focus-visible")) this.show(link); });
      link.addEventListener("blur", () => this.hide());
      link.addEventListener("click", (event) => { if (event.pointerType === "touch" && this.link !== link) { event.preventDefault(); this.show(link); } });
    }
    this.box.addEventListener("pointerenter", () => clearTimeout(this.timer));
    this.box.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") this.later(() => this.hide(), 250); });
    addEventListener("keydown", (event) => { if (event.key === "Escape") this.hide(); });
    addEventListener("pointerdown", (event) => { if (!event.target.closest(".card-of-term, a.term")) this.hide(); });
  }

  later(action, milliseconds) { clearTimeout(this.timer); this.timer = setTimeout(action, milliseconds); }

  show(link) {
    clearTimeout(this.timer);
    this.hide();
    this.link = link;
    this.box.innerHTML = `${this.data[link.dataset.card]}<a class="card-more" href="${link.href}" tabindex="-1">All notation</a>`;
    this.box.hidden = false;
    link.setAttribute("aria-describedby", "card");
    if (innerWidth < 600) return; // a sheet at the window's foot, by style
    const at = link.getClientRects()[0], width = this.box.offsetWidth, height = this.box.offsetHeight;
    const below = at.bottom + 8 + height < innerHeight || at.top < height + 60;
    this.box.style.left = `${Math.max(12, Math.min(at.left, innerWidth - width - 24))}px`;
    this.box.style.top = `${below ? at.bottom + 8 : at.top - height - 8}px`;
  }

  hide() {
    this.link?.removeAttribute("aria-describedby");
    this.link = null;
    this.box.hidden = true;
  }
}
const cards = document.getElementById("cards");
if (cards) { const shown = new Cards(cards); addEventListener("scroll", () => shown.hide(), { passive: true }); }

const SCROLLERS = "div.equations, .bd-article pre, .cell_output, .output, .pst-scrollable-table-container, .table-box, div.math, figure.chapter-figure, figure.atlas-row";

/** What a scrolling box is called. */
function nameOf(box) {
  const title = box.querySelector("caption")?.textContent ?? box.querySelector("figcaption b")?.textContent;
  if (title) return title.trim();
  return box.matches("div.math, div.equations") ? "Formula" : box.matches(".cell_input pre") ? "Code" : box.matches("pre") ? "Listing" : "Output";
}

/** Let the keyboard scroll whatever scrolls sideways, and nothing else; say what it is. */
function focusScrollers() {
  for (const box of document.querySelectorAll(SCROLLERS)) {
    const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    const style = getComputedStyle(box);
    if (scrolls && (style.overflowX !== "visible" || style.overflowY !== "visible")) {
      box.tabIndex = 0;
      if (!box.matches("figure")) box.setAttribute("role", "group");
      box.setAttribute("aria-label", `${nameOf(box)}, scrolls`);
    } else if (box.hasAttribute("aria-label") && box.tabIndex === 0) {
      for (const name of ["tabindex", "aria-label", "role"]) box.removeAttribute(name);
    }
  }
}
focusScrollers();
addEventListener("load", focusScrollers);
addEventListener("resize", focusScrollers);

/** Heads that a phone cuts off keep their words for screen readers and give no stop: the list above the table sorts. */
const narrow = matchMedia("(max-width: 46em)");
function restHeads() {
  for (const button of document.querySelectorAll("table.cards thead button")) button.tabIndex = narrow.matches ? -1 : 0;
}
narrow.addEventListener("change", restHeads);
addEventListener("load", restHeads);

const refreshers = [rove("button.unfold"), rove("button.copybtn"), rove("a.term, a.claim"), rove(".matrix a.cell"), rove("div.cell details.hide > summary")];
addEventListener("load", () => refreshers.forEach((refresh) => refresh()));
