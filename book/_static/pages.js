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
      document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
    }

    clear() {
      for (const select of Object.values(this.selects)) select.value = "";
      this.update();
      Object.values(this.selects)[0].focus();
    }

    update(remember = true) {
      const chosen = Object.entries(this.selects).filter(([, select]) => select.value);
      for (const item of this.items) item.hidden = !chosen.every(([name, select]) => item.dataset[name] === select.value);
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

  document.querySelectorAll(".filterable").forEach((box) => new Filterable(box));
})();
