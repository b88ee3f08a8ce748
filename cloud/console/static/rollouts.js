// The rollouts of the page Releases: waves filling up, what the gates see, and the orders that a person may give.
const percent = (x) => `${Math.round(100 * x)} %`;
const OUTCOMES = ["healthy", "under way", "unproven", "silent", "refused", "failed"];

/** A wave is as full as its share of healthy gateways; it is good when the next one has begun. */
function waves(row, t) {
  const healthy = row.outcomes.healthy, ended = row.phase === "completed";
  return `<ol class="waves">${row.waves.map((target, i) => {
    const before = i ? row.waves[i - 1] : 0, part = Math.max(1, target - before);
    const full = ended || i < row.wave ? 1 : i > row.wave ? 0 : Math.max(0, Math.min(1, (healthy - before) / part));
    const state = ended || i < row.wave ? "passed" : i === row.wave && ["running", "paused"].includes(row.phase) ? "now" : "";
    return `<li class="${state}" title="${t.wave} ${i + 1}"><span>${i === row.waves.length - 1 ? t.everyone : target}</span>
      <div class="bar"><i style="width:${100 * full}%"></i></div></li>`;
  }).join("")}</ol>`;
}

function gates(row, t, esc) {
  if (!row.gates.length) return "";
  const figure = (x) => x.toFixed(3);
  return `<details data-key="${esc(row.rollout_id)}-gates"><summary>${t.gates}</summary><table><tr><th>${t.gate}<th>${t.figure}<th>${t.limit}<th>${t.over}
    <th>${t.evidence}</tr>${row.gates.map((g) => `<tr><td>${esc(t["gate_" + g.gate] || g.gate)} ${esc(g.about)}<td class="number">${figure(g.figure)}
    <td class="number">${figure(g.limit)}<td class="number">${g.count}<td class="${g.passed ? "" : "bad"}"><div class="bar">
    <i class="${g.passed ? "" : "closed"}" style="width:${100 * Math.min(1, g.evidence)}%"></i></div>${percent(g.evidence)}</tr>`).join("")}</table></details>`;
}

function named(row, t, esc) {
  if (!row.failed.length) return "";
  return `<details data-key="${esc(row.rollout_id)}-named"><summary>${t.named_gateways}: ${row.failed.length}</summary><table><tr><th>${t.gateway}<th>${t.status}
    <th>${t.reason}</tr>${row.failed.map((m) => `<tr><td>${esc(m.gateway_id)}<td>${esc(t["outcome_" + m.outcome] || m.outcome)}
    <td>${esc(m.reason)}</tr>`).join("")}</table></details>`;
}

function orders(row, t, esc) {
  const button = (kind, words, look) => `<button class="${look}" data-order="${kind}" data-rollout="${esc(row.rollout_id)}">${words}</button>`;
  const under = ["running", "paused"].includes(row.phase), found = [];
  if (row.phase === "running") found.push(button("pause", t.pause, ""));
  if (row.phase === "paused") found.push(button("resume", t.resume, "main"));
  if (under || row.phase === "waiting") found.push(button("abort", t.abort, "stop"));
  if (row.phase === "completed") found.push(button("rollback", t.take_back, "danger"));
  if (row.phase === "aborted") {
    found.push(`<button class="" data-again="${esc(row.release_id)}">${t.start_again}</button>`);
  }
  return found.join("");
}

/** All rollouts as cards, newest first. */
export function drawRollouts(rows, t, esc, time) {
  if (!rows.length) return `<div class="card soft">${t.no_rollouts}</div>`;
  const tone = { completed: "good", aborted: "bad", paused: "warn", "rolled-back": "bad" };
  return rows.slice(0, 6).map((row) => `<div class="card rollout" id="${esc(row.rollout_id)}"><div class="row"><b>${esc(row.release_id)}</b>
    <span class="pill ${tone[row.phase] || ""}">${esc(t["phase_" + row.phase] || row.phase)}</span>
    <span class="soft">${t.changes}: ${row.parts.map(esc).join(", ")} · ${time(row.started_ns)} · ${t.by} ${esc(row.actor)}</span>
    <span class="orders">${orders(row, t, esc)}</span></div>${row.why ? `<p class="${tone[row.phase] || "soft"}">${esc(row.why)}</p>` : ""}
    ${waves(row, t)}<p>${OUTCOMES.filter((name) => row.outcomes[name]).map((name) =>
    `<span class="pill ${name === "healthy" ? "good" : name === "under way" ? "" : "warn"}">${t["outcome_" + name]} ${row.outcomes[name]}</span>`).join("")}
    </p>${gates(row, t, esc)}${named(row, t, esc)}</div>`).join("");
}

/** Connects the buttons; `act` runs an order and shows what was refused. */
export function bindRollouts(root, t, api, act) {
  root.querySelectorAll("[data-order]").forEach((b) => {
    b.onclick = () => {
      const kind = b.dataset.order, ask = { abort: t.confirm_abort, rollback: t.confirm_rollback }[kind];
      if (ask && !confirm(ask)) return;
      const why = kind === "resume" ? "" : prompt(t.why_ask, "");
      if (why !== null) act(() => api(`rollouts/${b.dataset.rollout}/${kind}`, { author: "console", why }));
    };
  });
  root.querySelectorAll("[data-again]").forEach((b) => {
    b.onclick = () => act(() => api("rollouts", { author: "console", release_id: b.dataset.again }));
  });
}
