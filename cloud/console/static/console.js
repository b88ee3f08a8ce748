// Fills the page from /api/v1 and keeps it live. No build step, no library.
import { bindConflicts, drawDatasets } from "./datasets.js";
import { bindRollouts, drawRollouts } from "./rollouts.js";

const t = JSON.parse(document.getElementById("words").textContent);
const scenarios = JSON.parse(document.getElementById("scenarios").textContent);
const main = document.getElementById("main"), notice = document.getElementById("notice");

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const esc = (value) => String(value ?? "").replace(/[&<>"']/g, (c) => escapes[c]);
const size = (n) => n > 1e9 ? (n / 1e9).toFixed(1) + " GB" : n > 1e6 ? (n / 1e6).toFixed(1) + " MB" : Math.ceil(n / 1e3) + " kB";
const percent = (x) => x === null || x === undefined || Number.isNaN(x) ? "–" : (100 * x).toFixed(1) + " %";
const time = (ns) => new Date(ns / 1e6).toLocaleString(document.documentElement.lang === "zh" ? "zh-CN" : "en-GB");

async function api(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify(body) };
  const reply = await fetch("/api/v1/" + path, { ...options, signal: AbortSignal.timeout(15000) });
  const data = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(data.detail || reply.status), { status: reply.status });
  return data;
}

async function fleet() {
  const [states, counts, releases, events, attempts] = await Promise.all([api("states"), api("counts"), api("releases"), api("events?limit=12"), api("attempts")]);
  const active = releases.find((r) => r.status === "active");
  const online = states.filter((s) => s.online).length;
  const tiles = [[t.sites, `${online} / ${states.length}`], [t.samples, counts.samples], [t.labels, counts.labels],
    [t.running, active ? active.release_id : "–"]];
  const colour = { live: "good", ended: "good", starting: "" };
  const camera = (c, online) => `<span class="pill ${online ? colour[c.state] ?? "bad" : ""}"
    title="${esc(c.detail)}">${esc(c.camera_id)} · ${esc(t["camera_" + c.state] || c.state)}</span>`;
  const chosen = (s) => Object.entries(s.chosen).map(([why, n]) => `<span class="pill" title="${esc(t[why])}">${esc(t["short_" + why] || why)} ${n}</span>`).join("");
  const alarms = (s) => (s.online ? s.alarms || [] : []).map((a) => `<span class="pill bad">${esc(a)}</span>`).join("");
  const open = states.filter((s) => s.online).reduce((n, s) => n + (s.alarms || []).length, 0);
  tiles.push([t.alarms, open]);
  const row = (e) => `<tr><td>${time(e.at_ns)}<td class="name">${esc(e.site_id)}<td>${esc(e.gateway_id)} · ${esc(e.camera_id)}
    <td><b>${esc(e.scenario)}</b> ${esc(e.label)}<td class="${e.phase === "clear" ? "" : "bad"}" title="${esc(e.cause)}">${esc(t["event_" + e.phase] || e.phase)}
    <td class="number">${percent(e.peak)}<td>${e.has_jpeg ? `<a href="/api/v1/events/${encodeURIComponent(e.gateway_id)}/${encodeURIComponent(e.event_id)}.jpg">${esc(t.picture)}</a>` : ""}</tr>`;
  const told = events.length ? `<h3>${t.events}</h3><div class="card"><table>${events.map(row).join("")}</table></div>` : "";
  const tried = attempts.fresh.length ? `<h3 class="bad">${t.attempts}</h3><div class="card"><table>${attempts.fresh.slice(0, 20).map((a) => `<tr>
    <td>${time(a.last_ns)}<td class="name">${esc(a.who)}<td class="bad">${esc(t["attempt_" + a.kind])}<td>${esc(a.detail)}<td class="number">${a.times} ×</tr>`).join("")}</table></div>` : "";
  if (!states.length) { main.innerHTML = `<div class="card">${t.no_gateways}</div>${tried}`; return; }
  main.innerHTML = `<div class="tiles">${tiles.map(([k, v]) => `<div class="tile"><span>${esc(k)}</span><b>${esc(v)}</b></div>`).join("")}</div>
    <div class="card"><table><thead><tr><th>${t.site}<th>${t.gateway}<th>${t.status}<th>${t.release}<th>${t.cameras}<th>${t.looks}
    <th>${t.chosen}<th>${t.spool}<th>${t.receipted}<th>${t.bytes_up}</tr></thead><tbody>${states.map((s) => `<tr>
    <td class="name">${esc(s.site_id)}<td class="name">${esc(s.gateway_id)}<td class="name ${s.online ? "good" : "bad"}">● ${s.online ? t.online : t.offline}
    <td class="name" title="${esc(s.install)}">${esc(s.release_id || "–")}${active && s.release_id !== active.release_id ? ' <span class="warn">⟳</span>' : ""}
    <td>${s.cameras.map((c) => camera(c, s.online)).join("")}${alarms(s)}<td class="number">${s.looks}<td>${chosen(s)}<td class="number">${s.spool_rows}
    <td class="number">${s.receipted}<td class="number">${size(s.bytes_up)}</tr>`).join("")}</tbody></table></div>${tried}${told}`;
}

