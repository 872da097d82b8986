// The page at `/`: a chat beside a live picture of the prefix cache. Plain functions over the two routes
// `/v1/chat/completions` and `/cache/…`; all text goes into the page as text, never as markup.
"use strict";

const at = (id) => document.getElementById(id);
const POLL_MS = 1000;
const POLL_MS_STREAMING = 400;
const TREE_NODES = 300;
const ROW = 22;
const SVG = "http://www.w3.org/2000/svg";

const chat = { messages: [], abort: null };
const view = { tree: null, shown: "", chosen: null, paused: false, last: null, timer: null };

// -- small helpers

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const number = (value) => value.toLocaleString("en");
const count = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;

function ago(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

function headers() {
  const key = at("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

// Answers of the server that are no 2xx become errors with its own words.
async function call(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const error = new Error(body?.error?.message ?? `The server answered ${response.status}.`);
  error.status = response.status;
  throw error;
}

function wantsKey() {
  at("problem").textContent = "This server wants an API key: type it in under Settings.";
  if (at("settings").open) return;
  at("settings").open = true;
  at("key").focus();
}

// -- chat

function addMessage(role, text) {
  const who = { user: "You", assistant: "Model" }[role];
  const body = element("div", { className: "text", textContent: text });
  const item = element("li", { className: role }, element("div", { className: "who", textContent: who }), body);
  at("talk").append(item);
  scrollToEnd();
  return { item, body };
}

// Follows the answer as long as its reader has not scrolled up.
function scrollToEnd() {
  const talk = at("talk");
  const isNear = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 120;
  if (isNear) talk.scrollTop = talk.scrollHeight;
}

function requestBody() {
  const system = at("system").value.trim();
  const body = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...chat.messages],
    stream: true,
    stream_options: { include_usage: true },
  };
  if (at("temperature").value !== "") body.temperature = Number(at("temperature").value);
  if (at("max-tokens").value !== "") body.max_tokens = Number(at("max-tokens").value);
  return body;
}

// The JSON of each server-sent event.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffered += value;
    const whole = buffered.split("\n\n");
    buffered = whole.pop();
    for (const event of whole) {
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") return;
      yield JSON.parse(event.slice(6));
    }
  }
}

// Streams one answer into `shown`; returns what is known of it, whole or stopped.
async function stream(shown, signal) {
  const answer = { id: null, text: "", usage: null, first: null, last: null, stopped: false };
  try {
    const response = await call("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", "x-arbora-usage": "1" },
      body: JSON.stringify(requestBody()),
      signal,
    });
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      answer.id = chunk.id;
      if (chunk.usage) answer.usage = chunk.usage;
      const piece = chunk.choices[0]?.delta?.content;
      if (!piece) continue;
      answer.last = performance.now();
      answer.first ??= answer.last;
      answer.text += piece;
      shown.append(piece);
      scrollToEnd();
    }
  } catch (error) {
    if (!signal.aborted) throw error;
    answer.stopped = true;
  }
  return answer;
}

async function send() {
  const text = at("message").value;
  if (chat.abort || !text.trim()) return;
  at("problem").textContent = "";
  at("message").value = "";
  chat.messages.push({ role: "user", content: text });
  const asked = addMessage("user", text);
  const told = addMessage("assistant", "");
  chat.abort = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  poll();
  try {
    const answer = await stream(told.body, chat.abort.signal);
    chat.messages.push({ role: "assistant", content: answer.text });
    if (answer.stopped) told.body.append(" [stopped]");
    at("said").textContent = answer.text;
    await describe(told.item, answer);
  } catch (error) {
    // Back to where it was: the message can be sent again.
    chat.messages.pop();
    asked.item.remove();
    told.item.remove();
    at("message").value = text;
    if (error.status === 401) wantsKey();
    else at("problem").textContent = error.message;
  } finally {
    chat.abort = null;
    at("send").disabled = false;
    at("stop").disabled = true;
    poll();
    listLatest();
  }
}

// What an answer cost, and why: a line under it that opens.
async function describe(item, answer) {
  const cost = element("summary", { textContent: costOf(answer) });
  const more = element("details", { className: "cost" }, cost);
  item.append(more);
  scrollToEnd();
  if (!answer.id) return;
  const found = await call(`/cache/explain?id=${encodeURIComponent(answer.id)}`)
    .then((response) => response.json())
    .catch(() => null);
  if (found?.prompts[0]) more.append(explanation(found.prompts[0]));
}

