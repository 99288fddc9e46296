/* Pages that are made from data: lists that are filtered, with the choice in the address. No dependencies. */
"use strict";

(() => {
  /** Make an element: `make("button", {type: "button", onclick: f}, "text")`. */
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key in element) element[key] = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  /** A list whose items carry `data-…` for each filter; `filters` and `orders` stand beside it as JSON. */
  class Filterable {
    constructor(box) {
      const { filters, orders } = JSON.parse(box.querySelector("script.filters").textContent);
      this.items = [...box.querySelectorAll(".item")];
      this.homes = this.items.map((item) => item.parentElement);
      this.sections = [...box.querySelectorAll("section")];
      this.flat = make("div", { className: "claims flat", hidden: true });
      this.status = make("p", { className: "filter-status", role: "status" });
      this.empty = make("p", { className: "not-yet", hidden: true }, "Nothing fits these choices. ", make("button", { type: "button", className: "plain", onclick: () => this.clear() }, "Show everything"));
      const choose = (name, label, options) => {
        const select = make("select", { name, onchange: () => this.update() }, ...options.map(([value, text]) => make("option", { value }, text)));
        return [make("label", {}, label, select), select];
      };
      this.selects = {};
      const controls = filters.map(({ name, label, options }) => {
        const [made, select] = choose(name, label, [["", "all"], ...options]);
        this.selects[name] = select;
        return made;
      });
      if (orders.length) {
        const [made, select] = choose("order", "Order", orders);
        this.order = select;
        controls.push(made);
      }
      box.prepend(make("div", { className: "explorer-controls", role: "group", "aria-label": "Choose what is shown" }, ...controls), this.status, this.empty, this.flat);
      this.fromAddress();
      addEventListener("popstate", () => this.fromAddress());
    }

    fromAddress() {
      const given = new URLSearchParams(location.search);
      for (const [name, select] of [...Object.entries(this.selects), ...(this.order ? [["order", this.order]] : [])]) {
        const value = given.get(name) ?? "";
        select.value = [...select.options].some((o) => o.value === value) ? value : "";
      }
      this.update(false);
      const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      const fold = target?.closest("details.folded");
      if (fold) fold.open = true;
      target?.scrollIntoView();
    }

    clear() {
      for (const select of Object.values(this.selects)) select.value = "";
      this.update();
      Object.values(this.selects)[0].focus();
    }

    update(remember = true) {
      const chosen = Object.entries(this.selects).filter(([, select]) => select.value);
      for (const item of this.items) item.hidden = !chosen.every(([name, select]) => item.dataset[name] === select.value);
      if (chosen.length) for (const section of this.sections) section.querySelector("details.folded")?.setAttribute("open", "");
      const first = this.order?.value;
      this.flat.hidden = !first;
      this.items.forEach((item, i) => (first ? this.flat : this.homes[i]).append(item));
      if (first) this.flat.append(...[...this.items].sort((a, b) => (b.dataset.verdict === first) - (a.dataset.verdict === first)));
      for (const section of this.sections) section.hidden = Boolean(first) || ![...section.querySelectorAll(".item")].some((item) => !item.hidden);
      const shown = this.items.filter((item) => !item.hidden).length;
      this.status.textContent = `${shown} of ${this.items.length} shown.`;
      this.empty.hidden = shown > 0;
      if (!remember) return;
      const given = new URLSearchParams(chosen.map(([name, select]) => [name, select.value]));
      if (first) given.set("order", first);
      const query = given.toString();
      history.replaceState(null, "", `${location.pathname}${query ? `?${query}` : ""}`);
    }
  }

  /* The colours of the atlas: blue below an even look, pale at it, red above (matplotlib's RdBu_r). */
  const SCALE = [[5, 48, 97], [67, 147, 195], [247, 247, 247], [214, 96, 77], [103, 0, 31]];
  const tone = (part) => {
    const at = Math.max(0, Math.min(4, 4 * part)), i = Math.min(3, Math.floor(at));
    return `rgb(${SCALE[i].map((low, k) => Math.round(low + (at - i) * (SCALE[i + 1][k] - low)))})`;
  };

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
  }

  /** Two models of the atlas side by side; one cursor, on the photograph of both. */
  class Compare {
    constructor(box) {
      this.data = JSON.parse(box.querySelector(".compare-data").textContent);
      [this.y, this.x] = this.data.start;
      const names = this.data.rows.map((row) => row.name);
      this.sides = [0, Math.min(1, names.length - 1)].map((chosen, i) => this.side(names, chosen, i));
      this.status = make("p", { className: "compare-status", role: "status" });
      box.append(
        make("p", { className: "compare-hint" }, "Point at a patch of either photograph, touch it, or walk there with the arrow keys: both models follow."),
        make("div", { className: "compare-sides" }, ...this.sides.map((side) => side.box)),
        make("p", { className: "compare-key" }, "an eighth", make("i"), "8 times an even look; pale is even"), this.status);
      this.sides.forEach((side) => this.show(side));
    }

    side(names, chosen, i) {
      const label = ["Left", "Right"][i];
      const side = { rows: [] };
      side.select = make("select", { onchange: () => this.show(side) }, ...names.map((name, value) => make("option", { value, selected: value === chosen }, name)));
      const photo = make("img", { src: this.data.photo, width: 288, height: 288, alt: `The photograph whose patches can be chosen, for the model on the ${label.toLowerCase()}`, draggable: false });
      side.mark = make("div", { className: "compare-mark" });
      side.pad = make("div", { className: "compare-pad", tabIndex: 0, role: "application", "aria-label": `${label} photograph. Choose a patch with the arrow keys` }, photo, side.mark);
      side.maps = make("div", { className: "compare-maps" });
      const point = (event) => {
        const frame = side.pad.getBoundingClientRect();
        this.move((event.clientY - frame.top) / frame.height, (event.clientX - frame.left) / frame.width);
      };
      side.pad.addEventListener("pointermove", point);
      side.pad.addEventListener("pointerdown", point);
      side.pad.addEventListener("keydown", (event) => {
        const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        if (!step) return;
        event.preventDefault();
        const [down, across] = side.rows[0].asks;
        this.move(this.y + step[0] / down, this.x + step[1] / across);
      });
      side.box = make("div", { className: "compare-side" }, make("label", {}, label, side.select), side.pad, side.maps);
      return side;
    }

    async show(side) {
      const row = this.data.rows[side.select.value];
      side.rows = await Promise.all(row.maps.map(async (maps) => ({ ...maps, data: await unpacked(maps.codes) })));
      const heads = Math.max(...side.rows.map((maps) => maps.heads));
      side.maps.style.gridTemplateColumns = `repeat(${heads}, minmax(0, 1fr))`;
      side.maps.replaceChildren(...side.rows.flatMap((maps) => [
        make("p", {}, `Layer ${maps.layer + 1} of ${row.layers}`),
        ...Array.from({ length: heads }, (_, h) => h < maps.heads ? make("canvas", { width: 112, height: 112, role: "img" }) : make("span")),
      ]));
      this.draw(side);
    }

    move(y, x) {
      const inside = (v) => Math.max(0, Math.min(0.999, v));
      [this.y, this.x] = [inside(y), inside(x)];
      for (const side of this.sides) if (side.rows.length) this.draw(side);
    }

    draw(side) {
      const [down, across] = side.rows[0].asks;
      const row = Math.floor(this.y * down), column = Math.floor(this.x * across);
      Object.assign(side.mark.style, { top: `${100 * row / down}%`, left: `${100 * column / across}%`, height: `${100 / down}%`, width: `${100 / across}%` });
      const canvases = [...side.maps.querySelectorAll("canvas")];
      for (const maps of side.rows) {
        const [h, w] = maps.keys, [askRows, askColumns] = maps.asks;
        const ask = Math.floor(this.y * askRows) * askColumns + Math.floor(this.x * askColumns);
        for (let head = 0; head < maps.heads; head++) {
          const canvas = canvases.shift(), context = canvas.getContext("2d");
          const codes = maps.data.subarray((head * askRows * askColumns + ask) * h * w, (head * askRows * askColumns + ask + 1) * h * w);
          codes.forEach((code, key) => {
            const y = Math.floor(key / w), x = key % w;
            context.fillStyle = tone(code / 16);
            context.fillRect(Math.floor(x * canvas.width / w), Math.floor(y * canvas.height / h), Math.ceil(canvas.width / w), Math.ceil(canvas.height / h));
          });
          const best = codes.indexOf(Math.max(...codes));
          canvas.setAttribute("aria-label", `Layer ${maps.layer + 1}, head ${head + 1}: looks most at row ${Math.floor(best / w) + 1}, column ${best % w + 1} of ${h} by ${w}`);
        }
      }
      this.status.textContent = `The patch ${Math.round(100 * this.y)} % down and ${Math.round(100 * this.x)} % across.`;
    }
  }

  document.querySelectorAll(".atlas-compare").forEach((box) => new Compare(box));
  document.querySelectorAll(".filterable").forEach((box) => new Filterable(box));
})();