async function releases() {
  const [rows, runs, rollouts] = await Promise.all([api("releases"), api("runs"), api("rollouts")]);
  const compared = (gate) => Object.entries(gate).filter(([, g]) => g && g.comparisons).map(([name, g]) => `
    <details><summary>${esc(name)}: <span class="${g.passed ? "good" : "bad"}">${g.passed ? t.passed : t.refused}</span>
    ${Object.entries(g.sites || {}).map(([site, head]) => `<span class="pill">${esc(site)}: ${esc(t[head] || head)}</span>`).join("")}</summary>
    <table><tr><th>${t.compared}<th>${t.count}<th>${t.before}<th>${t.after}<th>p<th></tr>${g.comparisons.map((c) => `<tr><td>${esc(c.name)}
    <td class="number">${c.samples}<td class="number">${percent(c.running)}<td class="number">${percent(c.candidate)}
    <td class="number">${c.p_value}<td class="${c.passed ? "good" : "bad"}">${c.passed ? "✓" : "✗"}</tr>`).join("")}</table></details>`).join("");
  const about = (record) => Object.entries(record).filter(([, s]) => s && s.data_version).map(([name, s]) => [
    ...(s.quarantined || []).map((q) =>
      `${q.gateway || q.site}: ${t.quarantined}; ${q.reason}${q.influence == null ? "" : ` (${q.influence} ${t.points})`}`),
    ...Object.entries(s.bounded || {}).map(([gateway, weight]) => `${gateway}: ${t.bounded} ${weight}`),
    ...(s.costly || []).map((c) => `${c.gateway}: ${t.costly} ${c.influence} ${t.points}`),
  ].map((line) => `<div class="soft">${esc(name)} – ${esc(line)}</div>`).join("")).join("");
  const why = (record) => [record.error, ...Object.entries(record).filter(([, part]) => part && part.unlearnable)
    .map(([name, part]) => `${name}: ${t.unlearnable}: ${part.unlearnable}`)].filter(Boolean).map(esc).join("<br>");
  const heldBack = (gate) => gate && (!gate.passed || (gate.held_back || []).length);
  const open = [...main.querySelectorAll("details:not([data-key])")].map((d) => d.open);
  const opened = new Set([...main.querySelectorAll("details[data-key]")].filter((d) => d.open).map((d) => d.dataset.key));
  main.innerHTML = `<h3>${t.rollouts}</h3>${drawRollouts(rollouts, t, esc, time)}<h3>${t.releases}</h3>
    <div class="row"><button class="main" id="learn">${t.learn}</button></div><div class="card"><table><thead><tr>
    <th>${t.release}<th>${t.status}<th>${t.started}<th>${t.gate}<th></tr></thead><tbody>${rows.map((r) => `<tr><td>${esc(r.release_id)}
    <div class="soft">${esc(r.note)}</div><td><span class="pill ${r.status === "active" ? "good" : ""}">${esc(t[r.status] || r.status)}</span>
    <td>${time(r.created_at_ns)}<td>${compared(r.gate)}<td>${r.status === "active" || r.status === "candidate" || r.status === "aborted" ? "" :
    `<button class="danger" data-back="${esc(r.release_id)}">${t.rollback}</button>`}</tr>`).join("")}</tbody></table></div>
    <h3>${t.rounds}</h3><div class="card"><table>${runs.map((r) => `<tr><td>${esc(r.run_id)}<td>${time(r.started_ns)}<td>${esc(t[`run_${r.status}`] || r.status)}
    <td class="soft">${why(r.record)}${about(r.record)}<td>${heldBack(r.record.gate) ? compared(r.record.gate) : ""}</tr>`).join("")}</table></div>`;
  [...main.querySelectorAll("details:not([data-key])")].forEach((d, i) => { d.open = open[i] || false; });
  main.querySelectorAll("details[data-key]").forEach((d) => { d.open = opened.has(d.dataset.key); });
  bindRollouts(main, t, api, act);
  document.getElementById("learn").onclick = () => act(() => api("rounds", { author: "console" }));
  main.querySelectorAll("[data-back]").forEach((b) => {
    b.onclick = () => confirm(t.confirm) && act(() => api(`releases/${b.dataset.back}/rollback`, { author: "console" }));
  });
}

