// Labels given on the site: the pictures stay on this box, only statistics leave.
const zh = navigator.language.startsWith("zh");
document.documentElement.lang = zh ? "zh" : "en";
const t = zh
  ? { title: "现场标注", keys: "按键：1–9 标注 · n 新类别 · s 跳过 · u 撤销", empty: "没有等待标注的样本。", fresh: "新类别",
      name: "新类别的名称", skip: "跳过", undo: "撤销", lost: "网关无响应，正在重试……" }
  : { title: "Labels of this site", keys: "Keys: 1–9 label · n new class · s skip · u undo", empty: "Nothing waits for a label.",
      fresh: "New class", name: "Name of the new class", skip: "Skip", undo: "Undo", lost: "The gateway does not answer; trying again …" };
const $ = (id) => document.getElementById(id);
const state = { scenarios: {}, scenario: "", queue: [], done: [], hidden: new Set(), outbox: [], sending: false };
$("title").textContent = t.title; $("keys").textContent = t.keys; $("empty").textContent = t.empty; document.title = t.title;

async function api(path, body) {
  const options = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const reply = await fetch("/api/" + path, { ...options, signal: AbortSignal.timeout(10000) });
  if (!reply.ok) throw Object.assign(new Error(reply.status), { status: reply.status });
  return reply.json();
}

function button(key, text, act) {
  const made = document.createElement("button"), hint = document.createElement("kbd");
  hint.textContent = key;
  made.append(hint, text);
  made.onclick = act;
  return made;
}

function draw() {
  const name = state.queue[0], classes = state.scenarios[state.scenario] || [];
  $("picture").hidden = !name; $("empty").hidden = !!name;
  if (name) $("picture").src = `/pictures/${name}.jpg`;
  $("classes").replaceChildren(...(name ? classes.map((c, i) => button(i + 1, c, () => label(c))) : []),
    ...(name ? [button("n", t.fresh, fresh), button("s", t.skip, () => label(null))] : []), button("u", t.undo, undo));
}

function label(value) {
  const name = state.queue.shift();
  if (!name) return;
  state.hidden.add(name); state.done.push({ name, value });
  if (value !== null) state.outbox.push({ [name]: { [state.scenario]: value } });
  draw(); flush();
}

function undo() {
  const last = state.done.pop();
  if (!last) return;
  state.hidden.delete(last.name); state.queue.unshift(last.name);
  if (last.value !== null) state.outbox.push({ [last.name]: { [state.scenario]: "" } });
  draw(); flush();
}

function fresh() {
  const name = (prompt(t.name) || "").trim();
  if (!name) return;
  if (!state.scenarios[state.scenario].includes(name)) state.scenarios[state.scenario].push(name);
  label(name);
}

async function flush() {
  if (state.sending) return;
  state.sending = true;
  while (state.outbox.length) {
    try { await api("labels", state.outbox[0]); state.outbox.shift(); $("notice").textContent = ""; }
    catch (error) {
      if (error.status && error.status < 500) state.outbox.shift();  // refused: sending again cannot help
      $("notice").textContent = error.status || t.lost;
      await new Promise((r) => setTimeout(r, 2000));
    }
  }
  state.sending = false;
}

async function refresh() {
  try {
    const scenario = state.scenario, names = await api(`to-label?scenario=${encodeURIComponent(scenario)}&limit=50`);
    if (scenario !== state.scenario) return;
    const waiting = names.filter((name) => !state.hidden.has(name)), shown = state.queue[0];
    state.queue = shown && waiting.includes(shown) ? [shown, ...waiting.filter((name) => name !== shown)] : waiting;
    if (state.queue[0] !== shown || !$("classes").childNodes.length) draw();
    if (!state.outbox.length) $("notice").textContent = "";
  } catch { $("notice").textContent = t.lost; }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const classes = state.scenarios[state.scenario] || [], number = Number(event.key);
  if (number >= 1 && number <= classes.length) label(classes[number - 1]);
  else if (event.key === "n") { event.preventDefault(); fresh(); }
  else if (event.key === "s") label(null);
  else if (event.key === "u") undo();
});

state.scenarios = await api("scenarios");
$("scenario").replaceChildren(...Object.keys(state.scenarios).map((name) => new Option(name)));
state.scenario = $("scenario").value;
$("scenario").onchange = () => { Object.assign(state, { scenario: $("scenario").value, queue: [], done: [], hidden: new Set() }); draw(); refresh(); };
draw(); refresh();
setInterval(refresh, 3000);
