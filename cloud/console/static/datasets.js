// Versions of what is learnt from, and labels in conflict with their pictures side by side.

const ROLES = ["learnt", "folded", "gold", "near_gold", "gold_in_doubt"];

function drawConflict(conflict, scenario, classes, chosen, t, esc, percent) {
  const picture = (p) => `<figure><img alt="${esc(t.no_picture)}" loading="lazy"
    src="/api/v1/pictures/${esc(p.id)}.jpg?scenario=${encodeURIComponent(scenario)}">
    <figcaption>${esc(p.site)} · ${esc(p.source || t.uploaded)}${p.gold ? ` <span class="pill warn">${t.gold}</span>` : ""}</figcaption>
    <select data-picture="${esc(p.id)}" aria-label="${esc(p.site)}">${[...new Set([p.label, ...classes])].map((c) =>
      `<option value="${esc(c)}" ${c === (chosen[p.id] ?? p.label) ? "selected" : ""}>${esc(c)}</option>`).join("")}</select></figure>`;
  const says = conflict.suggested ? ` <span class="soft">${t.suggested}: <b>${esc(conflict.suggested)}</b> ${conflict.kind === "doubted" ? percent(conflict.strength) : ""}</span>` : "";
  return `<div class="card conflict"><div class="row"><b>${esc(t["conflict_" + conflict.kind])}</b>${says}
    <button class="main" data-decide>${t.decide}</button></div><div class="pictures">${conflict.pictures.map(picture).join("")}</div></div>`;
}

function drawBalance(balance, classes, t, esc) {
  const names = [...new Set([...classes, ...Object.values(balance).flatMap(Object.keys)])];
  const cell = (c) => !c ? "–" : `${c.learnt}${c.folded ? ` <span class="soft">+${c.folded}</span>` : ""}${c.gold ? ` <span class="pill warn">${c.gold}</span>` : ""}`;
  const sum = (name) => Object.values(balance).reduce((all, by) => ({ learnt: all.learnt + (by[name]?.learnt || 0),
    folded: all.folded + (by[name]?.folded || 0), gold: all.gold + (by[name]?.gold || 0) }), { learnt: 0, folded: 0, gold: 0 });
  const row = (owner, by) => `<tr><td class="name">${owner}${names.map((n) => `<td class="number">${cell(by(n))}`).join("")}</tr>`;
  return `<h3>${t.balance}</h3><div class="card"><p class="soft">${t.learnt} <span>+${t.folded}</span> <span class="pill warn">${t.gold}</span></p>
    <table><thead><tr><th>${t.site}${names.map((n) => `<th>${esc(n)}`).join("")}</tr></thead><tbody>${row("<b>Σ</b>", sum)}
    ${Object.entries(balance).map(([owner, by]) => row(esc(owner), (n) => by[n])).join("")}</tbody></table></div>`;
}

export function drawDatasets(found, scenario, classes, chosen, t, esc, time, percent) {
  if (!found.versions.length) return `<div class="card">${t.no_versions}</div>`;
  const open = found.conflicts.map((c) => drawConflict(c, scenario, classes, chosen, t, esc, percent)).join("");
  const more = found.more ? `<p class="soft">${found.more} ${t.more_conflicts}</p>` : "";
  const versions = found.versions.map((v) => `<tr><td>${v.version}<td class="name" title="${esc(v.hash)}">${esc(v.hash.slice(0, 12))}<td class="name">${time(v.at_ns)}
    ${ROLES.map((r) => `<td class="number">${v.counts[r]}`).join("")}</tr>`).join("");
  return `<h3>${t.conflicts} <span class="soft">${t.conflicts_since}</span></h3>${open || `<div class="card">${t.no_conflicts}</div>`}${more}
    ${drawBalance(found.balance, classes, t, esc)}<h3>${t.versions}</h3><div class="card"><table><thead><tr><th>${t.version}<th>#<th>${t.made}
    ${ROLES.map((r) => `<th>${t[r]}`).join("")}</tr></thead><tbody>${versions}</tbody></table></div>`;
}

export function bindConflicts(main, scenario, t, api, act) {
  main.querySelectorAll("[data-decide]").forEach((button) => {
    button.onclick = () => {
      const chosen = [...button.closest(".conflict").querySelectorAll("select[data-picture]")];
      act(() => api("decisions", { scenario, author: "console", labels: Object.fromEntries(chosen.map((s) => [s.dataset.picture, s.value])) }));
    };
  });
}
