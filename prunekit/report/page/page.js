"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const chosen = { task: "", backbone: "", budget: "", hidden: new Set() };

// -- small tools ------------------------------------------------------------------------------------

function el(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "path", "circle", "text", "rect", "polyline", "title"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const fixed = (value, digits) => (value === null || value === undefined ? "" : value.toFixed(digits));
const signed = (value, digits) => {
  if (value === null) return "";
  const text = value.toFixed(digits);
  return +text === 0 ? (0).toFixed(digits) : (value > 0 ? "+" : "") + text;
};
const spread = (found, digits, unit = "") =>
  found === null ? "" : fixed(found.mean, digits) + unit + (found.half === null ? "" : " ± " + fixed(found.half, digits));
const unique = (values) => [...new Set(values)];
const times = (value) => fixed(value, 2) + "x";

const methods = unique(data.configs.map((config) => config.method));
// a method's settings have one colour, and one letter, in every task and at every budget
const kindOf = (config) => JSON.stringify([config.method, config.own]);
const kinds = unique(data.configs.filter((config) => !config.is_dense).map(kindOf));
function colour(config) {
  if (config.is_dense) return "var(--grey)";
  const at = kinds.indexOf(kindOf(config)), base = `var(--c${at % 8})`;
  return at < 8 ? base : `color-mix(in srgb, ${base} 55%, var(--ink))`;
}
const dot = (config) => el("span", { class: "dot", style: `background:${colour(config)}` });
const letters = Object.fromEntries(methods.map((method) => [method, unique(data.configs.filter((config) => config.method === method && config.own).map((config) => config.own))]));
function letter(config) {
  const at = letters[config.method].indexOf(config.own);
  return at < 0 ? "" : at < 26 ? String.fromCharCode(97 + at) : String(at + 1);
}

function label(config, withTask = false) {
  const parts = [config.method];
  if (!config.is_dense) parts.push(config.budget);
  if (config.own) parts.push(letter(config));
  if (withTask) parts.push("on", config.task);
  if (withTask && unique(data.configs.map((other) => other.backbone)).length > 1) parts.push("with", config.backbone);
  return parts.join(" ");
}

const inPlace = (item) =>
  (!chosen.task || item.task === chosen.task) && (!chosen.backbone || item.backbone === chosen.backbone);
function visible(config) {
  const budget = !chosen.budget || config.is_dense || config.budget === chosen.budget;
  return inPlace(config) && budget && !chosen.hidden.has(config.method);
}
const shown = () => data.configs.map((config, i) => ({ ...config, i })).filter(visible);
const runsOf = (i) => data.runs.filter((run) => run.config === i);
const placesOf = (items) => unique(items.map((item) => JSON.stringify([item.task, item.backbone]))).map((key) => JSON.parse(key));
const several = (key) => unique(data.configs.map((config) => config[key])).length > 1;
const placeName = (task, backbone) => (several("backbone") ? `${task}, ${backbone}` : task);

function put(id, lead, ...body) {
  const section = document.getElementById(id);
  section.querySelector(".lead").textContent = lead;
  section.querySelector(".body").replaceChildren(...body.flat(Infinity));
}

function table(heads, lines, kind = "first") {
  const cell = (tag, content) => {
    const given = content !== null && typeof content === "object" && !(content instanceof Node) ? content : { text: content };
    return el(tag, { class: given.class, style: given.style }, given.text ?? "");
  };
  const head = el("tr", {}, heads.map((content) => cell("th", content)));
  const body = lines.map((line) => el("tr", { class: line.kind }, line.cells.map((content) => cell("td", content))));
  return el("div", { class: "scroll", tabindex: 0 }, el("table", { class: kind }, el("thead", {}, head), el("tbody", {}, body)));
}
const number = (text, extra = "") => ({ text, class: "n " + extra });
const nothing = (text) => el("p", { class: "quiet" }, text);

// -- one floating hint for charts and tokens -----------------------------------------------------------

const tip = document.getElementById("tip");
function hint(event) {
  const target = event.target.closest ? event.target.closest("[data-tip]") : null;
  if (!target) { tip.hidden = true; return; }
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const left = Math.min(Math.max(4, box.left), innerWidth - tip.offsetWidth - 4);
  const above = box.top - tip.offsetHeight - 6;
  tip.style.left = left + "px";
  tip.style.top = (above > 0 ? above : box.bottom + 6) + "px";
}
document.addEventListener("mouseover", hint);
document.addEventListener("focusin", hint);
document.addEventListener("click", hint);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// -- charts ---------------------------------------------------------------------------------------------

function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(+value.toFixed(10));
  return found;
}

