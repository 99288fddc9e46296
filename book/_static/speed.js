/* Tables that sort, the table of speeds as an explorer, and the answer to "which model?". No dependencies. */
"use strict";

(() => {
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

  const escaped = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");

  const PRESETS = {
    one: { text: "One image", batch: 1, sort: "Time, measured here", x: "seconds" },
    eight: { text: "Batch of 8", batch: 8, sort: "Time, measured here", x: "seconds" },
    memory: { text: "Least memory", batch: 1, sort: "Peak memory", x: "memory" },
    all: { text: "All measurements", batch: 0, sort: "", x: "seconds" },
  };
  const AXES = {
    seconds: { text: "time of a call, measured here (ms)", scale: 1e3, choice: "Time" },
    memory: { text: "peak memory, measured here (MB)", scale: 1e-6, choice: "Peak memory" },
    macs: { text: "multiply-accumulates", scale: 1, choice: "MACs" },
    params: { text: "parameters", scale: 1, choice: "Parameters" },
  };
  const FRESH = { preset: "one", q: "", form: "", batch: "", sort: "", down: false, x: "", only: false };

  class Explorer {
    constructor(box) {
      this.box = box;
      this.table = box.querySelector("table.explorer");
      this.data = JSON.parse(box.querySelector(".explorer-data").textContent);
      this.columns = [...this.table.tHead.rows[0].cells].map((cell) => cell.textContent);
      this.rows = [...this.table.tBodies[0].rows].map((row, i) => ({ row, record: this.data.models[i], key: keyOf(this.data.models[i]) }));
      this.state = { ...FRESH, picked: new Set(), ...this.fromAddress() };
      this.addSortButtons();
      this.addTicks();
      this.addControls();
      this.update(false);
      box.classList.add("ready");
      addEventListener("hashchange", () => {
        Object.assign(this.state, FRESH, { picked: new Set() }, this.fromAddress());
        this.showState();
        this.update(false);
      });
    }

    fromAddress() {
      const given = new URLSearchParams(location.hash.slice(1));
      if (!given.has("explore")) return {};
      const text = (name) => given.get(name) ?? "";
      return {
        ...(text("preset") in PRESETS ? { preset: text("preset") } : {}),
        q: text("q"), form: text("form"), batch: text("batch"), sort: text("sort"), down: text("down") === "1", only: text("only") === "1",
        ...(text("x") in AXES ? { x: text("x") } : {}),
        picked: new Set(text("pick").split(",").filter(Boolean)),
      };
    }

    toAddress() {
      const s = this.state;
      const given = new URLSearchParams({ explore: this.box.dataset.name });
      if (s.preset !== "one") given.set("preset", s.preset);
      for (const name of ["q", "form", "batch", "sort", "x"]) if (s[name]) given.set(name, s[name]);
      if (s.down) given.set("down", "1");
      if (s.only) given.set("only", "1");
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

    /** The column in use: chosen, or the preset's. */
    get sorted() { return this.state.sort || PRESETS[this.state.preset].sort; }

    sortBy(column) {
      this.state.down = this.sorted === column ? !this.state.down : false;
      this.state.sort = column;
      this.showState();
      this.update();
    }

    addTicks() {
      for (const { row, record, key } of this.rows) {
        const tick = make("input", { type: "checkbox", "aria-label": `Compare ${record.name}, ${record.form}, batch ${record.batch}` });
        tick.addEventListener("change", () => this.pick(key, tick.checked));
        row.cells[0].prepend(tick);
        row.addEventListener("pointerenter", () => this.point(key, false));
      }
    }

    pick(key, on) {
      this.state.picked[on ? "add" : "delete"](key);
      this.update();
    }

    addControls() {
      const values = (name) => [...new Set(this.rows.map(({ record }) => String(record[name])))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      const choice = (name, label, options) => {
        const select = make("select", { onchange: () => { this.state[name] = select.value; this.update(); } }, ...options.map(([value, text]) => make("option", { value }, text)));
        this[`${name}Input`] = select;
        return make("label", {}, label, select);
      };
      this.presets = Object.entries(PRESETS).map(([name, { text }]) => make("button", { type: "button", value: name, onclick: () => this.choosePreset(name) }, text));
      this.qInput = make("input", { type: "search", oninput: () => { this.state.q = this.qInput.value; this.update(); } });
      this.onlyInput = make("input", { type: "checkbox", onchange: () => { this.state.only = this.onlyInput.checked; this.update(); } });
      const direction = make("button", { type: "button", onclick: () => { this.state.down = !this.state.down; this.update(); } }, "Reverse");
      const button = (text, action) => make("button", { type: "button", onclick: action }, text);
      this.status = make("p", { className: "explorer-status", role: "status" });
      this.chart = make("div", { className: "explorer-chart" });
      this.detailed = [choice("form", "Form", [["", "all"], ...values("form").map((v) => [v, v])]), choice("batch", "Batch", [["", "all"], ...values("batch").map((v) => [v, v])])];
      this.empty = make("p", { className: "not-yet", hidden: true }, "No measurement fits these choices. ", make("button", { type: "button", className: "plain", onclick: () => this.clear() }, "Start again"));
      this.box.prepend(
        make("div", { className: "explorer-presets", role: "group", "aria-label": "What is compared" }, ...this.presets),
        this.chart, this.status,
        make("div", { className: "explorer-controls", role: "group", "aria-label": "Choose what is shown" },
          make("label", {}, "Models with", this.qInput), ...this.detailed,
          choice("sort", "Sort by", [["", "as the preset says"], ...this.columns.map((c) => [c, c])]),
          direction,
          choice("x", "Chart over", [["", "as the preset says"], ...Object.entries(AXES).map(([name, { choice: text }]) => [name, text])]),
          make("label", { className: "tick" }, this.onlyInput, "only ticked rows"),
          button("CSV", () => this.download("csv")), button("JSON", () => this.download("json")), button("Copy link", (event) => this.copyLink(event.target)),
        ),
        this.empty,
      );
      this.showState();
      let width = this.box.clientWidth;
      new ResizeObserver(() => { if (this.box.clientWidth !== width) { width = this.box.clientWidth; this.draw(); } }).observe(this.box);
    }

    choosePreset(name) {
      Object.assign(this.state, { preset: name, sort: "", down: false, x: "", form: "", batch: "" });
      this.showState();
      this.update();
    }

    clear() {
      Object.assign(this.state, FRESH, { picked: this.state.picked });
      this.showState();
      this.update();
      this.qInput.focus();
    }

    showState() {
      for (const name of ["q", "form", "batch", "sort", "x"]) this[`${name}Input`].value = this.state[name];
      this.onlyInput.checked = this.state.only;
      for (const button of this.presets) button.setAttribute("aria-pressed", String(button.value === this.state.preset));
      for (const label of this.detailed) label.hidden = this.state.preset !== "all";
    }

    visible() { return this.rows.filter(({ row }) => !row.hidden); }

    /** Whether a row belongs to the preset: one row a model, fused where there is a fused form. */
    inPreset({ record }) {
      const { batch } = PRESETS[this.state.preset];
      if (!batch) return true;
      if (record.batch !== batch) return false;
      return record.form === "fused" || !this.rows.some(({ record: r }) => r.name === record.name && r.batch === batch && r.form === "fused");
    }

    update(remember = true) {
      const s = this.state;
      const words = s.q.toLowerCase().split(/\s+/).filter(Boolean);
      for (const r of this.rows) {
        const { row, record, key } = r;
        const text = `${record.name} ${record.paper} ${record.form}`.toLowerCase();
        row.hidden = !(this.inPreset(r) && words.every((w) => text.includes(w)) && (!s.form || record.form === s.form) && (!s.batch || String(record.batch) === s.batch) && (!s.only || s.picked.has(key)));
        row.classList.toggle("picked", s.picked.has(key));
        row.querySelector("input").checked = s.picked.has(key);
      }
      const column = this.columns.indexOf(this.sorted);
      const order = column < 0 ? [...this.rows] : [...this.rows].sort((a, b) => compare(a.row, b.row, column, s.down));
      if (column < 0 && s.down) order.reverse();
      this.table.tBodies[0].append(...order.map(({ row }) => row));
      [...this.table.tHead.rows[0].cells].forEach((cell, i) => cell.setAttribute("aria-sort", i !== column ? "none" : s.down ? "descending" : "ascending"));
      this.draw();
      const shown = this.visible();
      const without = shown.filter(({ record }) => !record.top1_published).length;
      this.empty.hidden = shown.length > 0;
      this.table.parentElement.hidden = !shown.length;
      this.say(`${shown.length} of ${this.rows.length} measurements shown${without ? `, ${without} of them without a published accuracy and so not in the chart` : ""}${s.picked.size ? `; ${s.picked.size} ticked` : ""}.`);
      if (remember) this.toAddress();
    }

    say(text) { this.status.textContent = text; }

    get axis() { return this.state.x || PRESETS[this.state.preset].x; }

    /** Published accuracy over what was measured (logarithmic). One stop for the keyboard; arrow keys walk from point to point. */
    draw() {
      const axis = AXES[this.axis];
      const width = Math.max(280, this.box.clientWidth), height = Math.min(420, 230 + width / 5);
      const [left, bottom, top, right] = [56, 46, 16, 14];
      const points = this.visible().map((r) => ({ ...r, x: axis.scale * r.record[this.axis], y: r.record.top1_published })).filter((p) => p.x > 0 && p.y > 0).sort((a, b) => a.x - b.x || b.y - a.y);
      const focused = this.chart.contains(document.activeElement);
      this.points = points;
      if (!points.length) { this.chart.replaceChildren(); return; }
      const low = Math.log10(points[0].x) - 0.06, high = Math.log10(points.at(-1).x) + 0.12;
      const ys = points.map((p) => p.y), y0 = Math.floor(Math.min(...ys) - 0.7), y1 = Math.ceil(Math.max(...ys) + 0.7);
      const px = (v) => left + (Math.log10(v) - low) / (high - low || 1) * (width - left - right);
      const py = (v) => height - bottom - (v - y0) / (y1 - y0 || 1) * (height - top - bottom);
      const parts = [];
      const steps = high - low > 1.2 && width < 600 ? [1] : [1, 2, 5];
      for (const v of steps.flatMap((m) => Array.from({ length: 18 }, (_, e) => m * 10 ** (e - 3))).filter((v) => Math.log10(v) >= low && Math.log10(v) <= high)) parts.push(`<line class="grid" x1="${px(v)}" x2="${px(v)}" y1="${top}" y2="${height - bottom}"/><text x="${px(v)}" y="${height - bottom + 18}" text-anchor="middle">${short(v)}</text>`);
      const step = y1 - y0 > 12 ? 5 : 2;
      for (let v = Math.ceil(y0 / step) * step; v <= y1; v += step) parts.push(`<line class="grid" y1="${py(v)}" y2="${py(v)}" x1="${left}" x2="${width - right}"/><text x="${left - 8}" y="${py(v) + 4}" text-anchor="end">${v}</text>`);
      parts.push(`<line class="axis" x1="${left}" x2="${width - right}" y1="${height - bottom}" y2="${height - bottom}"/>`);
      parts.push(`<text x="${(left + width) / 2}" y="${height - 8}" text-anchor="middle">${axis.text}</text>`);
      parts.push(`<text transform="translate(13 ${(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">top-1 published (%)</text>`);
      const best = pareto(points);
      if (best.length > 1) parts.push(`<polyline class="pareto" points="${best.map((p) => `${px(p.x)},${py(p.y)}`).join(" ")}"/>`);
      const placed = points.map((p) => ({ x0: px(p.x) - 6, x1: px(p.x) + 6, y0: py(p.y) - 6, y1: py(p.y) + 6 }));
      points.forEach((p, i) => parts.push(mark(px(p.x), py(p.y), i, p.record.form, this.state.picked.has(p.key), best.includes(p))));
      const wanted = [...points].sort((a, b) => this.state.picked.has(b.key) - this.state.picked.has(a.key) || best.includes(b) - best.includes(a));
      for (const p of wanted) parts.push(label(p, px(p.x), py(p.y), placed, { width, top, bottom: height - bottom }, this.state.picked.has(p.key)));
      this.chart.innerHTML = `<svg viewBox="0 0 ${width} ${height}" tabindex="0" role="application" aria-roledescription="chart" aria-label="Published accuracy of ${points.length} measurements over ${axis.text}; arrow keys walk from point to point, Enter ticks one">${parts.join("")}</svg><p class="explorer-key">Line: no other model here is both more accurate and better on the lower axis. ◆ ticked, ● fused, ○ as written.</p>`;
      const svg = this.chart.firstChild;
      for (const kind of ["pointerover", "click"]) {
        svg.addEventListener(kind, (event) => {
          const i = event.target.dataset?.i;
          if (i === undefined) return;
          if (kind === "click") this.pick(points[i].key, !this.state.picked.has(points[i].key));
          this.point(points[i].key, true);
        });
      }
      svg.addEventListener("keydown", (event) => this.walk(event));
      if (focused) {
        svg.focus({ preventScroll: true });
        this.point(this.current, false);
      }
    }

    walk(event) {
      const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      const i = this.points.findIndex((p) => p.key === this.current);
      if (step) {
        event.preventDefault();
        this.current = this.points[(i + step + this.points.length) % this.points.length].key;
        this.point(this.current, true);
      } else if ((event.key === "Enter" || event.key === " ") && i >= 0) {
        event.preventDefault();
        this.pick(this.current, !this.state.picked.has(this.current));
        this.point(this.current, true);
      }
    }

    /** Show one measurement in chart, table and words. */
    point(key, aloud) {
      const i = this.points.findIndex((p) => p.key === key);
      for (const shape of this.chart.querySelectorAll(".point")) shape.classList.toggle("pointed", Number(shape.dataset.i) === i);
      for (const r of this.rows) r.row.classList.toggle("pointed", r.key === key);
      if (i < 0 || !aloud) return;
      const { record } = this.points[i];
      const ratio = record.ratio_to_timm ? `, ${record.ratio_to_timm.toFixed(2)} of timm’s time` : "";
      const picked = this.state.picked.has(key) ? ", ticked" : "";
      this.say(`${record.name}, ${record.form}, batch ${record.batch}: ${record.top1_published.toFixed(1)} % top-1 published, ${(1e3 * record.seconds).toPrecision(3)} ms here, ${short(record.params)} parameters, ${short(record.macs)} MACs${ratio}${picked}.`);
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

  /** The points that nothing beats: cheapest first, each more accurate than all before it. */
  function pareto(points) {
    const best = [];
    for (const p of points) if (!best.length || p.y > best.at(-1).y) best.push(p);
    return best;
  }

  /** A point: its shape says whether it is ticked, its filling whether it is fused. */
  function mark(x, y, i, form, picked, best) {
    const classes = `point ${form}${picked ? " picked" : ""}${best ? " best" : ""}`;
    return picked ? `<path class="${classes}" data-i="${i}" d="M${x} ${y - 8.5}L${x + 8.5} ${y}L${x} ${y + 8.5}L${x - 8.5} ${y}Z"/>`
      : `<circle class="${classes}" data-i="${i}" cx="${x}" cy="${y}" r="5.5"/>`;
  }

  /** A name beside its point, where it covers no other point or name; else none. */
  function label(point, x, y, placed, frame, bold) {
    const text = point.record.name.replaceAll("_", " ") + (point.record.batch > 1 ? ` ×${point.record.batch}` : "");
    const wide = 6.6 * text.length, places = [[x + 9, y + 4, "start"], [x - 9, y + 4, "end"], [x, y - 10, "middle"], [x, y + 19, "middle"]];
    for (const [at, base, anchor] of places) {
      const x0 = anchor === "start" ? at : anchor === "end" ? at - wide : at - wide / 2;
      const box = { x0, x1: x0 + wide, y0: base - 11, y1: base + 3 };
      const free = box.x0 > 50 && box.x1 < frame.width && box.y0 > frame.top - 6 && box.y1 < frame.bottom && !placed.some((o) => o.x0 < box.x1 && box.x0 < o.x1 && o.y0 < box.y1 && box.y0 < o.y1);
      if (free) {
        placed.push(box);
        return `<text class="name${bold ? " picked" : ""}" x="${at}" y="${base}" text-anchor="${anchor}">${escaped(text)}</text>`;
      }
    }
    return "";
  }

  /** Two or three models for a budget: the most accurate one that fits, then the best of other families. */
  class Which {
    constructor(box) {
      this.choices = JSON.parse(box.querySelector(".which-data").textContent).choices;
      this.answer = box.querySelector(".which-answer");
      this.unit = make("select", { onchange: () => this.changeUnit() }, make("option", { value: "time" }, "× the time of DeiT-Tiny"), make("option", { value: "memory" }, "MB of peak memory"), make("option", { value: "size" }, "MB of weights (float32)"));
      this.amount = make("input", { type: "number", min: "0", step: "any", oninput: () => this.update() });
      this.list = make("div", { className: "which-list", role: "status" });
      this.answer.append(make("div", { className: "explorer-controls", role: "group", "aria-label": "Your budget" }, make("label", {}, "At most", this.amount), make("label", {}, "of", this.unit)), this.list);
      const given = new URLSearchParams(location.search);
      if ([...this.unit.options].some((o) => o.value === given.get("unit"))) this.unit.value = given.get("unit");
      this.amount.value = Number(given.get("budget")) > 0 ? given.get("budget") : Which.usual[this.unit.value];
      this.update(false);
    }

    static usual = { time: "0.6", memory: "10", size: "40" };

    changeUnit() {
      this.amount.value = Which.usual[this.unit.value];
      this.update();
    }

    cost(choice) { return { time: choice.time, memory: choice.memory, size: 4e-6 * choice.params }[this.unit.value]; }

    update(remember = true) {
      const budget = Number(this.amount.value);
      const fitting = this.choices.filter((c) => this.cost(c) <= budget).sort((a, b) => b.top1 - a.top1 || this.cost(a) - this.cost(b));
      const chosen = [];
      for (const choice of fitting) if (chosen.length < 3 && !chosen.some((c) => c.family === choice.family)) chosen.push(choice);
      if (chosen.length < 2) chosen.push(...fitting.filter((c) => !chosen.includes(c)).slice(0, 2 - chosen.length));
      if (chosen.length) this.list.innerHTML = `<ol>${chosen.map((c, i) => this.card(c, i)).join("")}</ol>`;
      else {
        const least = [...this.choices].sort((a, b) => this.cost(a) - this.cost(b))[0];
        this.list.innerHTML = `<p class="not-yet">Nothing that was measured fits. The least is ${escaped(least.name)} with ${this.cost(least).toPrecision(2)}.</p>`;
      }
      if (remember) history.replaceState(null, "", `${location.pathname}?${new URLSearchParams({ budget: this.amount.value, unit: this.unit.value })}`);
    }

    card(c, i) {
      const name = c.chapter ? `<a href="${c.chapter}">${escaped(c.name)}</a>` : escaped(c.name);
      const certificate = c.certificates ? `<a href="${c.exactness}">${c.certificates} reference ${c.certificates === 1 ? "output" : "outputs"} equal</a>` : "no certificate of its own";
      const failed = c.failed.length ? `<details><summary>✗ ${c.failed.length} ${c.failed.length === 1 ? "claim" : "claims"} of its paper contradicted here</summary><ul>${c.failed.map((f) => `<li><a href="${f.address}">${escaped(f.text)}</a></li>`).join("")}</ul></details>` : c.tested ? "<p>No claim of its paper was contradicted here.</p>" : "<p>A base without a chapter: its claims were not tested.</p>";
      return `<li><p class="which-name"><b>${name}</b> <span>${i ? "another family" : "most accurate that fits"}</span></p><p><b>${c.top1.toFixed(1)} %</b> top-1, published by its authors. <b>${c.time.toFixed(2)} ×</b> DeiT-Tiny’s time (${c.milliseconds} ms here), ${c.memory} MB at its peak, ${short(c.params)} parameters.</p><p>Licence: ${escaped(c.licence || "not stated")}; ${certificate}.</p>${failed}</li>`;
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

  /** Make a table's headings sort it: once upwards, again downwards. On a phone, where rows are cards, a list does. */
  function makeSortable(table) {
    const heads = [...table.tHead.rows[0].cells], names = heads.map((cell) => cell.textContent);
    const sort = (column, down) => {
      heads.forEach((other, i) => other.setAttribute("aria-sort", i !== column ? "none" : down ? "descending" : "ascending"));
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => compare(a, b, column, down)));
    };
    heads.forEach((cell, column) => {
      cell.replaceChildren(make("button", { type: "button", onclick: () => sort(column, cell.getAttribute("aria-sort") === "ascending") }, names[column]));
      cell.setAttribute("aria-sort", "none");
    });
    const select = make("select", { onchange: () => { const [column, down] = select.value.split(" ").map(Number); sort(column, Boolean(down)); } },
      ...names.flatMap((name, i) => [make("option", { value: `${i} 0` }, `${name}, least first`), make("option", { value: `${i} 1` }, `${name}, most first`)]));
    table.parentElement.before(make("label", { className: "touch-sort" }, "Sort by ", select));
  }

  /** A measurement's name in the address. */
  function keyOf(record) { return `${record.name}:${record.form}:${record.batch}`; }

  function short(value) {
    for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) if (value >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
    return String(Number(Number(value).toPrecision(3)));
  }

  for (const box of document.querySelectorAll(".explorer-box")) new Explorer(box);
  for (const box of document.querySelectorAll(".which")) new Which(box);
  document.querySelectorAll("table.sortable").forEach(makeSortable);
})();
