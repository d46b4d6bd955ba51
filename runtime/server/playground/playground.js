// The page's whole program: one socket, one session, one turn at a time. The protocol is docs/protocol.md.

const at = (id) => document.getElementById(id);
const MOST_FRAMES = 400;
const BARS = 24;
const KEEP_ALIVE_MS = 60_000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8_000;
const PAUSE_MS = 400; // of typing, after which the message is taken for whole, as a recognizer takes a pause in speech

const KNOBS = [
  // name, least, most, step, where the slider stands before it is moved
  ["temperature", 0, 1.2, 0.05, 0.8],
  ["top_p", 0.6, 1, 0.01, 0.95],
  ["top_k", 0, 60, 1, 30],
  ["min_p", 0, 0.2, 0.01, 0],
  ["repetition_penalty", 1, 1.3, 0.01, 1],
  ["presence_penalty", 0, 0.5, 0.01, 0],
  ["frequency_penalty", 0, 0.5, 0.01, 0],
  ["max_tokens", 1, 150, 1, 150],
];

let socket = null;
let wanted = false; // whether the user wants to be connected
let wait = FIRST_WAIT_MS;
let timer = 0;
let turn = null; // the one that runs
let last = null; // the one that ran last
let turns = 0;
let keepAlive = 0;
let pause = 0;
let prepares = 0;
const firstTokens = [];
const moved = new Map();

// --- what is shown

function state(text, kind) {
  at("state").textContent = text;
  at("state").dataset.state = kind;
}

function enable() {
  const open = socket?.readyState === WebSocket.OPEN && at("state").dataset.state === "open";
  document.body.dataset.connected = open ? "yes" : "no";
  for (const id of ["utterance", "send"]) at(id).disabled = !open;
  at("cancel").disabled = !open || !turn;
  at("connect").disabled = wanted;
  at("disconnect").disabled = !wanted;
}

function line(text, kind) {
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = text;
  const list = at("conversation");
  list.append(item);
  list.scrollTop = list.scrollHeight;
  return item;
}

function mark(item, text) {
  const note = document.createElement("small");
  note.textContent = text;
  item.append(note);
}

function logFrame(text, kind) {
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = (kind === "out" ? "→ " : "← ") + text;
  const list = at("frames");
  const follows = list.scrollTop + list.clientHeight >= list.scrollHeight - 8;
  list.append(item);
  while (list.childElementCount > MOST_FRAMES) list.firstElementChild.remove();
  if (follows) list.scrollTop = list.scrollHeight;
}

function drawChart() {
  const chart = at("chart");
  chart.replaceChildren();
  const shape = (name, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    chart.append(made);
  };
  const most = Math.max(...firstTokens, 1);
  const width = 284 / BARS;
  shape("line", { x1: 34, y1: 82, x2: 320, y2: 82 });
  shape("text", { x: 30, y: 12, "text-anchor": "end" }, most.toFixed(0));
  shape("text", { x: 30, y: 84, "text-anchor": "end" }, "0");
  firstTokens.forEach((value, index) => {
    const height = Math.max((74 * value) / most, 1);
    shape("rect", { x: 36 + index * width, y: 82 - height, width: width - 2, height });
  });
  const rounded = firstTokens.map((value) => value.toFixed(0));
  chart.setAttribute("aria-label", `first token of the last turns in milliseconds: ${rounded.join(", ")}`);
}

function showUsage(ended, usage) {
  const speaking = usage.duration_ms - (usage.ttft_ms ?? usage.duration_ms);
  const spoken = usage.completion_tokens - (usage.thinking_tokens ?? 0);
  at("ttft").textContent = usage.ttft_ms === null ? "nothing was spoken" : `${usage.ttft_ms.toFixed(1)} ms`;
  at("seen").textContent = ended.first ? `${(ended.first - ended.sent).toFixed(1)} ms` : "–";
  at("rate").textContent = speaking > 0 && spoken > 1 ? (((spoken - 1) * 1000) / speaking).toFixed(1) : "–";
  const thought = usage.thinking_tokens ? ` (${usage.thinking_tokens} thought)` : "";
  at("tokens").textContent = `${usage.prompt_tokens} in, ${usage.completion_tokens} out${thought}, ${usage.finish_reason}`;
  at("cached").textContent = `${usage.cached_tokens} of ${usage.prompt_tokens}`;
  at("prepared").textContent = usage.prepared ? "yes" : "no";
  if (usage.ttft_ms !== null) {
    firstTokens.push(usage.ttft_ms);
    if (firstTokens.length > BARS) firstTokens.shift();
    drawChart();
  }
}

