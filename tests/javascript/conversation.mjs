// The client's own tests, against the server at YAP_URL with the key YAP_KEY. What the model says is its prompt, word by
// word, as `[system] … [user] … [assistant] … [user] …`, so that a reply tells what the server remembers. "look" in an
// utterance is a tool decision yes. A printed DRAIN asks for the server's drain, HASTEN for the rest of a reply at once.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Client } from "./client.mjs";

const { YAP_URL: url, YAP_KEY: key } = process.env;
const plain = { sanitize_output: false };
let number = 0;
let client;
let session;

const start = (words, fields = {}) => ({
  type: "start",
  session_id: session,
  user_utterance: words,
  sampling: plain,
  ...fields,
});

before(async () => (client = await Client.connect(url, key)));
after(async () => client.open && (await client.end()));

const conversation = (name, body) =>
  test(name, async () => {
    session = `javascript-${(number += 1)}`;
    await body();
  });

conversation("a first conversation", async () => {
  const turn = await client.turn(start("look at this", { persona_text: "You are Mia.", gender: "woman" })).whole();
  assert.equal(turn.ack.for, "start");
  assert.equal(turn.ack.session_id, session);
  assert.equal(turn.ack.gender, "woman");
  assert.equal(turn.ack.chat_prompt, true);
  assert.ok(!Number.isNaN(Date.parse(turn.ack.now)));
  assert.equal(turn.decision, "yes");
  assert.equal(turn.text, "[system] You are Mia. [user] MUST CHECK SCREEN: look at this ");
  assert.equal(turn.done.usage.finish_reason, "stop");
  const next = await client.turn({ type: "followup", analysis_text: "a cat", sampling: plain }).whole();
  assert.equal(next.ack.for, "followup");
  assert.equal(next.decision, null);
  assert.ok(next.text.endsWith("[user] ON THE SCREEN NOW: a cat "));
});

conversation("one answer each", async () => {
  assert.deepEqual(await client.ask({ type: "PING", request_id: 7 }), { type: "pong", request_id: 7 });
  assert.equal((await client.ask({ type: "warm_persona", persona_text: "You are Mia." })).segment, "persona_static");
  assert.equal((await client.ask({ type: "warm_history", history: [] })).segment, "history");
  assert.equal((await client.ask({ cancel: true })).cancelled, true);
  assert.equal((await client.ask({ type: "dance" })).error_code, "unknown_message_type");
  const wrong = await client.ask({ type: "start", session_id: session, sampling: { temperature: 9 } });
  assert.deepEqual([wrong.error_code, wrong.field, wrong.found], ["temperature_out_of_range", "temperature", "9"]);
});

conversation("a chat_prompt is answered by its ack, whatever comes of it", async () => {
  const codes = [];
  codes.push((await client.ask({ type: "chat_prompt", persona_text: "x", session_id: session })).code);
  await client.turn(start("hello")).whole();
  for (const persona_text of ["You are Zoe.", "You are Zoe.", 5, "word ".repeat(3000)])
    codes.push((await client.ask({ type: "chat_prompt", persona_text })).code);
  assert.deepEqual(codes, [404, 200, 204, 400, 413]);
  assert.ok((await client.turn(start("hello")).whole()).text.startsWith("[system] You are Zoe. [user] hello "));
});

conversation("a cancel ends the turn, and the history has what was sent", async () => {
  const turn = client.turn(start("word ".repeat(200)));
  await turn.until(({ text }) => text.length > 20);
  const cancel = client.ask({ type: "cancel" });
  assert.equal((await cancel).cancelled, true); // the turn's `done` has the id of the cancel
  assert.equal((await turn.whole()).done.cancelled, true); // and ends the turn all the same
  const next = await client.turn(start("next")).whole();
  assert.ok(next.text.includes(`[assistant] ${turn.text.split(" ")[0]}`));
});

// Each ends on its own way out: a turn that waits for an end that never comes would be waited for here.
const cancels = {
  "of its own id": () => client.ask({ type: "cancel", request_id: `cancel-${session}` }),
  "of a made id": () => client.ask({ cancel: true }),
  "of the turn's id": ({ id }) => client.ask({ type: "CANCEL", request_id: id }),
  "without an id": async () => client.sendRaw('{"type":"cancel"}'),
};
for (const [name, cancel] of Object.entries(cancels))
  conversation(`a cancel ${name} ends its turn, and no other`, async () => {
    const turn = client.turn(start("word ".repeat(200)));
    await turn.until(({ text }) => text !== "");
    const answer = cancel(turn);
    const next = client.turn(start("next"));
    assert.equal((await turn.whole()).done.cancelled, true);
    assert.equal((await answer)?.cancelled ?? true, true);
    assert.ok("usage" in (await next.whole()).done);
    assert.equal(client.pending, 0);
  });

conversation("a cancel ends every turn that was sent before it, and a second one nothing more", async () => {
  const turns = [client.turn(start("word ".repeat(200)))];
  await turns[0].until(({ text }) => text !== "");
  turns.push(client.turn(start("one")), client.turn(start("two")));
  const answers = [client.ask({ type: "cancel" }), client.ask({ type: "cancel" })];
  for (const turn of turns) assert.equal((await turn.whole()).done.cancelled, true);
  for (const answer of await Promise.all(answers)) assert.equal(answer.cancelled, true);
  assert.equal((await client.ask({ type: "cancel" })).cancelled, true);
  assert.ok("usage" in (await client.turn(start("three")).whole()).done);
});