function costOf({ usage, first, last, stopped }) {
  if (!usage) return stopped ? "Stopped before its usage was known" : "No usage known";
  const { arbora, prompt_tokens: prompt, completion_tokens: output } = usage;
  const seconds = (last - first) / 1000;
  const speed = output > 1 && seconds > 0 ? ` at ${((output - 1) / seconds).toFixed(1)} tokens/s` : "";
  return (
    `${count(prompt, "prompt token")}: ${number(arbora.cached_tokens)} cached, ` +
    `${number(arbora.computed_tokens)} computed · ${count(output, "output token")}${speed} · ` +
    `first after ${Math.round(arbora.ttft_ms)} ms`
  );
}

function explanation(found) {
  const why = element("div", { className: "why" }, element("p", { textContent: found.message }));
  if (found.left) {
    const left = `They left ${ago(found.left.seconds_ago)}.`;
    why.append(element("p", { textContent: left }));
  }
  const quote = (className, text) => element("span", { className, textContent: text });
  if (found.before || found.after) {
    const code = element("code", {}, quote("same", found.before), quote("differs", found.after));
    why.append(element("p", {}, `At token ${number(found.position)}: `, code));
  }
  if (found.instead && found.cause !== "whole") {
    const code = element("code", {}, quote("same", found.before), found.instead);
    why.append(element("p", {}, "Cached there: ", code));
  }
  const facts = [`${number(found.cached_tokens)} of ${number(found.prompt_tokens)} tokens cached`];
  if (found.copied_tokens) facts.push(`${number(found.copied_tokens)} of them copied from node ${found.donor}`);
  facts.push(`namespace ${found.namespace}`);
  why.append(element("p", { className: "note", textContent: `${facts.join("; ")}.` }));
  const node = found.donor ?? found.node;
  if (node !== null) {
    const show = element("button", { type: "button", textContent: `Show node ${node} in the tree` });
    show.addEventListener("click", () => choose(node, "scroll"));
    why.append(show);
  }
  return why;
}

// -- the cache

function schedule() {
  clearTimeout(view.timer);
  if (view.paused || document.hidden) return;
  view.timer = setTimeout(poll, chat.abort ? POLL_MS_STREAMING : POLL_MS);
}

async function poll() {
  clearTimeout(view.timer);
  if (view.paused) return;
  try {
    const response = await call(`/cache/tree?limit=${TREE_NODES}`);
    const tree = await response.json();
    showFigures(tree);
    const shown = JSON.stringify([tree.nodes, tree.left_out]);
    if (shown !== view.shown) {
      view.shown = shown;
      showTree(tree);
    }
  } catch (error) {
    if (error.status === 401) wantsKey();
    else at("pool-text").textContent = "The server does not answer.";
  }
  schedule();
}

function showFigures({ engine, pages, model }) {
  at("model").textContent = model;
  const share = engine.prompt_tokens ? engine.cached_tokens / engine.prompt_tokens : null;
  at("hit-rate").textContent = share === null ? "–" : `${(100 * share).toFixed(1)} %`;
  at("running").textContent = number(engine.running);
  at("waiting").textContent = number(engine.waiting);
  const now = performance.now();
  const last = view.last;
  if (last && now - last.now > 200) {
    const speed = (1000 * (engine.generated_tokens - last.tokens)) / (now - last.now);
    at("speed").textContent = speed < 0 ? "–" : speed.toFixed(1);
  }
  view.last = { now, tokens: engine.generated_tokens };

  const parts = { "in-use": pages.cached - pages.evictable, owned: pages.owned, cached: pages.evictable };
  at("pool").replaceChildren(
    ...Object.entries(parts).map(([className, n]) => {
      const part = element("i", { className });
      part.style.width = `${(100 * n) / pages.total}%`;
      return part;
    }),
  );
  const text =
    `${number(pages.total)} pages of ${pages.page_size} tokens: ${number(pages.cached)} cached ` +
    `(${number(parts["in-use"])} in use), ${number(pages.owned)} being filled, ${number(pages.free)} free; ` +
    `${number(engine.evicted_pages)} evicted since the start`;
  at("pool-text").textContent = text;
  at("pool").setAttribute("aria-label", text);
}

