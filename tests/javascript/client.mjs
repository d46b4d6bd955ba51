// A client of the WebSocket protocol, written from docs/protocol.md alone. Needs a global `WebSocket`.

// One connection. Frames that carry a request_id go to whoever waits for that id, in order; all others to `onFrame`.
export class Client {
  #socket;
  #waiting = new Map(); // request_id -> Entry, until its last answer has come
  #next = 0;

  // Resolves when the socket is open. A server that refuses says why in a frame, then closes: see `refusal` and `closed`.
  static async connect(url, key, { session, onFrame = () => {} } = {}) {
    const client = new Client();
    const address = new URL(url);
    if (key !== undefined) address.searchParams.set("api_key", key);
    if (session !== undefined) address.searchParams.set("session", session); // where routers see it
    const socket = new WebSocket(address);
    client.#socket = socket;
    client.refusal = null; // an `error` that answers no message: the server did not let us in
    client.draining = null; // the server's announcement that it goes away
    client.closed = new Promise((resolve) =>
      socket.addEventListener("close", (event) => {
        resolve({ code: event.code, reason: event.reason });
        for (const entry of client.#waiting.values()) entry.lose();
      }),
    );
    client.open = true;
    client.closed.then(() => (client.open = false));
    socket.addEventListener("message", (event) => client.#receive(JSON.parse(event.data), onFrame));
    await new Promise((resolve, reject) => {
      socket.addEventListener("open", resolve, { once: true });
      socket.addEventListener("error", () => reject(new Error(`cannot connect to ${url}`)), { once: true });
    });
    return client;
  }

  // How many messages have not got their last answer yet.
  get pending() {
    return this.#waiting.size;
  }

  #receive(frame, onFrame) {
    const entry = this.#waiting.get(frame.request_id);
    if (entry !== undefined) {
      this.#answer(entry, frame);
    } else if (frame.type === "draining") {
      this.draining = frame;
    } else if (frame.type === "error") {
      this.refusal = frame;
    }
    onFrame(frame);
  }

  #answer(entry, frame) {
    // The first cancel of a turn shares its `done` with the turn: with the newest that was sent before it and runs still.
    if (entry.cancels && frame.type === "done") {
      const running = ({ turn, ended, number }) => turn && !ended && number < entry.number;
      const newest = [...this.#waiting.values()].filter(running).at(-1);
      if (newest !== undefined) this.#answer(newest, { ...frame, request_id: newest.id });
    }
    entry.take(frame);
    if (entry.ended && entry.heards.length === 0) this.#waiting.delete(entry.id);
  }

  sendRaw(data) {
    this.#socket.send(data);
  }

  #submit(message, turn) {
    const number = (this.#next += 1);
    const id = message.request_id ?? `m${number}`;
    let entry = this.#waiting.get(id);
    if (entry?.ended ?? true)
      entry = new Entry(id, number, turn, message.cancel === true || /^cancel$/i.test(message.type));
    if (!this.open) throw new Error("the socket is closed");
    this.#waiting.set(id, entry);
    this.#socket.send(JSON.stringify({ ...message, request_id: id }));
    return entry;
  }

  // Messages that have one answer: ping, warm_*, chat_prompt, cancel, end, and whatever is refused. That of a cancel
  // which has a turn's own id is the turn's end.
  async ask(message) {
    return this.#submit(message, false).last;
  }

  // A `start` or a `followup`.
  turn(message) {
    return new Turn(this.#submit(message, true), this);
  }

  // What the listener got of a turn's reply. Its answer has the turn's id too, and may come after its end.
  async heard(turn, what) {
    if (!this.open) throw new Error("the socket is closed");
    if (!this.#waiting.has(turn.id)) this.#waiting.set(turn.id, turn.entry);
    this.#socket.send(JSON.stringify({ type: "heard", request_id: turn.id, ...what }));
    return turn.entry.heard();
  }

  async end() {
    const answer = await this.ask({ type: "end" });
    return { answer, ...(await this.closed) };
  }
}

// What was sent under one id, and what has come to it.
class Entry {
  frames = []; // of a turn, that nobody has read yet
  wake = null; // called when there are more
  ended = false; // whether its last answer has come; those to a `heard` may follow
  heards = []; // who waits for the answers to those, in order
  #acknowledged = false;
  #settle;

  constructor(id, number, turn, cancels) {
    Object.assign(this, { id, number, turn, cancels });
    this.last = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.last.catch(() => {}); // a turn that is lost says so to its reader
  }

  heard() {
    return new Promise((resolve, reject) => this.heards.push({ resolve, reject }));
  }

  take(frame) {
    const code = frame.type === "error" ? frame.error_code : undefined;
    const about = this.#acknowledged ? !FAILURES.has(code) : HEARD_ERRORS.has(code);
    const refused = code !== undefined && this.heards.length > 0 && about;
    if (this.turn && (refused || (frame.type === "ack" && frame.for === "heard"))) {
      this.heards.shift()?.resolve(frame);
      return;
    }
    this.#acknowledged ||= frame.type === "ack";
    this.ended ||= !this.turn || frame.type === "done" || (frame.type === "error" && !this.#acknowledged);
    if (this.turn) this.frames.push(frame);
    if (this.ended) this.#settle.resolve(frame);
    this.wake?.();
  }

  lose() {
    const error = new Error("the socket was closed before the answer");
    this.#settle.reject(error);
    for (const each of this.heards.splice(0)) each.reject(error);
    this.wake?.();
  }
}

// A turn, which is read frame by frame. It checks what the page says always holds.
export class Turn {
  #acknowledged = false;
  #toolcall = null;

  constructor(entry, client) {
    this.id = entry.id;
    this.entry = entry;
    this.client = client;
    this.text = "";
    this.ack = null;
    this.error = null;
    this.final = null;
    this.done = null;
  }

  get decision() {
    return this.#toolcall?.status ?? null;
  }

  // The next frame, accounted for; null after the turn's end.
  async next() {
    if (this.done !== null || (this.error !== null && !this.#acknowledged)) return null;
    const frame = await this.#read();
    switch (frame.type) {
      case "ack":
        if (this.#acknowledged) throw new Error("a second ack");
        this.#acknowledged = true;
        this.ack = frame;
        break;
      case "toolcall":
        if (this.text !== "") throw new Error("a toolcall after the first token");
        this.#toolcall = frame;
        break;
      case "token":
        if (frame.text === "") throw new Error("an empty token");
        this.text += frame.text;
        break;
      case "final":
        if (frame.normalized_text !== this.text) throw new Error("final is not the tokens, joined");
        this.final = frame;
        break;
      case "error":
        this.error = frame;
        break;
      case "done":
        this.done = frame;
        if (("usage" in frame) + (frame.cancelled === true) + (frame.failed === true) !== 1)
          throw new Error("done with not exactly one outcome");
        break;
      default:
        throw new Error(`a turn has no ${frame.type}`);
    }
    if (!this.#acknowledged && frame.type !== "error") throw new Error(`${frame.type} before the ack`);
    return frame;
  }

  // Read until so much text has come.
  async until(condition) {
    while (!condition(this)) if ((await this.next()) === null) throw new Error("the turn ended before");
    return this;
  }

  // Read to the end.
  async whole() {
    while ((await this.next()) !== null);
    return this;
  }

  async #read() {
    const { frames } = this.entry;
    while (frames.length === 0) {
      if (!this.client.open) throw new Error("the socket was closed before the answer");
      await new Promise((resolve) => (this.entry.wake = resolve));
    }
    return frames.shift();
  }
}

// A turn's own errors after its `ack`; others with its id answer a `heard`. Before it, these do.
const FAILURES = new Set(["generation_failed", "generation_timeout", "internal_error"]);
const HEARD_ERRORS = new Set(["no_such_reply", "invalid_text", "invalid_chars", "chars_out_of_range", "missing_text"]);
