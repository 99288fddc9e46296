/* Tables that sort, and the table of speeds as an explorer. No dependencies. */
"use strict";

/** Make an element: `make("button", {type: "button", onclick: f}, "text")`. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in element && key !== "list") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

class Explorer {
  constructor(box) {
    this.box = box;
    this.table = box.querySelector("table.explorer");
    this.data = JSON.parse(box.querySelector(".explorer-data").textContent);
    this.columns = [...this.table.tHead.rows[0].cells].map((cell) => cell.textContent);
    this.rows = [...this.table.tBodies[0].rows].map((row, i) => ({ row, record: this.data.models[i], key: keyOf(this.data.models[i]) }));
    this.state = { q: "", form: "", batch: "", sort: "", down: false, x: "macs", only: false, picked: new Set(), ...this.fromAddress() };
    this.addSortButtons();
    this.addTicks();
    this.addControls();
    this.update(false);
    addEventListener("hashchange", () => {
      Object.assign(this.state, { q: "", form: "", batch: "", sort: "", down: false, only: false, picked: new Set() }, this.fromAddress());
      this.showState();
      this.update(false);
    });
  }

  fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (!given.has("explore")) return {};
    const text = (name) => given.get(name) ?? "";
    return {
      q: text("q"), form: text("form"), batch: text("batch"), sort: text("sort"), down: text("down") === "1", only: text("only") === "1",
      ...(["macs", "params"].includes(text("x")) ? { x: text("x") } : {}),
      picked: new Set(text("pick").split(",").filter(Boolean)),
    };
  }

  toAddress() {
    const s = this.state;
    const given = new URLSearchParams({ explore: this.box.dataset.name });
    for (const name of ["q", "form", "batch", "sort"]) if (s[name]) given.set(name, s[name]);
    if (s.down) given.set("down", "1");
    if (s.only) given.set("only", "1");
    if (s.x !== "macs") given.set("x", s.x);
    if (s.picked.size) given.set("pick", [...s.picked].join(","));
    history.replaceState(null, "", `#${given}`);
  }

  addSortButtons() {
    [...this.table.tHead.rows[0].cells].forEach((cell, i) => {
      const button = make("button", { type: "button", onclick: () => this.sortBy(this.columns[i]) }, cell.textContent);
      cell.replaceChildren(button);
      cell.setAttribute("aria-sort", "none");
    });
  }

  sortBy(column) {
    this.state.down = this.state.sort === column ? !this.state.down : false;
    this.state.sort = column;
    this.showState();
    this.update();
  }

  addTicks() {
    for (const { row, record, key } of this.rows) {
      const tick = make("input", { type: "checkbox", "aria-label": `Compare ${record.name}, ${record.form}, batch ${record.batch}` });
      tick.addEventListener("change", () => {
        this.state.picked[tick.checked ? "add" : "delete"](key);
        this.update();
      });
      row.cells[0].prepend(tick);
      row.addEventListener("pointerenter", () => this.point(key, false));
    }
  }

  addControls() {
    const values = (name) => [...new Set(this.rows.map(({ record }) => String(record[name])))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const choice = (name, label, options) => {
      const select = make("select", { onchange: () => { this.state[name] = select.value; this.update(); } }, ...options.map(([value, text]) => make("option", { value }, text)));
      this[`${name}Input`] = select;
      return make("label", {}, label, select);
    };
    this.qInput = make("input", { type: "search", oninput: () => { this.state.q = this.qInput.value; this.update(); } });
    this.onlyInput = make("input", { type: "checkbox", onchange: () => { this.state.only = this.onlyInput.checked; this.update(); } });
    const direction = make("button", { type: "button", onclick: () => { this.state.down = !this.state.down; this.update(); } }, "Reverse");
    const button = (text, action) => make("button", { type: "button", onclick: action }, text);
    this.status = make("p", { className: "explorer-status", role: "status" });
    this.chart = make("div", { className: "explorer-chart" });
    this.box.prepend(
      make("div", { className: "explorer-controls", role: "group", "aria-label": "Choose what is shown" },
        make("label", {}, "Models with", this.qInput),
        choice("form", "Form", [["", "all"], ...values("form").map((v) => [v, v])]),
        choice("batch", "Batch", [["", "all"], ...values("batch").map((v) => [v, v])]),
        choice("sort", "Sort by", [["", "as measured"], ...this.columns.map((c) => [c, c])]),
        direction,
        choice("x", "Chart over", [["macs", "MACs"], ["params", "Parameters"]]),
        make("label", { className: "tick" }, this.onlyInput, "only ticked rows"),
        button("CSV", () => this.download("csv")), button("JSON", () => this.download("json")), button("Copy link", (event) => this.copyLink(event.target)),
      ),
      this.chart, this.status,
    );
    this.showState();
    let width = this.box.clientWidth;
    new ResizeObserver(() => { if (this.box.clientWidth !== width) { width = this.box.clientWidth; this.draw(); } }).observe(this.box);
  }

  showState() {
    for (const name of ["q", "form", "batch", "sort", "x"]) this[`${name}Input`].value = this.state[name];
    this.onlyInput.checked = this.state.only;
  }

  visible() { return this.rows.filter(({ row }) => !row.hidden); }

  update(remember = true) {
    const s = this.state;
    const words = s.q.toLowerCase().split(/\s+/).filter(Boolean);
    for (const { row, record, key } of this.rows) {
      const text = `${record.name} ${record.paper} ${record.form}`.toLowerCase();
      row.hidden = !(words.every((w) => text.includes(w)) && (!s.form || record.form === s.form) && (!s.batch || String(record.batch) === s.batch) && (!s.only || s.picked.has(key)));
      row.classList.toggle("picked", s.picked.has(key));
      row.querySelector("input").checked = s.picked.has(key);
    }
    const column = this.columns.indexOf(s.sort);
    const order = column < 0 ? [...this.rows] : [...this.rows].sort((a, b) => compare(a.row, b.row, column, s.down));
    if (column < 0 && s.down) order.reverse();
    this.table.tBodies[0].append(...order.map(({ row }) => row));
    [...this.table.tHead.rows[0].cells].forEach((cell, i) => cell.setAttribute("aria-sort", i !== column ? "none" : s.down ? "descending" : "ascending"));
    this.draw();
    const shown = this.visible().length;
    this.say(`${shown} of ${this.rows.length} measurements shown${s.picked.size ? `, ${s.picked.size} ticked` : ""}.`);
    if (remember) this.toAddress();
  }

  say(text) { this.status.textContent = text; }

  /** Latency over MACs or parameters, both logarithmic. One stop for the keyboard; arrow keys walk from point to point. */
  draw() {
    const width = Math.max(280, this.box.clientWidth), height = Math.min(360, 200 + width / 5);
    const [left, bottom, top, right] = [52, 44, 26, 12];
    const points = this.visible().map((r) => ({ ...r, x: r.record[this.state.x], y: 1e3 * r.record.seconds })).filter((p) => p.x > 0 && p.y > 0).sort((a, b) => a.x - b.x || a.y - b.y);
    if (!points.length) { this.chart.replaceChildren(); this.points = []; return; }
    const range = (values) => { const lo = Math.min(...values), hi = Math.max(...values); return [Math.log10(lo) - 0.06, Math.log10(hi) + 0.06]; };
    const [x0, x1] = range(points.map((p) => p.x)), [y0, y1] = range(points.map((p) => p.y));
    const px = (v) => left + (Math.log10(v) - x0) / (x1 - x0 || 1) * (width - left - right);
    const py = (v) => height - bottom - (Math.log10(v) - y0) / (y1 - y0 || 1) * (height - top - bottom);
    const parts = [];
    const ticks = (lo, hi) => (hi - lo > 1.2 && width < 600 ? [1] : [1, 2, 5]).flatMap((m) => Array.from({ length: 16 }, (_, e) => m * 10 ** (e - 3))).filter((v) => Math.log10(v) >= lo && Math.log10(v) <= hi);
    for (const v of ticks(x0, x1)) parts.push(`<line class="grid" x1="${px(v)}" x2="${px(v)}" y1="${top}" y2="${height - bottom}"/><text x="${px(v)}" y="${height - bottom + 18}" text-anchor="middle">${short(v)}</text>`);
    for (const v of ticks(y0, y1)) parts.push(`<line class="grid" y1="${py(v)}" y2="${py(v)}" x1="${left}" x2="${width - right}"/><text x="${left - 8}" y="${py(v) + 4}" text-anchor="end">${v}</text>`);
    parts.push(`<line class="axis" x1="${left}" x2="${width - right}" y1="${height - bottom}" y2="${height - bottom}"/>`);
    parts.push(`<text x="${(left + width) / 2}" y="${height - 8}" text-anchor="middle">${this.state.x === "macs" ? "multiply-accumulates" : "parameters"}</text>`);
    parts.push(`<text transform="translate(12 ${(height - bottom) / 2}) rotate(-90)" text-anchor="middle">latency (ms)</text>`);
    const forms = [...new Set(points.map((p) => p.record.form))];
    forms.forEach((form, i) => parts.push(`<circle class="point ${form}" cx="${left + 16 + 84 * i}" cy="10" r="6"/><text x="${left + 28 + 84 * i}" y="14">${form}</text>`));
    points.forEach((p, i) => parts.push(`<circle class="point ${p.record.form}${this.state.picked.has(p.key) ? " picked" : ""}" data-i="${i}" cx="${px(p.x)}" cy="${py(p.y)}" r="6"/>`));
    this.chart.innerHTML = `<svg viewBox="0 0 ${width} ${height}" tabindex="0" role="application" aria-roledescription="chart" aria-label="Latency of ${points.length} measurements over ${this.state.x === "macs" ? "multiply-accumulates" : "parameters"}; arrow keys walk from point to point, Enter ticks one">${parts.join("")}</svg>`;
    this.points = points;
    this.current = -1;
    const svg = this.chart.firstChild;
    for (const kind of ["pointerover", "click"]) {
      svg.addEventListener(kind, (event) => { const i = event.target.dataset?.i; if (i !== undefined) this.point(points[i].key, true); });
    }
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (step) {
        event.preventDefault();
        this.current = (this.current + step + points.length) % points.length;
        this.point(points[this.current].key, true);
      } else if ((event.key === "Enter" || event.key === " ") && this.current >= 0) {
        event.preventDefault();
        const { key } = points[this.current];
        this.state.picked[this.state.picked.has(key) ? "delete" : "add"](key);
        this.update();
        this.chart.firstChild.focus();
      }
    });
  }

  /** Show one measurement in chart, table and words. */
  point(key, aloud) {
    const i = this.points.findIndex((p) => p.key === key);
    for (const circle of this.chart.querySelectorAll(".point")) circle.classList.toggle("pointed", Number(circle.dataset.i) === i);
    for (const r of this.rows) r.row.classList.toggle("pointed", r.key === key);
    if (i < 0 || !aloud) return;
    const { record } = this.points[i];
    const ratio = record.ratio_to_timm ? `, ${record.ratio_to_timm.toFixed(2)} of timm’s time` : "";
    this.say(`${record.name}, ${record.form}, batch ${record.batch}: ${(1e3 * record.seconds).toPrecision(3)} ms, ${short(record.params)} parameters, ${short(record.macs)} MACs${ratio}.`);
  }

  download(kind) {
    const records = this.visible().map(({ record }) => record);
    const fields = [...new Set(records.flatMap((r) => Object.keys(r)))];
    const quote = (v) => /[",\n]/.test(String(v ?? "")) ? `"${String(v).replaceAll('"', '""')}"` : String(v ?? "");
    const text = kind === "json" ? JSON.stringify({ machines: this.data.machines, models: records }, null, 1)
      : [fields, ...records.map((r) => fields.map((f) => r[f]))].map((line) => line.map(quote).join(",")).join("\n") + "\n";
    const url = URL.createObjectURL(new Blob([text], { type: kind === "json" ? "application/json" : "text/csv" }));
    make("a", { href: url, download: `refimpl-${this.box.dataset.name}.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  async copyLink(button) {
    this.toAddress();
    try { await navigator.clipboard.writeText(location.href); this.say("The address of this selection is on the clipboard."); }
    catch { this.say("The browser’s address line holds this selection."); }
    button.focus();
  }
}

/** What a row's cell sorts by; null for what was not measured. */
function sortValue(row, column) {
  const raw = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  return raw === "–" || raw === "" ? null : Number.isNaN(Number(raw)) ? raw : Number(raw);
}

/** The order of two rows by a column; what was not measured stays last. */
function compare(a, b, column, down) {
  const [p, q] = [sortValue(a, column), sortValue(b, column)];
  if (p === null || q === null) return (p === null) - (q === null);
  return (down ? -1 : 1) * (typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q), "en", { numeric: true }));
}

/** Make a table's headings sort it: once upwards, again downwards. */
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((cell, column) => {
    const sort = () => {
      const down = cell.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", other !== cell ? "none" : down ? "descending" : "ascending"));
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => compare(a, b, column, down)));
    };
    cell.replaceChildren(make("button", { type: "button", onclick: sort }, cell.textContent));
    cell.setAttribute("aria-sort", "none");
  });
}

/** A measurement's name in the address. */
function keyOf(record) { return `${record.name}:${record.form}:${record.batch}`; }

function short(value) {
  for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) if (value >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  return String(value ?? "–");
}

for (const box of document.querySelectorAll(".explorer-box")) new Explorer(box);
document.querySelectorAll("table.sortable").forEach(makeSortable);
