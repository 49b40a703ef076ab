// Adds to a page that is complete without it: details on hover, sorting, choice of axes, brushing.
"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  root.classList.add("js");

  // One trial is the same trial in every chart: hovering over it lights it up everywhere.
  const byTrial = new Map();
  for (const node of all("[data-t]")) {
    const id = node.dataset.t;
    if (!byTrial.has(id)) byTrial.set(id, []);
    byTrial.get(id).push(node);
  }
  const details = new Map(all("tr[data-tip]").map((row) => [row.dataset.t, row.dataset.tip]));
  const tip = document.getElementById("tip");
  let lit = null;

  function light(id) {
    if (id === lit) return;
    for (const node of byTrial.get(lit) ?? []) node.classList.remove("hot");
    for (const node of byTrial.get(id) ?? []) node.classList.add("hot");
    root.classList.toggle("hovering", id !== null);
    lit = id;
  }

  function place(event) {
    const { offsetWidth: w, offsetHeight: h } = tip;
    const x = event.clientX + 14 + w > innerWidth - 8 ? event.clientX - w - 14 : event.clientX + 14;
    const y = Math.min(event.clientY + 14, innerHeight - h - 8);
    tip.style.left = `${Math.max(8, x)}px`;
    tip.style.top = `${Math.max(8, y)}px`;
  }

  document.addEventListener("pointermove", (event) => {
    const node = event.target.closest?.("[data-t]");
    const inChart = node && !node.closest("table");
    light(node ? node.dataset.t : null);
    tip.hidden = !(inChart && details.has(node.dataset.t));
    if (!tip.hidden) {
      tip.textContent = details.get(node.dataset.t);
      place(event);
    }
  });
  document.addEventListener("pointerleave", () => { light(null); tip.hidden = true; });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { light(null); tip.hidden = true; }
  });

  // Tables: by number where all values are numbers, what is missing always last.
  function compare(a, b, sign) {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const [x, y] = [Number(a), Number(b)];
    const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
    return sign * order;
  }

  function sort(header, column) {
    const body = header.closest("table").tBodies[0];
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.v;
    const rows = [...body.rows].sort((a, b) => compare(key(a), key(b), descending ? -1 : 1));
    body.append(...rows);
  }

  for (const table of all("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      if (!header.dataset.sort) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      button.addEventListener("click", () => sort(header, column));
      header.replaceChildren(button);
    });
  }

  // Charts with several choices of axes: all were drawn, one is shown.
  for (const group of all(".variants")) {
    const choices = all(":scope > [data-variant]", group);
    const label = document.createElement("label");
    const select = document.createElement("select");
    label.className = "choose";
    for (const choice of choices) select.add(new Option(choice.dataset.variant));
    select.addEventListener("change", () => {
      choices.forEach((choice, i) => { choice.hidden = i !== select.selectedIndex; });
    });
    label.append(group.dataset.what, select);
    group.prepend(label);
  }

  // Parallel coordinates: drag along an axis to keep the lines that pass there.
  for (const svg of all("svg.parallel")) {
    const lines = all(".line", svg).map((node) => [node, node.dataset.y.split(",").map(Number)]);
    const kept = new Map();
    const toSvg = (event) =>
      new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).y;
    const apply = () => {
      for (const [node, ys] of lines) {
        const off = [...kept].some(([axis, { low, high }]) => ys[axis] < low || ys[axis] > high);
        node.classList.toggle("off", off);
      }
    };
    for (const zone of all(".zone", svg)) {
      const axis = Number(zone.dataset.axis);
      const band = document.createElementNS(svg.namespaceURI, "rect");
      let start = null;
      band.setAttribute("class", "brush");
      band.setAttribute("x", Number(zone.getAttribute("x")) + 6);
      band.setAttribute("width", Number(zone.getAttribute("width")) - 12);
      const draw = (low, high) => {
        band.setAttribute("y", low);
        band.setAttribute("height", high - low);
        zone.after(band);
        kept.set(axis, { low, high });
        apply();
      };
      zone.addEventListener("pointerdown", (event) => {
        start = toSvg(event);
        zone.setPointerCapture(event.pointerId);
      });
      zone.addEventListener("pointermove", (event) => {
        if (start === null) return;
        const end = toSvg(event);
        if (Math.abs(end - start) > 3) draw(Math.min(start, end), Math.max(start, end));
      });
      zone.addEventListener("pointerup", (event) => {
        if (start !== null && Math.abs(toSvg(event) - start) <= 3) {
          band.remove();
          kept.delete(axis);
          apply();
        }
        start = null;
      });
      zone.addEventListener("pointercancel", () => { start = null; });
    }
  }

  // The navigation says where the reader is.
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.classList.remove("here");
      links.get(target.id)?.classList.add("here");
    }
  }, { rootMargin: "-30% 0px -60% 0px" });
  for (const id of links.keys()) watcher.observe(document.getElementById(id));
})();