conversation("of a long conversation nothing is kept", async () => {
  for (let each = 0; each < 20; each += 1) {
    const turn = await client.turn(start("one two")).whole();
    await client.heard(turn, { chars: 3 });
    await client.turn(start("one", { sampling: { max_tokens: 0 } })).whole(); // is refused
    await client.ask({ type: "ping" });
  }
  assert.equal(client.pending, 0);
});

conversation("whoever waits hears of a socket that is lost", async () => {
  const other = await Client.connect(url, key);
  const turn = other.turn(start("word ".repeat(3000)));
  await turn.until(({ text }) => text !== "");
  const asked = other.ask({ type: "dance", request_id: "never", padding: "x".repeat(2 ** 21) }); // is too big
  const told = await Promise.allSettled([turn.whole(), asked, other.heard(turn, { chars: 1 })]);
  assert.deepEqual(told.map(({ status }) => status), ["rejected", "rejected", "rejected"]);
  assert.throws(() => other.turn(start("late")), /closed/);
  await assert.rejects(other.ask({ type: "ping" }), /closed/);
});

conversation("a barge-in ends the old turn before the new one begins", async () => {
  const order = [];
  const other = await Client.connect(url, key, {
    onFrame: ({ type, request_id }) => type !== "token" && order.push(`${request_id} ${type}`),
  });
  const old = other.turn({ ...start("word ".repeat(200)), request_id: "old" });
  await old.until(({ text }) => text !== "");
  const fresh = await other.turn({ ...start("stop"), request_id: "new" }).whole();
  await old.whole();
  assert.equal(old.done.cancelled, true);
  assert.ok(order.indexOf("old done") < order.indexOf("new ack"));
  assert.ok(fresh.text.endsWith("[user] stop "));
  await other.end();
});

conversation("what was heard is what the history keeps", async () => {
  const turn = await client.turn(start("one two three")).whole();
  assert.equal((await client.heard(turn, { text: "something else" })).error_code, "invalid_text");
  const answer = await client.heard(turn, { text: "[user] one" });
  assert.deepEqual([answer.for, answer.chars], ["heard", 10]);
  const next = await client.turn(start("next")).whole();
  assert.equal(next.text.trim(), "[user] one two three [assistant] [user] one [user] next");
  assert.equal((await client.heard(turn, { chars: 0 })).error_code, "no_such_reply");
  assert.equal((await client.heard(turn, { session_id: "nobody's", chars: 0 })).error_code, "no_active_session");
});

conversation("words that were cut before the reply began are in the next prompt", async () => {
  const first = client.turn(start("book me a flight"));
  await first.until(({ ack }) => ack !== null);
  const second = await client.turn(start("to Paris")).whole();
  await first.whole();
  assert.match(second.text, /^\[user\] book me a flight .*\[user\] to Paris $/);
});

conversation("stop and max_tokens end a reply", async () => {
  const turn = await client.turn(start("one two three", { sampling: { ...plain, stop: ["two"], seed: 7 } })).whole();
  assert.equal(turn.text, "[user] one ");
  assert.equal(turn.done.usage.finish_reason, "stop");
  const wrong = await client.turn(start("one", { sampling: { max_tokens: 0 } })).whole();
  assert.equal(wrong.error.error_code, "max_tokens_out_of_range");
});

conversation("a session is found again after a reconnect, and nobody else's is", async () => {
  const first = await Client.connect(url, key);
  await first.turn(start("remember me")).whole();
  assert.equal((await client.ask({ type: "followup", analysis_text: "x", session_id: session })).error_code,
    "no_active_session");
  const { code, answer } = await first.end();
  assert.deepEqual([code, answer.type, answer.reason], [1000, "connection_closed", "client_request"]);
  const second = await Client.connect(url, key);
  const turn = await second.turn({ type: "followup", analysis_text: "a cat", session_id: session }).whole();
  assert.match(turn.text, /remember me/);
  await second.end();
});

test("raw texts, and what is no message", async () => {
  const frames = [];
  const other = await Client.connect(url, key, { onFrame: (frame) => frames.push(frame) });
  other.sendRaw("__CANCEL__");
  other.sendRaw("no json");
  other.sendRaw(new Uint8Array([1, 2]));
  other.sendRaw("__END__");
  assert.deepEqual((await other.closed).code, 1000);
  assert.deepEqual(
    frames.map((frame) => frame.error_code ?? frame.type),
    ["done", "invalid_message", "invalid_message", "connection_closed"],
  );
});

test("a wrong key is told, and the socket closed", async () => {
  for (const wrong of ["wrong", undefined]) {
    const stranger = await Client.connect(url, wrong);
    assert.equal((await stranger.closed).code, 1008);
    assert.equal(stranger.refusal.error_code, "authentication_failed");
  }
});

test("a server that goes away says so, lets the turn finish, and refuses the next one", async () => {
  session = "javascript-last";
  const turn = client.turn(start("word ".repeat(3000)));
  await turn.until(({ text }) => text !== "");
  console.log("DRAIN");
  while (client.draining === null) await turn.next();
  assert.equal(client.draining.reconnect, true);
  assert.ok(client.draining.deadline_s > 0);
  assert.equal((await client.turn(start("late")).whole()).error.error_code, "draining");
  console.log("HASTEN");
  await turn.whole();
  assert.ok("usage" in turn.done);
  assert.deepEqual(await client.closed, { code: 1001, reason: "draining" });
});
