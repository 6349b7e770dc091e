"use strict";
// The interactive part of the page. Text reaches it through textContent alone, nothing is
// fetched, and the whole state is in the address after the #.

function power(exponent) {
  const digits = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  return "10" + String(exponent).replace(/-/, "⁻").replace(/\d/g, (d) => digits[+d]);
}

// A number above 0 with two or three figures.
function figures(value) {
  if (!(value > 0)) return "0";
  if (value >= 1e6 || value < 1e-3) {
    const [digits, exponent] = value.toExponential(1).split("e");
    return `${digits}·${power(Number(exponent))}`;
  }
  if (value >= 100) return Math.round(value).toLocaleString("en");
  return value >= 10 ? value.toFixed(1) : value.toFixed(value < 1 ? 4 : 2);
}

function signed(value, digits = 3) {
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : (value > 0 ? "+" : "−") + text;
}

function sentences(state, found) {
  const { y, best, before, after, gains } = found;
  const p = (logp, i) => figures(Math.exp(logp[i]));
  const times = state.steps === 1 ? "once" : `${state.steps} times`;
  const name = { sgd: "SGD", momentum: "momentum", rmsprop: "RMSprop", adam: "Adam" };
  const done = state.down ? "Pushing" : "Pulling", way = state.down ? "down" : "up";
  const out = [
    `${done} label ${state.y} of ${state.v} ${way} ${times} (${name[state.opt]}, ` +
    `s = ${figures(state.s)}) takes its probability from ${p(before, y)} to ` +
    `${p(after, y)}.`,
  ];
  const share = gains[best] / -gains[y];
  let favourite = `Its likeliest rival y*, label ${best + 1}, goes from ` +
    `${p(before, best)} to ${p(after, best)}`;
  if (state.down && gains[best] > 0) {
    favourite += share >= 2
      ? `: it gains ${figures(share)} times what label ${state.y} lost, and others pay`
      : `: it gets ${(100 * share).toFixed(share < 0.1 ? 1 : 0)} % of what label ` +
        `${state.y} lost`;
  }
  out.push(`${favourite}.`);
  const others = state.v - 1;
  let who = `${found.rising} of the ${others} other labels ` +
    (found.rising === 1 ? "gains" : "gain");
  if (found.rising === 0) who = `All ${others} other labels lose`;
  if (found.rising === others) who = `All ${others} other labels gain`;
  if (found.exact && state.down && found.tau > 0) {
    who += `; to gain, one has to be likelier than τ = ${figures(found.tau)}`;
  }
  out.push(`${who}.`);
  return out;
}

const LIMITS = { v: [10, 50, 1000], opt: ["sgd", "momentum", "rmsprop", "adam"] };
const FIRST = { v: 50, std: 2, y: 40, down: true, s: 1, steps: 1, opt: "sgd", log: true };

const within = (value, low, high) => Math.min(high, Math.max(low, value));

// A state with every value in its range, whatever the address says.
function sane(given) {
  const number = (key, low, high) => {
    const value = Number(given[key]);
    const known = given[key] !== "" && Number.isFinite(value);
    return within(known ? value : FIRST[key], low, high);
  };
  const of = (key) => {
    const wanted = typeof FIRST[key] === "number" ? Number(given[key]) : given[key];
    return LIMITS[key].includes(wanted) ? wanted : FIRST[key];
  };
  const yes = (key) => (given[key] === undefined ? FIRST[key] : given[key] !== "0");
  const v = of("v");
  return {
    v, opt: of("opt"), down: yes("down"), log: yes("log"),
    std: number("std", 0, 6), s: number("s", 0.01, 10),
    y: within(Math.round(number("y", 1, v)), 1, v),
    steps: Math.round(number("steps", 1, 200)),
  };
}