// Labels in conflict: what a person has chosen and not saved stays, whatever is fetched meanwhile.
const conflicts = { scenario: Object.keys(scenarios)[0], shown: "" };

async function datasets() {
  if (!conflicts.scenario) { main.innerHTML = `<div class="card">${t.no_versions}</div>`; return; }
  const found = await api(`datasets?scenario=${encodeURIComponent(conflicts.scenario)}`);
  const text = JSON.stringify(found);
  if (text === conflicts.shown) return;
  conflicts.shown = text;
  const chosen = Object.fromEntries([...main.querySelectorAll("select[data-picture]")].map((s) => [s.dataset.picture, s.value]));
  const pick = `<div class="row"><label>${t.scenario} <select id="scenario">${Object.keys(scenarios).map((s) =>
    `<option ${s === conflicts.scenario ? "selected" : ""}>${esc(s)}</option>`).join("")}</select></label></div>`;
  main.innerHTML = pick + drawDatasets(found, conflicts.scenario, scenarios[conflicts.scenario], chosen, t, esc, time, percent);
  bindConflicts(main, conflicts.scenario, t, api, act);
  document.getElementById("scenario").onchange = (e) => { Object.assign(conflicts, { scenario: e.target.value, shown: "" }); refresh(); };
}

async function act(what) {
  try { await what(); notice.textContent = ""; } catch (error) { notice.textContent = error.message; }
  refresh();
}

// Labelling: the picture changes at once; what is not saved yet waits in the outbox and is sent again.
const review = { scenario: Object.keys(scenarios)[0], queue: [], done: [], hidden: new Set(), outbox: [], sending: false };

async function fetchQueue() {
  const scenario = review.scenario;
  const rows = await api(`queue?scenario=${encodeURIComponent(scenario)}&limit=60`);
  if (scenario !== review.scenario) return;  // another one was chosen meanwhile
  const waiting = rows.filter((r) => !review.hidden.has(r.sample_id));
  const shown = review.queue[0];  // stays under the person's finger, whatever arrives
  review.queue = shown && waiting.some((r) => r.sample_id === shown.sample_id)
    ? [shown, ...waiting.filter((r) => r.sample_id !== shown.sample_id)] : waiting;
}

function label(value) {
  const sample = review.queue.shift();
  if (!sample) return;
  review.hidden.add(sample.sample_id);
  review.done.push({ sample, value });
  if (value !== null) review.outbox.push({ sample_id: sample.sample_id, scenario: review.scenario, label: value });
  drawReview(); flush();
}

function newClass() {
  const name = (prompt(t.new_class_name) || "").trim();
  if (!name || !review.queue.length) return;
  const classes = scenarios[review.scenario];
  if (!classes.includes(name)) classes.push(name);
  label(name);
}

function undo() {
  const last = review.done.pop();
  if (!last) return;
  review.hidden.delete(last.sample.sample_id);
  review.queue.unshift(last.sample);
  if (last.value !== null) review.outbox.push({ sample_id: last.sample.sample_id, scenario: review.scenario, label: "" });
  drawReview(); flush();
}

