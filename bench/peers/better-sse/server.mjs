// better-sse over Redis Streams, as an application would write it: a better-sse channel for each topic in use,
// and one hub that reads all their streams with one blocking XREAD.
//
// A stream's `position` is the id of the last event that its channel was given; only `deliver` moves it, and
// whoever needs both a position and the events after it takes them without an await in between.
//
// A lost Redis ends the process.
//
//     node server.mjs --port 8001 --redis-url redis://127.0.0.1:6379 --heartbeat-s 15

import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";

import { createChannel, createEventBuffer, createSession } from "better-sse";
import { Redis } from "ioredis";

const SSE_PATH_PREFIX = "/v1/sse/";
const TOPIC_KEY_PREFIX = "topic:events:";
const STREAM_ID = /^\d+-\d+$/;
const BEFORE_ALL = "0-0";
const RETRY_MS = 2000; // better-sse's default
const BACKLOG_CONNECTIONS = 4096; // Linux's usual net.core.somaxconn: more is cut down to it
const UNBLOCK_AGAIN_MS = 1;

const { values: options } = parseArgs({
  options: {
    port: { type: "string" },
    "redis-url": { type: "string", default: "redis://127.0.0.1:6379" },
    "heartbeat-s": { type: "string", default: "15" },
  },
});

process.once("SIGTERM", () => process.exit(0));

const serializer = (payload) => payload; // it is JSON already

const reader = connect({ autoResendUnfulfilledCommands: false });
const commands = connect({ enableAutoPipelining: true });
const readerId = await reader.client("ID");

function connect(redisOptions) {
  // ioredis knows redis:// and rediss:// by itself, and a Unix socket by its path.
  const unix = options["redis-url"].match(/^unix:\/\/(?:([^:@]*):([^@]*)@)?(\/.*)$/);
  const [, username, password, path] = unix?.map((part) => part && decodeURIComponent(part)) ?? [];
  const login = password ? { username: username || undefined, password } : {};
  const redis = new Redis(path ?? options["redis-url"], { ...login, ...redisOptions, retryStrategy: () => null });
  redis.on("error", (error) => {
    console.error(error);
    process.exit(1);
  });
  redis.on("end", () => process.exit(1));
  return redis;
}

// ---- the hub

const streams = new Map(); // by key

let outdated = false; // a stream came that the XREAD under way does not ask for
let leaveIdle = () => {};

function watch(key) {
  let stream = streams.get(key);
  if (stream === undefined) {
    stream = { key, channel: createChannel(), position: undefined, asked: false, users: 0, queues: new Set() };
    stream.ready = begin(stream);
    streams.set(key, stream);
  }
  return stream;
}

async function begin(stream) {
  const [newest] = await commands.xrevrange(stream.key, "+", "-", "COUNT", 1);
  stream.position = newest?.[0] ?? BEFORE_ALL;
  if (!outdated) {
    outdated = true;
    leaveIdle();
    unblock();
  }
}

// Redis answers 0 where the XREAD has not arrived yet, or has returned already: the second ends the loop.
async function unblock() {
  while (outdated && !(await commands.client("UNBLOCK", readerId))) {
    await sleep(UNBLOCK_AGAIN_MS);
  }
}

async function readForever() {
  for (;;) {
    outdated = false;
    const keys = [];
    const positions = [];
    for (const stream of streams.values()) {
      if (stream.position !== undefined) {
        stream.asked = true;
        keys.push(stream.key);
        positions.push(stream.position);
      }
    }
    if (keys.length === 0) {
      await new Promise((resolve) => {
        leaveIdle = resolve;
      });
      continue;
    }
    const reply = await reader.xread("BLOCK", 0, "STREAMS", ...keys, ...positions);
    for (const [key, entries] of reply ?? []) {
      const stream = streams.get(key);
      // One that was given up and watched anew has a newer position than this answer's.
      if (stream?.asked) {
        deliver(stream, entries);
      }
    }
  }
}

function deliver(stream, entries) {
  stream.position = entries.at(-1)[0];
  for (const queue of stream.queues) {
    queue.push(...entries);
  }
  if (entries.length === 1) {
    const [id, [, payload]] = entries[0];
    stream.channel.broadcast(payload, "message", { eventId: id });
    return;
  }
  // better-sse's guide: many events at once go to a channel's sessions through one event buffer.
  const buffer = pushAll(createEventBuffer({ serializer }), entries);
  for (const session of stream.channel.activeSessions) {
    session.batch(buffer);
  }
}

function pushAll(buffer, entries) {
  for (const [id, [, payload]] of entries) {
    buffer.push(payload, "message", id);
  }
  return buffer;
}

// ---- subscribers

async function subscribe(request, response, key) {
  const stream = watch(key);
  stream.users += 1;
  response.once("close", () => {
    stream.users -= 1;
    if (stream.users === 0) {
      streams.delete(key);
    }
  });
  const sessionOptions = { serializer, retry: RETRY_MS, keepAlive: Number(options["heartbeat-s"]) * 1000 };
  const [session] = await Promise.all([createSession(request, response, sessionOptions), stream.ready]);

  let position = stream.position;
  let missed = [];
  if (STREAM_ID.test(session.lastId)) {
    // Up to the position from Redis; what comes after it meanwhile waits in the queue.
    const queue = [];
    stream.queues.add(queue);
    missed = await commands.xrange(key, `(${session.lastId}`, position);
    stream.queues.delete(queue);
    missed.push(...queue);
    position = session.lastId;
  }
  if (response.closed) {
    return;
  }
  const first = createEventBuffer({ serializer }).id(position).dispatch();
  session.batch(pushAll(first, missed));
  stream.channel.register(session);
}

const server = createServer({ requestTimeout: 0 }, (request, response) => {
  const [path] = request.url.split("?", 1);
  const topic = path.startsWith(SSE_PATH_PREFIX) ? path.slice(SSE_PATH_PREFIX.length) : "";
  if (request.method !== "GET" || topic === "") {
    response.writeHead(404).end();
    return;
  }
  subscribe(request, response, TOPIC_KEY_PREFIX + topic);
});

readForever();
server.listen({ host: "127.0.0.1", port: Number(options.port), backlog: BACKLOG_CONNECTIONS });