function read(hash) {
  return sane(Object.fromEntries(new URLSearchParams(hash.replace(/^#/, ""))));
}

function write(state) {
  const flat = { ...state, down: Number(state.down), log: Number(state.log) };
  return "#" + new URLSearchParams(flat).toString();
}

function make(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
  if (text !== undefined) node.textContent = text;
  return node;
}

// Where the bars stand; heights are probabilities on a linear or a log scale.
function scale(state, found, width) {
  const box = { left: 52, right: width - 8, top: 18, bottom: 262 };
  const shown = [...found.before, ...found.after.filter((_, i) => i !== found.y)];
  const least = shown.reduce((a, b) => Math.min(a, b), 0);
  const most = [...shown, found.after[found.y]].reduce((a, b) => Math.max(a, b), -800);
  const low = state.log ? least - 0.06 * (most - least) - 0.01 : 0;
  const high = state.log ? Math.min(0, most + 0.05) : Math.exp(most) * 1.05;
  const at = (value) =>
    box.bottom - (within(value, low, high) - low) / (high - low) * (box.bottom - box.top);
  const height = (logp) => at(state.log ? logp : Math.exp(logp));
  return { ...box, low, high, at, height, step: (box.right - box.left) / state.v };
}

function ticks(state, chart) {
  const out = [];
  if (!state.log) {
    const rough = chart.high / 4, unit = 10 ** Math.floor(Math.log10(rough));
    const every = unit * [1, 2, 5, 10].find((k) => k * unit >= rough);
    for (let value = 0; value <= chart.high; value += every) {
      out.push([value, String(Number(value.toPrecision(3)))]);
    }
    return out;
  }
  const last = Math.floor(chart.high / Math.LN10), first = Math.ceil(chart.low / Math.LN10);
  const every = Math.max(1, Math.ceil((last - first + 1) / 6));
  for (let k = last; k >= first; k -= every) {
    out.push([k * Math.LN10, k > -4 ? String(Number((10 ** k).toPrecision(1))) : power(k)]);
  }
  if (out.length < 2) {
    [chart.low, chart.high].forEach((value) => out.push([value, figures(Math.exp(value))]));
  }
  return out;
}

function bars(indices, logp, chart, share) {
  const pad = chart.step * (1 - share) / 2;
  return indices.map((i) => {
    const x = chart.left + i * chart.step + pad, top = chart.height(logp[i]);
    return `M${x.toFixed(2)} ${chart.bottom}V${top.toFixed(2)}` +
      `h${(chart.step * share).toFixed(2)}V${chart.bottom}z`;
  }).join("");
}

function draw(svg, state, found) {
  const width = Math.max(320, svg.parentNode.clientWidth || 1104);
  const chart = scale(state, found, width);
  const nodes = ticks(state, chart).flatMap(([value, name]) => {
    const y = chart.at(value).toFixed(1);
    return [
      make("line", { x1: chart.left, x2: chart.right, y1: y, y2: y, class: "grid" }),
      make("text", { x: chart.left - 8, y: Number(y) + 4, class: "tick" }, name),
    ];
  });
  const all = found.before.map((_, i) => i);
  const groups = [
    ["loses", found.groups.down], ["gains", found.groups.up],
    ["best", [found.best]], [state.down ? "pushed" : "pulled", [found.y]],
  ];
  nodes.push(make("path", { d: bars(all, found.before, chart, 0.94), class: "before" }));
  groups.forEach(([kind, members]) =>
    nodes.push(make("path", { d: bars(members, found.after, chart, 0.5), class: kind })));
  const tau = found.exact && found.tau > 0 ? chart.height(Math.log(found.tau)) : null;
  if (tau !== null && tau > chart.top && tau < chart.bottom) {
    nodes.push(
      make("line", { x1: chart.left, x2: chart.right, y1: tau, y2: tau, class: "tau" }),
      make("text", { x: chart.right, y: tau - 5, class: "end" }, "τ"));
  }
  [["y*", found.best], ["y", found.y]].forEach(([name, i]) => {
    const top = Math.min(chart.height(found.before[i]), chart.height(found.after[i]));
    const x = chart.left + (i + 0.5) * chart.step;
    nodes.push(make("text", { x, y: Math.max(12, top - 5), class: "name" }, name));
  });
  nodes.push(make("text", { x: (chart.left + chart.right) / 2, y: 286, class: "axis" },
    "labels, likeliest first"));
  svg.setAttribute("viewBox", `0 0 ${width} 296`);
  svg.setAttribute("aria-label", sentences(state, found).join(" "));
  svg.replaceChildren(...nodes);
  return chart;
}

function rows(state, found) {
  const total = (logp, group) => sum(group.map((i) => Math.exp(logp[i])));
  const row = (name, group) => {
    const before = total(found.before, group), after = total(found.after, group);
    const gain = sum(group.map((i) => found.gains[i]));
    const size = Math.abs(gain);
    const text = size === 0 ? "0" : (gain > 0 ? "+" : "−") + figures(size);
    const ratio = before > 0 && after > 0 ? signed(Math.log(after / before)) : "";
    return group.length === 0
      ? [name, "", "", "", ""]
      : [name, figures(before), figures(after), text, ratio];
  };
  const single = (name, i) => {
    const cells = row(name, [i]);
    cells[4] = signed(found.ratio[i]);
    return cells;
  };
  return [
    single(`y: label ${found.y + 1}`, found.y),
    single(`y*: label ${found.best + 1}`, found.best),
    row(`others that gain: ${found.groups.up.length}`, found.groups.up),
    row(`others that lose: ${found.groups.down.length}`, found.groups.down),
  ];
}

function fill(body, lines) {
  body.replaceChildren(...lines.map((cells) => {
    const tr = document.createElement("tr");
    cells.forEach((cell) => {
      const td = document.createElement("td");
      td.textContent = cell;
      tr.append(td);
    });
    return tr;
  }));
}

function start() {
  const get = (id) => document.getElementById(id);
  const svg = get("bars");
  let state = read(location.hash), chart = null;

  function show() {
    const found = outcome(state);
    get("v").value = String(state.v);
    get("std").value = String(state.std);
    get("std-value").textContent = state.std.toFixed(2);
    get("s").value = String(Math.log10(state.s));
    get("s-value").textContent = figures(state.s);
    get("y").value = String(state.y);
    get("y").max = String(state.v);
    get("down").value = state.down ? "1" : "0";
    get("log").value = state.log ? "1" : "0";
    get("opt").value = state.opt;
    get("steps").value = String(state.steps);
    get("said").textContent = sentences(state, found).join(" ");
    fill(get("who"), rows(state, found));
    chart = draw(svg, state, found);
  }

  function change(values) {
    state = sane({ ...JSON.parse(JSON.stringify(state)), ...values,
      down: values.down ?? (state.down ? "1" : "0"),
      log: values.log ?? (state.log ? "1" : "0") });
    history.replaceState(null, "", write(state));
    show();
  }

  ["v", "std", "down", "opt", "steps", "log", "y"].forEach((id) => {
    get(id).addEventListener(id === "std" ? "input" : "change",
      () => change({ [id]: get(id).value }));
  });
  get("s").addEventListener("input", () => change({ s: 10 ** Number(get("s").value) }));
  [["peak", () => 1], ["middle", () => Math.ceil(state.v / 2)], ["valley", () => state.v]]
    .forEach(([id, rank]) => get(id).addEventListener("click", () => change({ y: rank() })));
  svg.addEventListener("click", (event) => {
    const area = svg.getBoundingClientRect();
    const x = (event.clientX - area.left) * svg.viewBox.baseVal.width / area.width;
    change({ y: Math.floor((x - chart.left) / chart.step) + 1 });
  });
  addEventListener("hashchange", () => { state = read(location.hash); show(); });
  addEventListener("resize", show);
  get("try-controls").hidden = false;
  show();
}

if (typeof document !== "undefined") start();