const heatOf = (age) => [0, 2, 8, 32].findIndex((most) => age <= most);
const heatClass = (age) => `heat-${heatOf(age) < 0 ? 4 : heatOf(age)}`;
const textOf = (node) => (node.text ? node.text.first + (node.text.last ? ` … ${node.text.last}` : "") : "");

// Children, rows and places of all nodes, without recursion: parents come before their children.
function layOut(nodes) {
  const places = new Map(nodes.map((node) => [node.id, { node, children: [], rows: 0, x: 0, y: 0, width: 0 }]));
  const roots = [];
  for (const node of nodes) {
    const siblings = node.parent === null ? roots : places.get(node.parent).children;
    siblings.push(places.get(node.id));
  }
  for (const node of [...nodes].reverse()) {
    const place = places.get(node.id);
    place.rows = Math.max(1, place.children.reduce((sum, child) => sum + child.rows, 0));
    place.width = node.parent === null ? 74 : 18 + 22 * Math.sqrt(node.n_pages);
  }
  let row = 0;
  for (const root of roots) {
    root.y = row;
    row += root.rows;
  }
  for (const node of nodes) {
    const place = places.get(node.id);
    let below = place.y;
    for (const child of place.children) {
      child.x = place.x + place.width;
      child.y = below;
      below += child.rows;
    }
  }
  return { places, n_rows: row, width: Math.max(0, ...[...places.values()].map((p) => p.x + p.width)) };
}

function showTree(tree) {
  view.tree = tree;
  const { places, n_rows: rows, width } = layOut(tree.nodes);
  view.places = places;
  const canvas = at("canvas");
  const room = canvas.clientWidth - 2;
  // What is wider than the page shrinks to it, as long as a word is readable; beyond that it scrolls.
  const scale = Math.min(Math.max(room / width, 0.7), 1.6);
  const picture = svg("svg", { width: Math.max(1, width * scale), height: Math.max(1, rows * ROW) });
  picture.setAttribute("aria-hidden", "true");
  for (const place of places.values()) picture.append(block(place, scale));
  canvas.replaceChildren(tree.nodes.length ? picture : element("p", { className: "note", textContent: "Empty." }));
  const { nodes, pages } = tree.left_out;
  at("left-out").textContent = nodes
    ? `${count(nodes, "more node")} with ${count(pages, "page")}, used longer ago, are not shown.`
    : "";
  showTable(tree);
  showNode();
}

function block(place, scale) {
  const { node } = place;
  const [x, y, width, height] = [place.x * scale, place.y * ROW, place.width * scale, place.rows * ROW];
  const isRoot = node.parent === null;
  const classes = [isRoot ? "root" : heatClass(node.age), node.n_locks > 0 ? "locked" : ""];
  if (node.id === view.chosen) classes.push("chosen");
  const group = svg("g", { class: classes.join(" "), "data-id": node.id });
  const inset = node.n_locks > 0 ? 2 : 0.5;
  const size = { width: Math.max(2, width - 2 * inset), height: height - 2 * inset };
  group.append(svg("rect", { x: x + inset, y: y + inset, rx: 3, ...size }));
  const label = isRoot ? node.namespace : (node.text?.first ?? count(node.n_tokens, "token"));
  const n_fitting = Math.floor((width - 9) / 7.3);
  if (n_fitting >= 3) {
    const text = svg("text", { x: x + 5, y: y + Math.min(height, ROW) / 2 + 4 });
    const line = label.replace(/<\|[^|]*\|>/g, " ").replace(/\s+/g, " ").trim() || label;
    text.textContent = line.length > n_fitting ? `${line.slice(0, n_fitting - 1)}…` : line;
    group.append(text);
  }
  group.addEventListener("click", () => choose(node.id));
  return group;
}

function showTable(tree) {
  if (!at("as-table").open) return;
  const row = (node) => {
    const cells = [node.id, node.parent ?? "–", node.namespace, `${node.depth}–${node.depth + node.n_tokens}`,
      node.n_pages, node.n_locks, node.age, textOf(node)];
    return element("tr", {}, ...cells.map((cell) => element("td", { textContent: cell })));
  };
  at("rows").replaceChildren(...tree.nodes.map(row));
}

