// A client of the WebSocket protocol, written from docs/protocol.md alone. Needs a global `WebSocket`.

// One connection. Frames that carry a request_id go to whoever waits for that id, in order; all others to `onFrame`.
export class Client {
  #socket;
  #waiting = new Map(); // request_id -> { frames, wake }
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
        for (const entry of client.#waiting.values()) entry.wake?.();
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

  #receive(frame, onFrame) {
    const entry = this.#waiting.get(frame.request_id);
    if (entry !== undefined) {
      entry.frames.push(frame);
      entry.wake?.();
    } else if (frame.type === "draining") {
      this.draining = frame;
    } else if (frame.type === "error") {
      this.refusal = frame;
    }
    onFrame(frame);
  }

  sendRaw(data) {
    this.#socket.send(data);
  }

  #submit(message) {
    const id = message.request_id ?? `m${(this.#next += 1)}`;
    if (!this.#waiting.has(id)) this.#waiting.set(id, { frames: [], wake: null });
    this.#socket.send(JSON.stringify({ ...message, request_id: id }));
    return id;
  }

  async #frame(id) {
    const entry = this.#waiting.get(id);
    while (entry.frames.length === 0) {
      if (!this.open) throw new Error("the socket was closed before the answer");
      await new Promise((resolve) => (entry.wake = resolve));
    }
    return entry.frames.shift();
  }

  // Messages that have one answer: ping, warm_*, chat_prompt, cancel, end, and whatever is refused.
  async ask(message) {
    const id = this.#submit(message);
    const answer = await this.#frame(id);
    this.#waiting.delete(id);
    return answer;
  }

  // A `start` or a `followup`.
  turn(message) {
    const id = this.#submit(message);
    return new Turn(id, () => this.#frame(id), this);
  }

  // What the listener got of a turn's reply. Its answer has the turn's id too.
  async heard(turn, what) {
    this.#socket.send(JSON.stringify({ type: "heard", request_id: turn.id, ...what }));
    return turn.heardAnswer();
  }

  async end() {
    const answer = await this.ask({ type: "end" });
    return { answer, ...(await this.closed) };
  }
}

// A turn, which is read frame by frame. It checks what the page says always holds.
export class Turn {
  #read;
  #acknowledged = false;
  #toolcall = null;
  #heard = [];

  constructor(id, read, client) {
    this.id = id;
    this.client = client;
    this.text = "";
    this.ack = null;
    this.error = null;
    this.final = null;
    this.done = null;
    this.#read = read;
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
        if (frame.for === "heard") {
          this.#heard.push(frame);
          return frame;
        }
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
        if (HEARD_ERRORS.has(frame.error_code)) this.#heard.push(frame);
        else this.error = frame;
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

  async heardAnswer() {
    while (this.#heard.length === 0) {
      if (this.done !== null) this.#heard.push(await this.#read());
      else await this.next();
    }
    return this.#heard.shift();
  }
}

const HEARD_ERRORS = new Set(["no_such_reply", "invalid_text", "invalid_chars", "chars_out_of_range", "missing_text"]);