// --- what is sent

function send(message) {
  if (socket?.readyState !== WebSocket.OPEN) return false;
  const text = JSON.stringify(message);
  socket.send(text);
  logFrame(text, "out");
  return true;
}

function sampling() {
  return { ...Object.fromEntries(moved), sanitize_output: at("sanitize").checked };
}

function begin(message, said) {
  const id = `turn-${++turns}`;
  if (!send({ ...message, request_id: id })) return;
  line(said, "mine");
  turn = { id, sent: performance.now(), first: 0, reply: null, text: "" };
  at("followup").hidden = true;
  enable();
}

function asking(text) {
  return {
    session_id: at("session").value,
    persona_text: at("persona").value,
    user_utterance: text,
    sampling: sampling(),
  };
}

function say(text) {
  begin({ type: "start", ...asking(text) }, text);
}

// What will probably be sent: the same message then finds its reply begun, and another one is as without.
function prepare() {
  const text = at("utterance").value.trim();
  if (text && !turn && at("ahead").checked) send({ type: "prepare", ...asking(text), request_id: `prepare-${++prepares}` });
}

function cancel() {
  if (turn) send({ type: "cancel" });
}

// --- what comes

const answers = {
  ack(frame) {
    for (const warning of frame.warning ?? []) line(warning, "note wrong");
  },
  toolcall(frame) {
    const tools = frame.raw.map((tool) => `${tool.name} ${tool.probability?.toFixed(3) ?? ""}`.trim());
    at("decision").textContent = frame.status === "yes" ? `yes: ${tools.join(", ")}` : "no";
    if (turn) turn.screenshot = frame.raw.some((tool) => tool.name === "take_screenshot");
  },
  token(frame) {
    if (!turn || frame.request_id !== turn.id) return;
    turn.first ||= performance.now();
    turn.reply ??= line("", "reply");
    turn.text += frame.text;
    turn.reply.textContent = turn.text;
    at("conversation").scrollTop = at("conversation").scrollHeight;
  },
  done(frame) {
    // Of a turn that was spoken over, the next one runs already.
    const ended = turn && frame.request_id === turn.id ? turn : null;
    if (frame.cancelled && last && frame.request_id === last.id && last.reply) mark(last.reply, "interrupted");
    if (!ended) return;
    if (frame.cancelled) ended.reply ? mark(ended.reply, "interrupted") : line("cancelled before a word was said", "note");
    if (frame.usage) {
      showUsage(ended, frame.usage);
      if (!ended.reply) line("nothing was said", "note");
    }
    at("followup").hidden = !(ended.screenshot && frame.usage);
    finish();
  },
  error(frame) {
    if (String(frame.request_id).startsWith("prepare-")) return; // the frames show it, and the message is as without
    const found = frame.field ? ` (${frame.field}: expected ${frame.expected}, found ${frame.found})` : "";
    line(`${frame.error_code}: ${frame.message}${found}`, "note wrong");
    // No turn began, so no `done` comes.
    if (turn && frame.request_id === turn.id && !frame.error_code.startsWith("generation_")) finish();
  },
  pong() {
    if (at("state").dataset.state === "open") return;
    state(`connected to ${location.host}`, "open");
    wait = FIRST_WAIT_MS;
    enable();
    at("utterance").focus();
  },
  draining() {
    state("the server goes away; reconnecting when it has closed", "waiting");
  },
};

function finish() {
  last = turn;
  turn = null;
  enable();
}