function chart(title, across, up, x, y) {
  const [width, height, left, bottom, top, right] = [460, 290, 56, 40, 10, 12];
  const pad = (range, share) => {
    const gap = (range[1] - range[0]) * share || Math.abs(range[0]) * 0.05 || 1;
    return [range[0] - gap, range[1] + gap];
  };
  const [x0, x1] = pad(x, 0.05), [y0, y1] = pad(y, 0.08);
  const px = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - right);
  const py = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - bottom - top);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const value of ticks(y0, y1)) {
    svg.append(el("line", { x1: left, x2: width - right, y1: py(value), y2: py(value), class: "axis" }));
    svg.append(el("text", { x: left - 6, y: py(value) + 4, "text-anchor": "end" }, String(value)));
  }
  for (const value of ticks(x0, x1)) svg.append(el("text", { x: px(value), y: height - bottom + 16, "text-anchor": "middle" }, String(value)));
  svg.append(el("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }));
  svg.append(el("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, across));
  svg.append(el("text", { x: 12, y: (height - bottom + top) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(height - bottom + top) / 2})` }, up));
  return { node: el("figure", {}, title ? el("figcaption", {}, title) : null, svg), svg, px, py, x0, x1, y0, y1 };
}
const range = (values) => [Math.min(...values), Math.max(...values)];
const point = (at, x, y, r, fill, text, solid, by = 0) =>
  at.svg.append(el("circle", { cx: at.px(x) + by, cy: at.py(y), r, fill, "fill-opacity": solid ? 1 : 0.35, stroke: fill, "data-tip": text, tabindex: solid ? 0 : null }));

// names beside dots: those that would lie on each other are moved apart, from the top down
function names(at, named) {
  const [width, right, size] = [460, 12, 11], placed = [];
  for (const { x, y, edge, text, colour: fill } of named.map((one) => ({ ...one, x: at.px(one.x), y: at.py(one.y) + 4 })).sort((a, b) => a.y - b.y)) {
    const wide = 6.2 * text.length, gap = edge + 9, before = x + gap + wide > width - right;
    const from = before ? x - gap - wide : x + gap;
    let line = y;
    for (const other of placed) if (from < other.from + other.wide && other.from < from + wide && Math.abs(line - other.line) < size + 1) line = other.line + size + 1;
    placed.push({ from, wide, line });
    at.svg.append(el("text", { x: before ? x - gap : x + gap, y: line, "text-anchor": before ? "end" : "start", class: "name", style: `fill:${fill}` }, text));
  }
}
// dots at one place across stand side by side: how far each is moved, and how far the outermost of its place
function apart(items, across) {
  const groups = {};
  for (const item of items) (groups[across(item).toFixed(2)] ??= []).push(item);
  const by = new Map();
  for (const group of Object.values(groups)) {
    const step = Math.min(8, 60 / group.length), edge = (step * (group.length - 1)) / 2;
    group.forEach((item, i) => by.set(item, { by: i * step - edge, edge }));
  }
  return by;
}

// -- the sections ------------------------------------------------------------------------------------------

function filters() {
  const bar = el("div");
  for (const [key, name] of [["task", "Task"], ["backbone", "Backbone"], ["budget", "Budget"]]) {
    const options = unique(data.configs.filter((config) => key !== "budget" || !config.is_dense).map((config) => config[key]));
    if (options.length < 2) continue;
    const select = el("select", { id: `filter-${key}`, onchange: (event) => { chosen[key] = event.target.value; draw(); } });
    select.append(el("option", { value: "" }, "all"), ...options.map((option) => el("option", { value: option }, option)));
    bar.append(el("label", {}, name, select));
  }
  for (const method of methods) {
    const chip = el("button", { class: "chip", type: "button", "aria-pressed": "true", "data-method": method }, dot(data.configs.find((config) => config.method === method)), method);
    chip.addEventListener("click", () => {
      if (!chosen.hidden.delete(method)) chosen.hidden.add(method);
      chip.setAttribute("aria-pressed", String(!chosen.hidden.has(method)));
      draw();
    });
    bar.append(chip);
  }
  document.getElementById("filters").replaceChildren(bar);
}

function about() {
  const finished = data.runs.length;
  const parts = [`${finished} finished runs of ${data.configs.length} configurations`, `prunekit ${data.version}`, ...data.hardware];
  document.getElementById("about").textContent = parts.join(" · ");
}

// the measured speed-up of a configuration, at the largest batch size
function fastest(config) {
  const rows = runsOf(config.i).flatMap((run) => run.speed);
  const size = Math.max(...rows.map((row) => row.batch_size));
  const found = rows.filter((row) => row.batch_size === size).map((row) => row.vs_packed);
  if (!found.length) return "speed not measured";
  const ratio = found.reduce((a, b) => a + b) / found.length;
  return `${ratio >= 1.02 ? `${fixed(ratio, 1)}x faster` : "not faster"} ${size > 1 ? `in batches of ${size}` : "one at a time"}`;
}

function verdict() {
  const tiles = placesOf(shown()).flatMap(([task, backbone]) => {
    const here = shown().filter((config) => config.task === task && config.backbone === backbone && !config.is_dense);
    return unique(here.map((config) => config.budget)).map((budget) => {
      const rivals = here.filter((config) => config.budget === budget);
      const best = rivals.find((config) => data.marks[config.i].best) ?? (rivals.length === 1 ? rivals[0] : null);
      const where = `${several("task") || several("backbone") ? placeName(task, backbone) + ", " : ""}${budget === "own" ? "own settings" : budget}`;
      if (!best) return el("div", { class: "tile" }, el("span", { class: "quiet" }, where), el("b", {}, "no winner"), el("p", {}, `${rivals.length} with the same score, or the best is hidden`));
      const others = rivals.length - 1, worse = rivals.filter((config) => data.marks[config.i].p !== null && data.marks[config.i].p < 0.05).length;
      const drop = best.drop && best.drop.n ? `${signed(best.drop.mean, 1)} points` : "";
      return el("div", { class: "tile", style: `border-color:${colour(best)}` }, el("span", { class: "quiet" }, rivals.length > 1 ? `best: ${where}` : where),
        el("b", {}, `${best.method} ${letter(best)}`.trim()), el("p", {}, [`${fixed(best.score.mean, 2)} ${best.metric}`, drop, fastest(best)].filter(Boolean).join(", ")),
        others ? el("p", { class: "quiet" }, `significantly worse: ${worse} of ${others} other${others > 1 ? "s" : ""}`) : null);
    });
  });
  put("verdict", "", tiles.length ? tiles : nothing("No pruned run matches the filters."));
}

function overview() {
  const sizes = unique(data.runs.flatMap((run) => run.speed.map((row) => row.batch_size))).sort((a, b) => a - b);
  const heads = ["method", ...(several("task") ? ["task"] : []), ...(several("backbone") ? ["backbone"] : []), "budget", number("score"), number("against dense"),
    number("fewer FLOPs"), ...sizes.map((size) => number(`faster, b${size}`)), number("fewer, padded"), number("seeds"), "metric"];
  const lines = shown().map((config) => {
    const mark = data.marks[config.i];
    const score = spread(config.score, 2) + (mark.p !== null && mark.p < 0.05 ? "*" : "");
    const drop = config.is_dense ? null : config.drop;
    const faster = sizes.map((size) => {
      const found = runsOf(config.i).flatMap((run) => run.speed.filter((row) => row.batch_size === size).map((row) => row.vs_packed));
      return number(found.length ? times(found.reduce((a, b) => a + b) / found.length) : "");
    });
    return { kind: config.is_dense ? "dense" : "", cells: [
      el("span", {}, dot(config), " ", config.method, config.own ? el("b", {}, ` ${letter(config)}`) : ""),
      ...(several("task") ? [config.task] : []), ...(several("backbone") ? [config.backbone] : []),
      config.is_dense ? "" : config.budget + (config.missed ? " †" : ""),
      number(mark.best ? el("b", {}, score) : score), number(drop ? signed(drop.mean, 2) : "", drop && drop.mean < -1 ? "bad" : ""),
      number(times(config.reduction.mean)), ...faster, number(times(config.padded.mean)), number(String(config.score.n)), config.metric] };
  });
  put("overview", "Mean over seeds ± half the 95 % interval. Bold: best of its task and budget. * worse than that at p < 0.05 (paired t-test over common seeds, Welch's " +
    "where they share fewer than two; corrected by Holm). † a run missed its budget. FLOPs against the same texts unpadded, and padded to the task's length; speed against the packed dense model.",
    lines.length ? [table(heads, lines), key()] : nothing("No run matches the filters."));
}

// what the letters of configurations stand for: the keys that were swept
function key() {
  const lettered = unique(shown().filter((config) => config.own).map(kindOf)).map((kind) => data.configs.find((config) => kindOf(config) === kind));
  if (!lettered.length) return [];
  const lines = lettered.map((config) => ({ cells: [el("span", {}, dot(config), " ", `${config.method} `, el("b", {}, letter(config))), { text: config.own, class: "wrap" }] }));
  return [el("h3", {}, "Key"), table(["configuration", "settings in which it differs"], lines)];
}

function fairness() {
  const found = data.lint.filter((item) => several("backbone") || several("task") ? !chosen.task || item.where.startsWith(chosen.task + ",") : true);
  const lead = found.length ? "Differences between the runs compared here, other than the method, the gravest first:" : `No differences found in: ${data.checked}.`;
  const many = unique(data.lint.map((item) => item.where)).length > 1;
  put("fairness", lead, unique(found.map((item) => item.gravity)).sort().flatMap((gravity) => [el("h3", {}, data.gravities[gravity]),
    el("ul", { class: "list" }, found.filter((item) => item.gravity === gravity).map((item) =>
      el("li", {}, el("b", {}, item.subject), many ? ` (${item.where}): ` : ": ", item.sentence)))]));
}

function pareto() {
  const figures = placesOf(shown()).map(([task, backbone]) => {
    const here = shown().filter((config) => config.task === task && config.backbone === backbone);
    const runs = here.flatMap((config) => runsOf(config.i));
    const at = chart(placeName(task, backbone), "times fewer FLOPs than unpadded", `${here[0].metric}, %`,
      range(runs.map((run) => run.reduction).concat([1])), range(runs.map((run) => run.score)));
    const by = apart(here, (config) => config.reduction.mean);
    for (const config of here) for (const run of runsOf(config.i))
      point(at, run.reduction, run.score, 3, colour(config), `${label(config)}, seed ${run.seed}\n${fixed(run.score, 2)} at ${times(run.reduction)}`, false, by.get(config).by);
    const front = here.filter((one) => !here.some((other) => other !== one && other.reduction.mean >= one.reduction.mean - 1e-9 && other.score.mean >= one.score.mean - 1e-9 &&
      (other.reduction.mean > one.reduction.mean + 1e-9 || other.score.mean > one.score.mean + 1e-9))).sort((a, b) => a.reduction.mean - b.reduction.mean);
    at.svg.append(el("polyline", { class: "guide front", points: front.map((config) => `${at.px(config.reduction.mean) + by.get(config).by},${at.py(config.score.mean)}`).join(" ") }));
    for (const config of here)
      point(at, config.reduction.mean, config.score.mean, 6, colour(config), `${label(config)}, mean of ${config.score.n}\n${spread(config.score, 2)} at ${times(config.reduction.mean)}`, true, by.get(config).by);
    const named = here.length <= 12 ? here : front; // more names than that hide what they name
    names(at, named.map((config) => ({ x: config.reduction.mean, y: config.score.mean, edge: by.get(config).edge, colour: colour(config), text: `${config.method} ${letter(config)}`.trim() })));
    return at.node;
  });
  put("pareto", "Small dots are seeds, large ones their mean; the dotted line joins the means that no other beats in both. Right is cheaper, up is better. Dots at one place across stand side by side; point at one for its numbers.",
    figures.length ? figures : nothing("No run matches the filters."));
}

function layers() {
  const parts = placesOf(shown()).map(([task, backbone]) => {
    const here = shown().filter((config) => config.task === task && config.backbone === backbone && !config.is_dense);
    if (!here.length) return null;
    const heads = [{ text: "", class: "name" }, ...here[0].kept.map((_, i) => number(String(i)))];
    const lines = here.map((config) => ({ cells: [{ text: label(config), class: "name" }, ...config.kept.map((share) => {
      const text = fixed(100 * share, 0) + " %";
      return { text, style: `background:rgb(var(--heat) / ${(0.06 + 0.84 * share).toFixed(2)});color:${share > 0.6 ? "#fff" : "inherit"}` };
    })] }));
    return [el("h3", {}, placeName(task, backbone)), table(heads, lines, "heat")];
  });
  const found = parts.filter((part) => part !== null).flat();
  put("layers", "Share of a text's tokens that enter the feed-forward half of each layer, on the test, mean over texts and seeds.", found.length ? found : nothing("No pruned run matches the filters."));
}

let curveOf = 0;
function budget() {
  const heads = ["run", number("asked"), number("on validation"), number("error"), ""];
  const here = shown().filter((config) => !config.is_dense);
  const runs = here.flatMap((config) => runsOf(config.i).map((run) => ({ ...run, name: `${label(config, several("task"))}, seed ${run.seed}` })));
  const lines = runs.map((run) => {
    const error = run.asked === null || run.reached === null ? null : 100 * (run.asked / run.reached - 1);
    const missed = run.status === "budget_missed";
    return { cells: [run.name, number(run.asked === null ? "" : times(run.asked)), number(run.reached === null ? "" : times(run.reached)),
      number(error === null ? "" : `${signed(error, 1)} % FLOPs`, missed ? "bad" : ""), { text: missed ? "missed" : "met", class: missed ? "bad" : "good" }] };
  });
  const curved = runs.filter((run) => run.curves && Object.values(run.curves).some((curve) => curve.length > 1));
  const parts = [];
  if (curved.length) {
    curveOf = Math.min(curveOf, curved.length - 1);
    const run = curved[curveOf];
    const select = el("select", { id: "curve", onchange: (event) => { curveOf = +event.target.value; budget(); } },
      curved.map((one, i) => el("option", { value: i, selected: i === curveOf }, one.name)));
    const all = Object.values(run.curves).flat();
    const at = chart("", "optimiser step", "times fewer FLOPs", range(all.map((p) => p[0])), range(all.map((p) => p[1]).concat(run.asked ?? [])));
    const kinds = [["target", "var(--c1)", "4 4"], ["expected", "var(--c0)", ""], ["measured", "var(--ink)", ""]];
    for (const [kind, colour, dash] of kinds) {
      const points = run.curves[kind];
      if (kind !== "measured") at.svg.append(el("polyline", { fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash, points: points.map(([x, y]) => `${at.px(x)},${at.py(y)}`).join(" ") }));
      else for (const [x, y] of points) point(at, x, y, 4, colour, `measured on validation: ${times(y)} after step ${x}`, true);
    }
    if (run.asked !== null) at.svg.append(el("line", { class: "guide", x1: at.px(at.x0), x2: at.px(at.x1), y1: at.py(run.asked), y2: at.py(run.asked) }));
    const legend = kinds.filter(([kind]) => run.curves[kind].length).map(([kind, colour]) => el("span", { class: "chip" }, el("span", { class: "dot", style: `background:${colour}` }), kind));
    parts.push(el("div", { class: "bar" }, el("label", {}, "Training of", select), legend), at.node);
  }
  put("budget", "What was asked for, and what validation measured at the end; a negative error means fewer FLOPs than asked for. Trained runs show how they got there.",
    lines.length ? [...parts, el("details", { open: lines.length < 13 }, el("summary", {}, `${lines.length} runs`), table(heads, lines))] : nothing("No pruned run matches the filters."));
}

function speed() {
  const runs = shown().filter((config) => !config.is_dense).flatMap((config) => runsOf(config.i).flatMap((run) => run.speed.map((row) => ({ ...row, run, config }))));
  const sizes = unique(runs.map((row) => row.batch_size)).sort((a, b) => a - b);
  const figures = sizes.map((size) => {
    const here = runs.filter((row) => row.batch_size === size);
    const values = here.flatMap((row) => [row.run.reduction, row.vs_packed]).concat([1]);
    const at = chart(`batch of ${size}`, "times fewer FLOPs", "times faster", range(here.map((row) => row.run.reduction).concat([1])), range(values));
    const end = Math.min(at.x1, at.y1), start = Math.max(at.x0, at.y0);
    at.svg.append(el("line", { class: "guide", x1: at.px(start), y1: at.py(start), x2: at.px(end), y2: at.py(end) }));
    const by = apart(here, (row) => row.run.reduction);
    for (const row of here)
      point(at, row.run.reduction, row.vs_packed, 5, colour(row.config),
        `${label(row.config, several("task"))}, seed ${row.run.seed}\n${times(row.vs_packed)} where the FLOPs say ${times(row.run.reduction)}\nthe same model twice: ${times(row.noise)}`, true, by.get(row).by);
    const firsts = unique(here.map((row) => row.config.i)).map((i) => here.find((row) => row.config.i === i));
    if (firsts.length <= 12)
      names(at, firsts.map((row) => ({ x: row.run.reduction, y: row.vs_packed, edge: by.get(row).edge, colour: colour(row.config), text: label(row.config, several("task")) })));
    return at.node;
  });
  put("speed", "CPU time of the packed dense model over that of the pruned one. On the dotted line every FLOP saved is time saved; below 1 the dense model is faster.",
    figures.length ? figures : nothing("No run here measured speed (bench.enabled=true does)."));
}

function agreement() {
  const parts = [];
  for (const place of data.agreement.filter(inPlace)) {
    for (const cost of unique(place.pairs.map(([left]) => data.configs[left].budget))) {
      const pairs = place.pairs.filter(([left, right]) => data.configs[left].budget === cost && visible(data.configs[left]) && visible(data.configs[right]));
      const ids = unique(pairs.flatMap(([left, right]) => [left, right])).sort((a, b) => a - b);
      if (!ids.length) continue;
      const many = ids.length > 5; // then a column has its row's number
      const name = (i) => (many ? `${ids.indexOf(i) + 1}  ` : "") + `${data.configs[i].method} ${letter(data.configs[i])}`.trim();
      const find = (a, b) => pairs.find(([left, right]) => (left === a && right === b) || (left === b && right === a));
      const lines = ids.map((a) => ({ cells: [{ text: name(a), class: "name" }, ...ids.map((b) => {
        const found = find(a, b);
        return found ? { text: fixed(found[2], 2), style: `background:rgb(var(--heat) / ${(0.06 + 0.84 * found[2]).toFixed(2)});color:${found[2] > 0.6 ? "#fff" : "inherit"}` } : { text: "" };
      })] }));
      parts.push(el("div", {}, el("h3", {}, `${placeName(place.task, place.backbone)}, ${cost}`), table([{ text: "", class: "name" }, ...ids.map((i, at) => number(many ? `${at + 1}` : name(i)))], lines, "heat")));
    }
  }
  put("agreement", "Overlap of the kept tokens: both keep over either keeps, mean over texts and layers, same seed, without special tokens and texts that both keep whole. 1 is the same choice. " +
    "On the diagonal a method against itself with other seeds.", parts.length ? el("div", { class: "charts" }, parts) : nothing("No two runs here store which tokens they keep (examples=1000 does)."));
}

function shares(id, lead, found, what) {
  const parts = found.filter(inPlace).map((place) => {
    const here = place.configs.filter((entry) => visible(data.configs[entry.config]));
    if (!here.length) return null;
    const heads = [what, ...place.names.map((name, i) => number(`${name} (${place.rows[i]})`)), number("worst change")];
    const line = (text, values, dense) => {
      const changes = dense ? values.map((value, i) => value - dense[i]) : null;
      return { kind: dense ? "" : "dense", cells: [text, ...values.map((value, i) => number(fixed(value, 1), changes && changes[i] < -5 ? "bad" : "")), number(changes ? signed(Math.min(...changes), 1) : "")] };
    };
    const lines = [line("dense", here[0].dense, null), ...here.map((entry) => line(label(data.configs[entry.config]), entry.pruned, entry.dense))];
    return [el("h3", {}, placeName(place.task, place.backbone)), table(heads, lines)];
  }).filter((part) => part !== null).flat();
  put(id, lead, parts.length ? parts : nothing("No run here stores its predictions (examples=1000 does), or the task is a regression."));
}

function flips() {
  const lines = shown().flatMap((config) => runsOf(config.i).filter((run) => run.flips).map((run) => {
    const { rows, lost, won, both_wrong } = run.flips;
    return { cells: [`${label(config, several("task"))}, seed ${run.seed}`, number(String(rows)), number(`${lost}`), number(`${won}`), number(`${both_wrong}`),
      number(`${signed((100 * (won - lost)) / rows, 2)} points`), number(`${fixed((100 * (won + lost)) / rows, 1)} %`)] };
  }));
  put("flips", "Test texts whose answer pruning turned from right to wrong and from wrong to right. A small change of the score can hide many flips.",
    lines.length ? table(["run", number("texts"), number("right to wrong"), number("wrong to right"), number("wrong in both"), number("net"), number("flipped")], lines)
      : nothing("No run here stores its predictions (examples=1000 does), or the task is a regression."));
}

function failures() {
  const parts = [];
  const missed = data.runs.filter((run) => run.status === "budget_missed").length;
  if (missed) parts.push(el("p", {}, `${missed} finished runs missed their budget; see above.`));
  if (data.unfinished.length)
    parts.push(table(["folder", "state", number("step"), "command"], data.unfinished.map((run) => ({ cells: [run.folder, { text: run.state, class: "wrap" }, number(run.step === null ? "" : String(run.step)), { text: run.command ?? "", class: "wrap" }] }))));
  if (data.problems.length) parts.push(el("ul", { class: "list" }, data.problems.map((text) => el("li", {}, text))));
  put("failures", parts.length ? "Runs without a result, and what could not be read or compared:" : "Every run that was found is finished and readable.", parts);
}

function commands() {
  const parts = shown().filter((config) => runsOf(config.i).some((run) => run.command)).map((config) => el("details", {}, el("summary", {}, label(config, true)),
    runsOf(config.i).filter((run) => run.command).map((run) => [el("span", { class: "quiet" }, `seed ${run.seed} · ${run.hash}${run.commit ? " · commit " + run.commit : ""} · ${fixed(run.seconds, 0)} s`), el("pre", {}, run.command)])));
  put("commands", "The command of each run. Given again, it finds the stored result, or runs what is missing.", parts.length ? parts : nothing("The runs were read from a results file, which keeps no commands."));
}

// -- the token explorer ----------------------------------------------------------------------------------

const view = { place: 0, left: 0, right: 1, only: "all", find: "", at: 0 };
const level = (sign) => 2 ** ((data.signs.indexOf(sign) - 32) / 4);

function explorer() {
  const focused = document.activeElement ? document.activeElement.id : "";
  drawExplorer();
  const again = focused ? document.getElementById(focused) : null;
  if (again && !again.disabled) again.focus({ preventScroll: true });
}

function drawExplorer() {
  const places = data.explorer;
  if (!places.length) { put("explorer", "", nothing("No run here stores which tokens it keeps (examples=1000 does).")); return; }
  const inside = places.findIndex(inPlace);
  if (!inPlace(places[view.place]) && inside >= 0) Object.assign(view, { place: inside, left: 0, right: 1, at: 0 });
  const place = places[view.place];
  view.left = Math.min(view.left, place.runs.length - 1);
  view.right = Math.min(view.right, place.runs.length - 1);
  const select = (id, name, options, value, change) => el("label", {}, name,
    el("select", { id, onchange: (event) => { change(event.target.value); explorer(); } }, options.map(([key, text]) => el("option", { value: key, selected: String(key) === String(value) }, text))));
  const runName = (run) => `${label(data.configs[run.config])}, seed ${run.seed}`;
  const sides = place.runs.map((run, i) => [i, runName(run)]);
  const wanted = texts(place);
  view.at = Math.max(0, Math.min(view.at, wanted.length - 1));
  const step = (by) => el("button", { type: "button", id: by < 0 ? "previous" : "next", disabled: view.at + by < 0 || view.at + by >= wanted.length,
    onclick: () => { view.at += by; explorer(); } }, by < 0 ? "← previous" : "next →");
  const search = el("input", { type: "search", id: "find", placeholder: "word", value: view.find, "aria-label": "Only texts with this word" });
  search.addEventListener("change", () => { view.find = search.value.trim(); view.at = 0; explorer(); });
  const bar = el("div", { class: "bar" },
    places.length > 1 ? select("place", "Task", places.map((one, i) => [i, placeName(one.task, one.backbone)]), view.place, (value) => Object.assign(view, { place: +value, left: 0, right: 1, at: 0 })) : null,
    select("left", "Left", sides, view.left, (value) => { view.left = +value; view.at = 0; }),
    place.runs.length > 1 ? select("right", "Right", [[-1, "nothing"], ...sides], view.right, (value) => { view.right = +value; view.at = 0; }) : null,
    select("only", "Show", [["all", "all texts"], ["lost", "wrong after pruning, right before"], ["won", "right after pruning, wrong before"], ["apart", "left and right answer differently"]], view.only, (value) => { view.only = value; view.at = 0; }),
    search);
  const body = [bar];
  if (!wanted.length) body.push(nothing("No text matches."));
  else {
    const text = wanted[view.at];
    const truth = place.truths[text];
    body.push(el("div", { class: "bar" }, step(-1), step(1), el("span", { class: "quiet", id: "position" }, `${view.at + 1} of ${wanted.length} · test row ${place.rows[text]} · labelled `, el("b", {}, String(truth)))));
    body.push(el("div", { class: "sides" }, [view.left, view.right].filter((side, i) => side >= 0 && (i === 0 || side !== view.left)).map((side) => oneSide(place, place.runs[side], text))));
  }
  put("explorer", `Each row is a layer: kept tokens are dark, dropped ones light. Point at a token for its score, the attention that it receives; 1 is uniform attention. ` +
    `${place.rows.length} of ${place.stored} stored texts, first those whose answer pruning changed.`, body);
}

function texts(place) {
  const [left, right] = [place.runs[view.left], place.runs[view.right]];
  const test = {
    all: () => true,
    lost: (i) => [left, right].some((run) => run && run.dense[i] === place.labels[i] && run.predicted[i] !== place.labels[i]),
    won: (i) => [left, right].some((run) => run && run.dense[i] !== place.labels[i] && run.predicted[i] === place.labels[i]),
    apart: (i) => left && right && left.predicted[i] !== right.predicted[i],
  }[view.only];
  const find = view.find.toLowerCase();
  return place.tokens.map((_, i) => i).filter((i) => test(i) && (!find || place.tokens[i].toLowerCase().split(" ").some((piece) => piece.replace(/^(##|Ġ|▁)/, "") === find)));
}

function oneSide(place, run, text) {
  const config = data.configs[run.config];
  const name = (value, which) => (run.said ? run.said[text][which] : place.classes.length ? place.classes[value] : String(value));
  const right = (value) => (place.classes.length ? (value === place.labels[text] ? "good" : "bad") : "");
  const pieces = place.tokens[text].split(" ");
  const marked = pieces.some((piece) => /^[Ġ▁]/.test(piece));
  const depth = [...run.depth[text]].map((sign) => data.signs.indexOf(sign));
  const rows = [];
  let at = 0;
  for (let layer = 0; layer < place.layers; layer += 1) {
    const line = el("div", { class: "tokens" });
    let left = 0;
    pieces.forEach((piece, i) => {
      const starts = marked ? /^[Ġ▁]/.test(piece) || /^[<[]/.test(piece) : !piece.startsWith("##");
      const shownAs = piece.replace(/^(##|Ġ|▁)/, "") || piece;
      const kept = depth[i] > layer;
      left += kept;
      let words = "dropped before this layer";
      if (depth[i] >= layer) { words = `score ${level(run.scores[text][at]).toPrecision(2)}${kept ? "" : ", dropped here"}`; at += 1; }
      if (starts && i) line.append(" ");
      line.append(el("i", { class: kept ? "kept" : "dropped", "data-tip": `${shownAs}\n${words}` }, shownAs));
    });
    rows.push(el("div", { class: "row" }, el("span", {}, `layer ${layer}`, el("br"), `${left} of ${pieces.length}`), line));
  }
  const list = (title, words) => words.length ? [el("h3", {}, title), el("div", { class: "words" }, words.map(([word, count, share]) => el("span", { "data-tip": `${count} times, passes ${fixed(100 * share, 0)} % of the layers` }, word, " ", el("b", {}, fixed(100 * share, 0)))))] : [];
  return el("div", { class: "side" },
    el("h3", {}, dot(config), ` ${label(config)}, seed ${run.seed}`),
    el("p", { class: "verdict" }, "dense says ", el("b", { class: right(run.dense[text]) }, name(run.dense[text], 0)), ", pruned says ", el("b", { class: right(run.predicted[text]) }, name(run.predicted[text], 1))),
    ...rows,
    el("details", {}, el("summary", {}, "Words dropped first and last, over all stored texts"),
      list("Most pruned: share of the layers passed, %", run.pruned_words), list("Most kept", run.kept_words)));
}

// -- all of it ----------------------------------------------------------------------------------------------

function draw() {
  verdict(); overview(); fairness(); pareto(); layers(); budget(); speed(); agreement();
  shares("lengths", "Texts in groups of similar number by their length in tokens (number of texts), % right, mean over seeds; dense is the model that pruning started from. Red: more than 5 points lost.", data.lengths, "tokens");
  shares("labels", "By true label (number of texts), % right, mean over seeds. Red: more than 5 points lost.", data.labels, "label");
  flips(); explorer(); failures(); commands();
}
about(); filters(); draw();
document.body.dataset.ready = "true";
