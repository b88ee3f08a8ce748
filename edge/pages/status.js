// Keeps the gateway's page up to date: the server renders it, this only fetches it anew and leaves pictures that have
// not changed where they are, so that nothing flickers.
const EVERY_MS = 2000;
const board = document.getElementById("board");

async function refresh() {
  if (document.hidden) return;
  const reply = await fetch("/board" + location.search, { signal: AbortSignal.timeout(10000) });
  if (!reply.ok) throw new Error(reply.status);
  const fresh = document.createElement("template");
  fresh.innerHTML = await reply.text();
  for (const card of fresh.content.querySelectorAll("article")) {
    const next = card.querySelector("img"), shown = document.getElementById(card.id)?.querySelector("img");
    if (!next || !shown) continue;
    const source = next.getAttribute("src");
    next.replaceWith(shown);  // the old picture stays until the new one is here
    if (shown.getAttribute("src") === source) continue;
    const loading = new Image();
    loading.onload = () => shown.replaceWith(loading);
    loading.alt = "";
    loading.src = source;
  }
  board.replaceChildren(fresh.content);
}

async function loop() {
  try { await refresh(); document.body.classList.remove("lost"); }
  catch { document.body.classList.add("lost"); }
  setTimeout(loop, EVERY_MS);
}
setTimeout(loop, EVERY_MS);