async function flush() {
  if (review.sending) return;
  review.sending = true;
  while (review.outbox.length) {
    const batch = review.outbox.slice(0, 100);
    try {
      await api("labels", batch);
      review.outbox.splice(0, batch.length);
      notice.textContent = "";
    } catch (error) {
      if (error.status && error.status < 500) review.outbox.splice(0, batch.length);  // refused: sending again cannot help
      notice.textContent = `${review.outbox.length} ${t.unsent}: ${error.message}`;
      await new Promise((r) => setTimeout(r, 2000));
    }
  }
  review.sending = false;
}

function drawReview() {
  const sample = review.queue[0], classes = scenarios[review.scenario] || [];
  const pick = `<div class="row"><label>${t.scenario} <select id="scenario">${Object.keys(scenarios).map((s) =>
    `<option ${s === review.scenario ? "selected" : ""}>${esc(s)}</option>`).join("")}</select></label><span class="soft">${t.keys}</span></div>`;
  if (!sample) { main.innerHTML = pick + `<div class="card">${t.empty}</div>`; }
  else {
    const says = sample.predictions.find((p) => p.scenario === review.scenario);
    const bar = (k) => `<span class="soft">${t[k]} ${percent(sample.scores[k])}</span><div class="bar"><i style="width:${100 * sample.scores[k]}%"></i></div>`;
    const guess = says ? says.classes.map((c, i) => [c, says.probabilities[i]]).sort((a, b) => b[1] - a[1]).slice(0, 3)
      .map(([c, p]) => `<span class="pill">${esc(c)} ${percent(p)}</span>`).join("") : "";
    main.innerHTML = pick + `<div class="review"><div><div class="picture"><img id="picture" alt="${esc(sample.site_id)} ${esc(sample.camera_id)}" src="/api/v1/samples/${sample.sample_id}.jpg"></div>
      <div class="strip">${review.queue.slice(0, 12).map((s) => `<img alt="" loading="lazy" src="/api/v1/samples/${s.sample_id}.jpg">`).join("")}</div></div>
      <aside class="card"><b>${esc(sample.site_id)}</b> · ${esc(sample.camera_id)}<div class="soft">${time(sample.captured_at_ns)} · ${esc(sample.release_id)}</div>
      <div class="classes">${classes.map((c, i) => `<button data-label="${esc(c)}"><kbd>${i + 1}</kbd>${esc(c)}</button>`).join("")}
      <button id="new"><kbd>n</kbd>${t.new_class}</button><button id="skip"><kbd>s</kbd>${t.skip}</button><button id="undo"><kbd>u</kbd>${t.undo}</button></div>
      <p><span class="soft">${t.model_says}</span><br>${guess}</p><p><span class="soft">${t.why}</span><br><b>${esc(t[sample.reason] || sample.reason)}</b></p>
      ${["novelty", "abnormality", "uncertainty", "redundancy"].map(bar).join("")}</aside></div>`;
    main.querySelectorAll("[data-label]").forEach((b) => { b.onclick = () => label(b.dataset.label); });
    document.getElementById("new").onclick = newClass;
    document.getElementById("skip").onclick = () => label(null);
    document.getElementById("undo").onclick = undo;
  }
  document.getElementById("scenario").onchange = (e) => { Object.assign(review, { scenario: e.target.value, done: [], hidden: new Set() }); refresh(); };
}

document.addEventListener("keydown", (event) => {
  if (document.body.dataset.page !== "review" || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const classes = scenarios[review.scenario] || [], number = Number(event.key);
  if (number >= 1 && number <= classes.length) label(classes[number - 1]);
  else if (event.key === "n") { event.preventDefault(); newClass(); }
  else if (event.key === "s") label(null);
  else if (event.key === "u") undo();
});

const draw = { fleet, releases, datasets, review: async () => {
  const shown = review.queue[0]?.sample_id;
  await fetchQueue();
  if (!main.innerHTML || review.queue[0]?.sample_id !== shown) drawReview();
} }[document.body.dataset.page];

async function refresh() {
  try { await draw(); if (notice.textContent === t.lost) notice.textContent = ""; }
  catch (error) { if (!error.status) notice.textContent = t.lost; else notice.textContent = error.message; }
}

refresh();
setInterval(() => { if (!document.hidden) refresh(); }, 2000);