function choose(id, how) {
  view.chosen = id;
  for (const group of at("canvas").querySelectorAll("g")) {
    const isChosen = group.dataset.id === String(id);
    group.classList.toggle("chosen", isChosen);
    if (isChosen) group.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  if (how === "scroll") at("canvas").focus();
  showNode();
}

function showNode() {
  const card = at("node");
  if (view.chosen === null) return;
  const place = view.places?.get(view.chosen);
  if (!place) {
    const gone = `Node ${view.chosen} is not in the picture: evicted, merged into another, or used longer ago.`;
    if (card.textContent !== gone) card.textContent = gone;
    return;
  }
  const { node } = place;
  const children = node.n_children === null ? "many children" : `${node.n_children} below it`;
  const last = node.age > 0 ? `last used ${count(node.age, "lookup")} ago` : "just used";
  const use = node.n_locks > 0 ? `in use by ${count(node.n_locks, "request")}` : last;
  const words = node.parent === null
    ? `Root of namespace ${node.namespace}, ${children}.`
    : `Node ${node.id}: tokens ${number(node.depth)} to ${number(node.depth + node.n_tokens)} on ` +
      `${count(node.n_pages, "page")}, ${use}, ${children}. `;
  const text = textOf(node);
  const code = text ? [element("code", { textContent: text })] : [];
  if (card.textContent !== words + text) card.replaceChildren(words, ...code);
}

// Left and right follow the path, up and down go through what stands beside.
function moveChoice(event) {
  const place = view.places?.get(view.chosen) ?? view.places?.values().next().value;
  if (!place || !event.key.startsWith("Arrow")) return;
  event.preventDefault();
  const { node } = place;
  const parent = view.places.get(node.parent);
  const roots = [...view.places.values()].filter((other) => other.node.parent === null);
  const beside = parent ? parent.children : roots;
  const next = {
    ArrowLeft: parent,
    ArrowRight: place.children[0],
    ArrowUp: beside[beside.indexOf(place) - 1],
    ArrowDown: beside[beside.indexOf(place) + 1],
  }[event.key];
  choose((view.chosen === null ? place : (next ?? place)).node.id);
}

// -- latest requests

async function listLatest() {
  if (!at("requests").open) return;
  const list = await call("/cache/explain").then((response) => response.json()).catch(() => null);
  if (!list) return;
  const item = ({ id, prompts }) => {
    const found = prompts[0];
    if (!found) return element("li", { className: "note", textContent: `${id}: not started yet` });
    const share = Math.round((100 * found.cached_tokens) / found.prompt_tokens);
    const line = `${ago(found.seconds_ago)}: ${share} % of ${count(found.prompt_tokens, "token")} cached (${found.cause})`;
    return element("li", {}, element("details", {}, element("summary", { textContent: line }), explanation(found)));
  };
  const items = list.data.map(item);
  at("latest").replaceChildren(...(items.length ? items : [element("li", { className: "note", textContent: "None yet." })]));
}

// -- start

function keepKey() {
  try {
    sessionStorage.setItem("key", at("key").value);
  } catch {
    // Without storage the key lasts as long as the page.
  }
}

function start() {
  try {
    at("key").value = sessionStorage.getItem("key") ?? "";
  } catch {
    at("key").value = "";
  }
  at("key").addEventListener("change", () => {
    keepKey();
    at("problem").textContent = "";
    poll();
  });
  at("options").addEventListener("submit", (event) => event.preventDefault());
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("message").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  at("stop").addEventListener("click", () => chat.abort?.abort());
  at("reset").addEventListener("click", () => {
    chat.abort?.abort();
    chat.messages = [];
    at("talk").replaceChildren();
    at("problem").textContent = "";
    at("message").focus();
  });
  at("pause").addEventListener("click", () => {
    view.paused = !view.paused;
    at("pause").setAttribute("aria-pressed", String(view.paused));
    poll();
  });
  at("canvas").addEventListener("keydown", moveChoice);
  at("as-table").addEventListener("toggle", () => view.tree && showTable(view.tree));
  at("requests").addEventListener("toggle", listLatest);
  document.addEventListener("visibilitychange", () => document.hidden || poll());
  new ResizeObserver(() => view.tree && showTree(view.tree)).observe(at("canvas"));
  poll();
}

start();
