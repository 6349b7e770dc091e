"use strict";
// The formulas are those of step.py, in its order of operations; a test holds
// them together.

const MOMENTUM = 0.9, ALPHA = 0.99, BETAS = [0.9, 0.999], EPSILON = 1e-8;

// Logits in descending order: quantiles of a logistic law with this standard deviation.
function spread(labels, std) {
  const unit = (std * Math.sqrt(3)) / Math.PI;
  return Array.from({ length: labels }, (_, i) =>
    unit * Math.log((labels - i - 0.5) / (i + 0.5)));
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

function logSoftmax(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const size = Math.log(sum(logits.map((z) => Math.exp(z - top))));
  return logits.map((z) => z - top - size);
}

// G = pi - e_y; entry y is minus the sum of all others, so no digit is cancelled.
function residual(logp, y) {
  const out = logp.map((value, i) => (i === y ? 0 : Math.exp(value)));
  out[y] = -sum(out);
  return out;
}

// log sum_j pi_j exp(power_j), exact also where all powers are tiny.
function logMean(logp, power) {
  const less = sum(logp.map((value, j) => Math.exp(value) * Math.expm1(power[j])));
  if (less >= -0.5) return Math.log1p(less);
  const both = logp.map((value, j) => value + power[j]);
  const top = both.reduce((a, b) => Math.max(a, b), -Infinity);
  return top + Math.log(sum(both.map((value) => Math.exp(value - top))));
}

// log(pi' / pi) of one step on y; s > 0 pushes it down.
function logRatio(logp, y, s) {
  const push = residual(logp, y).map((g) => s * g);
  const top = push.reduce((a, b) => Math.max(a, b), -Infinity);
  const all = logMean(logp, push.map((p) => p - top));
  const out = push.map((p) => p - top - all);
  out[y] = -logMean(logp, push.map((p) => p - push[y]));
  return out;
}

// tau: pushed down, label i other than y rises if and only if pi_i > tau.
function threshold(logp, y, s) {
  const g = residual(logp, y);
  if (s === 0) return sum(g.map((value, j) => Math.exp(logp[j]) * value));
  const push = g.map((value) => s * value);
  const top = push.reduce((a, b) => Math.max(a, b), -Infinity);
  return (top + logMean(logp, push.map((p) => p - top))) / s;
}

// log pi before and after each of the updates, all on y, with |x| = 1.
function simulate(logits, y, { lr, steps, optimizer, down }) {
  let z = logits.slice();
  let first = z.map(() => 0), second = z.map(() => 0);
  const out = [logSoftmax(z)];
  for (let at = 1; at <= steps; at += 1) {
    const gradient = residual(out[at - 1], y).map((g) => (down ? -g : g));
    let move = gradient;
    if (optimizer === "momentum") {
      first = first.map((m, i) => MOMENTUM * m + gradient[i]);
      move = first;
    } else if (optimizer === "rmsprop") {
      second = second.map((v, i) => ALPHA * v + (1 - ALPHA) * gradient[i] ** 2);
      move = gradient.map((g, i) => g / (Math.sqrt(second[i]) + EPSILON));
    } else if (optimizer === "adam") {
      first = first.map((m, i) => BETAS[0] * m + (1 - BETAS[0]) * gradient[i]);
      second = second.map((v, i) => BETAS[1] * v + (1 - BETAS[1]) * gradient[i] ** 2);
      const one = 1 - BETAS[0] ** at, two = 1 - BETAS[1] ** at;
      move = first.map((m, i) => m / one / (Math.sqrt(second[i] / two) + EPSILON));
    }
    z = z.map((value, i) => value - lr * move[i]);
    out.push(logSoftmax(z));
  }
  return out;
}

// What happened to whom. The closed form serves one SGD step, the simulation the rest.
function outcome(state) {
  const y = state.y - 1, logits = spread(state.v, state.std);
  const before = logSoftmax(logits), s = state.down ? state.s : -state.s;
  const exact = state.steps === 1 && state.opt === "sgd";
  const settings =
    { lr: state.s, steps: state.steps, optimizer: state.opt, down: state.down };
  const after = exact
    ? logRatio(before, y, s).map((ratio, i) => before[i] + ratio)
    : simulate(logits, y, settings)[state.steps];
  const ratio = exact ? logRatio(before, y, s) : after.map((v, i) => v - before[i]);
  const gains = before.map((v, i) => Math.exp(v) * Math.expm1(ratio[i]));
  const best = y === 0 ? 1 : 0; // logits descend
  const groups = { up: [], down: [] };
  before.forEach((_, i) => {
    if (i !== y && i !== best) groups[gains[i] > 0 ? "up" : "down"].push(i);
  });
  return {
    y, best, before, after, ratio, gains, groups, exact,
    tau: exact ? threshold(before, y, s) : null,
    rising: groups.up.length + (gains[best] > 0 ? 1 : 0),
  };
}