function received(event) {
  logFrame(event.data, "in");
  const frame = JSON.parse(event.data);
  answers[frame.type]?.(frame);
}

// --- the connection

const REASONS = {
  1008: "wrong key, or this page's address is not in WS_ALLOWED_ORIGINS",
  1009: "the message was too long",
  1013: "no room, or still loading",
  4000: "the server heard nothing for too long",
};

function connect() {
  const url = new URL("ws", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  url.searchParams.set("api_key", at("key").value);
  url.searchParams.set("session", at("session").value); // where routers see it
  state("connecting …", "waiting");
  const mine = new WebSocket(url);
  socket = mine;
  mine.addEventListener("message", received);
  // A stranger is accepted too, and told then: who gets an answer is in.
  mine.addEventListener("open", () => mine.send('{"type":"ping"}'));
  mine.addEventListener("close", (event) => {
    if (mine !== socket) return;
    closed(event);
  });
  clearInterval(keepAlive);
  keepAlive = setInterval(() => {
    if (mine.readyState === WebSocket.OPEN) mine.send('{"type":"pong"}');
  }, KEEP_ALIVE_MS);
  enable();
}

function closed(event) {
  const removed = event.reason === "key_removed"; // of all that closes with 1008, no wrong key
  const reason = removed ? "the key was taken away" : (REASONS[event.code] ?? (event.reason || "no answer"));
  if (turn) {
    line("the connection ended during the reply", "note");
    finish();
  }
  if (event.code === 1008) wanted = false;
  if (!wanted) {
    state(event.code === 1000 || event.code === 1005 ? "not connected" : `closed: ${reason}`, event.code === 1008 ? "wrong" : "closed");
  } else {
    const rest = wait * (0.75 + Math.random() / 2);
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
    state(`${reason}; trying again in ${(rest / 1000).toFixed(1)} s`, "waiting");
    timer = setTimeout(connect, rest);
  }
  enable();
  if (event.code === 1008) at("key").focus();
}

// --- the page

function newSession() {
  at("session").value = `playground-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
}

function setKnobs() {
  moved.clear();
  at("sampling").replaceChildren();
  for (const [name, least, most, step, value] of KNOBS) {
    const label = document.createElement("label");
    const slider = document.createElement("input");
    const shown = document.createElement("output");
    Object.assign(slider, { type: "range", id: `knob-${name}`, min: least, max: most, step, value });
    label.htmlFor = slider.id;
    shown.htmlFor = slider.id;
    shown.textContent = "the server's";
    label.append(`${name}: `, shown);
    slider.addEventListener("input", () => {
      moved.set(name, slider.valueAsNumber);
      shown.textContent = slider.value;
    });
    at("sampling").append(label, slider);
  }
}

at("connection").addEventListener("submit", (event) => {
  event.preventDefault();
  if (wanted) return;
  clearTimeout(timer);
  wanted = true;
  wait = FIRST_WAIT_MS;
  connect();
});
at("disconnect").addEventListener("click", () => {
  wanted = false;
  clearTimeout(timer);
  if (!send({ type: "end" })) socket?.close();
  state("not connected", "closed");
  enable();
});
at("message").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("utterance").value.trim();
  if (!text || at("send").disabled) return;
  if (turn) last = turn;
  clearTimeout(pause);
  say(text);
  at("utterance").value = "";
});
at("followup").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("analysis").value.trim();
  if (text) begin({ type: "followup", session_id: at("session").value, analysis_text: text, sampling: sampling() }, `(screen) ${text}`);
});
at("utterance").addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(prepare, PAUSE_MS);
  // Before its first word there is nothing to interrupt: the next `start` ends that turn, and keeps what was said.
  if (at("typing").checked && turn?.text) cancel();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") cancel();
});
at("cancel").addEventListener("click", cancel);
at("clear").addEventListener("click", () => at("frames").replaceChildren());
at("defaults").addEventListener("click", () => {
  newSession();
  setKnobs();
  line("a new session", "note");
});

newSession();
setKnobs();
drawChart();
enable();
