"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  root.classList.remove("plain");
  const $ = (id) => document.getElementById(id);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const NS = "http://www.w3.org/2000/svg";
  const svg = (name, attributes = {}, ...children) => {
    const element = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  // ---- curves: one sampler at a time
  const curves = $("curves");
  const keys = [...curves.querySelectorAll(".key")];
  const light = (name) => {
    curves.classList.toggle("dimmed", name !== null);
    for (const s of curves.querySelectorAll(".series")) s.classList.toggle("lit", s.dataset.series === name);
  };
  const pressed = () => keys.find((k) => k.getAttribute("aria-pressed") === "true")?.dataset.series ?? null;
  for (const key of keys) {
    key.addEventListener("mouseenter", () => light(key.dataset.series));
    key.addEventListener("mouseleave", () => light(pressed()));
    key.addEventListener("click", () => {
      const on = key.getAttribute("aria-pressed") !== "true";
      for (const other of keys) other.setAttribute("aria-pressed", String(on && other === key));
      light(pressed());
    });
  }

  // ---- pictures: one budget and seed at a time
  const shots = [...document.querySelectorAll(".shot")];
  const show = () => {
    const budget = $("show-budget").value, seed = $("show-seed")?.value ?? "0";
    for (const shot of shots) {
      shot.hidden = shot.dataset.seed !== seed || !shot.dataset.budgets.split(" ").includes(budget);
    }
  };
  for (const id of ["show-budget", "show-seed"]) $(id)?.addEventListener("change", show);

  // ---- genealogy
  const selects = { prompt: $("tree-prompt"), column: $("tree-column"), budget: $("tree-budget") };
  const tree = $("tree"), told = $("tree-told");

  const address = () => {
    const parts = Object.entries(selects).map(([name, select]) => `${name}=${select.value}`);
    return `#${parts.join("&")}`;
  };

  /** Rows in order, each with its number, level, row and what it came from (-1: nothing). */
  const flat = (levels) => {
    const rows = [];
    levels.forEach((level, l) => level.rewards.forEach((_, r) => {
      rows.push({ n: rows.length, l, r, parent: level.parents[r] ?? -1 });
    }));
    return rows;
  };

  /** Numbers of the rows on the way to, and with `down` from, the given ones. */
  const relatives = (rows, numbers, down) => {
    const near = new Set();
    for (let n of numbers) for (; n >= 0; n = rows[n].parent) near.add(n);
    const below = new Set(numbers);
    if (down) for (const row of rows) if (below.has(row.parent)) below.add(row.n);
    return new Set([...near, ...below]);
  };

  const ranks = (order) => {
    const rank = [];
    order.forEach((r, i) => { rank[r] = i; });
    return rank;
  };

  /** Rows of each level from top to bottom: next to those of the same parent; a single level best first. */
  const ordered = (levels, rows) => {
    if (levels.length === 1) return [levels[0].rewards.map((_, r) => r).sort((a, b) => levels[0].rewards[b] - levels[0].rewards[a])];
    const height = rows.map(() => 0);
    return levels.map((level, l) => {
      const own = rows.filter((row) => row.l === l);
      own.sort((a, b) => (height[a.parent] ?? 0) - (height[b.parent] ?? 0) || a.r - b.r);
      own.forEach((row, i) => { height[row.n] = (i + 0.5) / own.length; });
      return own.map((row) => row.r);
    });
  };

  /** Where each row of each level stands; a single level is laid out in lines. */
  const layout = (levels, order, size, gap, top, aspect) => {
    const step = size * aspect + gap;
    if (levels.length === 1) {
      const wide = Math.min(order[0].length, 12);
      const places = [];
      order[0].forEach((r, i) => { places[r] = [20 + (i % wide) * (size + gap + 8), top + Math.floor(i / wide) * (step + 8)]; });
      return { places: [places], width: Math.max(40 + wide * (size + gap + 8), 260), height: top + Math.ceil(order[0].length / wide) * (step + 8) + 10 };
    }
    const most = Math.max(...levels.map((level) => level.rewards.length));
    const across = Math.max(size + 34, Math.min(110, 1130 / levels.length));
    const places = levels.map((level, l) => {
      const first = top + ((most - level.rewards.length) * step) / 2;
      const rank = ranks(order[l]);
      return level.rewards.map((_, r) => [20 + l * across, first + rank[r] * step]);
    });
    return { places, width: 40 + (levels.length - 1) * across + size, height: top + most * step + 10 };
  };

  const number = (x) => (Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 10 ? x.toFixed(1) : x.toFixed(2));

  const draw = () => {
    const entry = data.genealogies[`${selects.budget.value}/${selects.prompt.value}/${selects.column.value}`];
    tree.replaceChildren();
    tree.classList.remove("focus");
    if (!entry || !entry.levels.length) {
      told.textContent = "Nothing was kept of this search.";
      return;
    }
    const { levels } = entry;
    const most = Math.max(...levels.map((level) => level.rewards.length));
    const few = levels.length === 1;
    const size = few ? 64 : most <= 8 ? 50 : most <= 12 ? 38 : most <= 20 ? 30 : 22;
    const gap = few ? 8 : most <= 12 ? 9 : 6, top = few ? 14 : 44;
    const aspect = entry.sheet ? entry.size[1] / entry.size[0] : 1;
    const rows = flat(levels), order = ordered(levels, rows);
    const { places, width, height } = layout(levels, order, size, gap, top, aspect);
    const rewards = levels.flatMap((level) => level.rewards);
    const low = Math.min(...rewards), high = Math.max(...rewards);
    const colour = (x) => `color-mix(in oklab, var(--high) ${Math.round((100 * (x - low)) / (high - low || 1))}%, var(--low))`;
    const parental = new Set(rows.map((row) => row.parent));
    const related = rows.some((row) => row.parent >= 0);
    const kin = relatives(rows, rows.filter(({ l, r }) => levels[l].chosen.includes(r)).map((row) => row.n), false);
    const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Genealogy: ${data.columns[selects.column.value]}, ${data.prompts[selects.prompt.value]}` });
    if (entry.sheet) {
      const [w, h] = entry.size, lines = Math.ceil(entry.count / entry.columns);
      picture.append(svg("defs", {}, svg("image", { id: "sheet", href: entry.sheet, width: w * entry.columns, height: h * lines })));
    }
    const links = svg("g"), nodes = svg("g"), heads = svg("g");
    picture.append(links, heads, nodes);
    const drawn = [], ways = [];
    for (const { n, l, r, parent } of rows) {
      if (parent < 0) continue;
      const from = rows[parent];
      const [x, y] = places[l][r], [a, b] = places[from.l][from.r], mid = (size * aspect) / 2, half = (x - a - size) / 2;
      const on = kin.has(n);
      const way = svg("path", { class: on ? "link kin" : "link", d: `M${a + size},${b + mid}c${half},0 ${half},${y - b} ${2 * half},${y - b}` });
      ways.push({ way, n, parent });
      if (on) links.append(way); else links.prepend(way);
    }
    levels.forEach((level, l) => {
      if (!few) {
        const last = l === levels.length - 1;
        const text = svg("text", { class: "when", x: places[l][0][0] + size / 2, y: 16, "text-anchor": "middle" });
        text.append(svg("tspan", {}, last ? "finished" : level.step === null ? `look ${l + 1}` : `step ${level.step}`));
        if (level.ess.length) text.append(svg("tspan", { x: places[l][0][0] + size / 2, dy: 14 }, `ESS ${number(level.ess.reduce((a, b) => a + b))}`));
        heads.append(text);
      }
    });
    for (const { n, l, r } of rows) {
      const level = levels[l], reward = level.rewards[r];
      const [x, y] = places[l][r], tall = size * aspect;
      const chosen = level.chosen.includes(r);
      const dead = related && l + 1 < levels.length && !parental.has(n);
      const words = `${l === levels.length - 1 ? "finished" : level.step === null ? `look ${l + 1}` : `step ${level.step}`}, ${r + 1} of ${level.rewards.length}: reward ${number(reward)}${chosen ? ", returned" : dead ? ", no descendants" : ""}`;
      const node = svg("g", { class: dead ? "node lost" : "node", role: "img", tabindex: -1, "aria-label": words });
      if (entry.sheet && level.pictures.length) {
        const [w, h] = entry.size, p = level.pictures[r];
        const cell = `${(p % entry.columns) * w} ${Math.floor(p / entry.columns) * h} ${w} ${h}`;
        node.append(svg("svg", { x, y, width: size, height: tall, viewBox: cell, preserveAspectRatio: "none" }, svg("use", { href: "#sheet" })));
        node.append(svg("rect", { class: "frame", x, y, width: size, height: tall, rx: 4, style: `stroke:${colour(reward)}` }));
      } else {
        node.append(svg("circle", { class: "blob", cx: x + size / 2, cy: y + tall / 2, r: Math.min(size, tall) * 0.34, style: `fill:${colour(reward)}` }));
      }
      if (chosen) node.append(svg("rect", { class: "halo", x: x - 4, y: y - 4, width: size + 8, height: tall + 8, rx: 7 }));
      const enter = () => focus(n, words), leave = () => blur();
      node.addEventListener("mouseenter", enter);
      node.addEventListener("mouseleave", leave);
      node.addEventListener("focus", enter);
      node.addEventListener("blur", leave);
      drawn.push({ node, n, l, r });
      nodes.append(node);
    }
    const at = (l, r) => drawn.find((d) => d.l === l && d.r === r);
    const focus = (n, words) => {
      const near = relatives(rows, [n], true), { l } = rows[n], end = levels.length - 1;
      tree.classList.toggle("focus", related);
      for (const d of drawn) d.node.classList.toggle("near", near.has(d.n));
      for (const w of ways) w.way.classList.toggle("near", near.has(w.n) && near.has(w.parent));
      const finished = rows.filter((row) => row.l === end && near.has(row.n)).length;
      const more = related && l < end ? `; ${finished} of ${levels[end].rewards.length} finished samples descend from it` : "";
      told.replaceChildren(document.createTextNode(words[0].toUpperCase() + words.slice(1) + more + "."));
    };
    const blur = () => { tree.classList.remove("focus"); summary(); };
    const summary = () => {
      const best = levels[levels.length - 1].chosen[0];
      const returned = best === undefined ? "" : `, ${number(levels[levels.length - 1].rewards[best])} returned`;
      const bar = document.createElement("span");
      bar.className = "scale";
      told.replaceChildren(`${data.columns[selects.column.value]}: ${rewards.length} rewards in ${levels.length} ${few ? "look" : "looks shown"}${returned}. Reward ${number(low)}`, bar, number(high));
    };
    const first = drawn[drawn.length - 1];
    first.node.setAttribute("tabindex", 0);
    picture.addEventListener("keydown", (event) => {
      const here = drawn.find((d) => d.node === document.activeElement);
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!here || !move) return;
      event.preventDefault();
      const beside = (by) => at(here.l, order[here.l][order[here.l].indexOf(here.r) + by]);
      let next;
      if (few) next = beside(move[0] + move[1]);
      else if (move[1]) next = beside(move[1]);
      else if (move[0] < 0) next = drawn[rows[here.n].parent] ?? at(here.l - 1, 0);
      else next = drawn.find((d) => rows[d.n].parent === here.n) ?? at(here.l + 1, 0);
      if (!next) return;
      here.node.setAttribute("tabindex", -1);
      next.node.setAttribute("tabindex", 0);
      next.node.focus();
    });
    tree.append(picture);
    summary();
  };

  const choose = (choice, { jump = false, note = true } = {}) => {
    for (const [name, select] of Object.entries(selects)) {
      if (choice[name] !== undefined && select.querySelector(`option[value="${CSS.escape(choice[name])}"]`)) select.value = choice[name];
    }
    draw();
    if (note) history.replaceState(null, "", address());
    if (jump) $("genealogy").scrollIntoView({ behavior: note && !still.matches ? "smooth" : "instant" });
  };
  const fromAddress = () => {
    const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    if ("prompt" in given || "column" in given) choose(given, { jump: true, note: false });
  };
  for (const shot of shots) {
    shot.addEventListener("click", (event) => {
      event.preventDefault();
      choose({ prompt: shot.dataset.prompt, column: shot.dataset.column, budget: $("show-budget").value }, { jump: true });
    });
  }
  for (const select of Object.values(selects)) select.addEventListener("change", () => choose({}));
  window.addEventListener("hashchange", fromAddress);
  show();
  // the first sampler that has generations to show
  const keysOf = Object.keys(data.genealogies);
  const rich = keysOf.find((key) => data.genealogies[key].levels.some((level) => level.parents.length)) ?? keysOf[0];
  if (rich) {
    const [budget, prompt, column] = rich.split("/");
    choose({ budget, prompt, column }, { note: false });
  }
  fromAddress();
})();
