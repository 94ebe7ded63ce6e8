// A thrifty client: any node takes any request.
//
//     node client.mjs [HOST:PORT] put [--ttl-ms MILLISECONDS] KEY VALUE
//     node client.mjs [HOST:PORT] get KEY
//     node client.mjs [HOST:PORT] del KEY
//     node client.mjs [HOST:PORT] batch          lines of stdin: put KEY VALUE | get KEY | del KEY
//     node client.mjs [HOST:PORT] ls [PREFIX]    the keys that begin with it
//
// Exit codes: 0 ok, 1 no such key, 2 wrong usage, 3 nothing done, 5 outcome unknown.

import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const USAGE_LINE =
  'usage: [HOST:PORT] put [--ttl-ms MILLISECONDS] KEY VALUE | get KEY | del KEY | batch | ls [PREFIX]';
const ARGUMENTS = { put: [2], get: [1], del: [1], batch: [0], ls: [0, 1] };
const CONNECT_MS = 2000;
const REQUEST_MS = 5000; // sent along: the server gives up in time to say how far it got
const RESUMES = 4; // of a scan, one after the other that bring nothing
const PAUSE_MS = 100; // before the first of them; doubles

const [OK, NOT_FOUND, USAGE, NOTHING_DONE, OUTCOME_UNKNOWN] = [0, 1, 2, 3, 5];
const { status } = grpc;
const WRONG = [
  status.INVALID_ARGUMENT,
  status.OUT_OF_RANGE,
  status.FAILED_PRECONDITION,
  status.PERMISSION_DENIED,
  status.UNIMPLEMENTED, // a node of the location service, which stores nothing
];

class Failure extends Error {
  constructor(exitCode, message) {
    super(message);
    this.exitCode = exitCode;
  }
}

function storeAt(address) {
  const proto = fileURLToPath(new URL('../../../proto', import.meta.url));
  // Without `defaults`, a value of no bytes would be undefined.
  const options = { includeDirs: [proto], longs: String, defaults: true, oneofs: true };
  const definition = loadSync('thrifty/store/v1/store.proto', options);
  const { Store } = grpc.loadPackageDefinition(definition).thrifty.store.v1;
  return new Store(address, grpc.credentials.createInsecure());
}

// Connects first, so that a request which fails afterwards may have been sent.
function connected(store, address) {
  return new Promise((resolve, reject) => {
    store.waitForReady(Date.now() + CONNECT_MS, (error) =>
      error ? reject(new Failure(NOTHING_DONE, `nobody answers at ${address}: nothing was done`)) : resolve(),
    );
  });
}

function call(store, method, request, writes) {
  return new Promise((resolve, reject) => {
    store[method](request, { deadline: Date.now() + REQUEST_MS }, (error, response) =>
      error ? reject(failure(error, writes)) : resolve(response),
    );
  });
}

// Carries many requests out in one: for each an exit code and the value or what went wrong.
async function batch(store, items) {
  const writes = items.some((item) => !item.get);
  const { results } = await call(store, 'batch', { items }, writes);
  if (results.length !== items.length) throw meaning(status.INTERNAL, 'results are missing', !writes);
  return results.map((result, index) => outcome(items[index], result));
}

function outcome(item, { result: came, get, failure: said }) {
  if (came && came in item) return [OK, get?.value ?? 'done'];
  const { code, message, outcomeUnknown } = said ?? { code: status.UNKNOWN, message: 'a result of another kind' };
  // The value did not fit into the answer any more.
  if (code === status.OUT_OF_RANGE) return [NOTHING_DONE, `OUT_OF_RANGE: ${message}`];
  // A failure says outright whether anything was done, a result of another kind doesn't.
  const failed = meaning(code, message, item.get || outcomeUnknown === false);
  return [failed.exitCode, failed.message];
}

// Yields the keys that begin with the prefix. A stream that breaks is resumed where it was.
async function* scan(store, prefix = Buffer.alloc(0)) {
  let token = Buffer.alloc(0);
  for (let broken = 0; ; broken += 1) {
    let failed = new Failure(NOTHING_DONE, 'the scan stopped before its end');
    try {
      const asked = { prefix, pageToken: token, keysOnly: true };
      for await (const page of store.scan(asked, { deadline: Date.now() + REQUEST_MS })) {
        yield* page.items.map((item) => item.key);
        token = page.pageToken;
        broken = 0;
        if (token.length === 0) return;
      }
    } catch (error) {
      failed = failure(error, false);
    }
    if (failed.exitCode !== NOTHING_DONE || broken === RESUMES) throw failed;
    await sleep(PAUSE_MS * 2 ** broken);
  }
}

// What the failure of a call means for the caller.
function failure({ code, details, metadata }, writes) {
  // UNAVAILABLE comes with RetryInfo if the server says so, and without if the connection broke.
  const more = metadata?.get('grpc-status-details-bin')[0] ?? '';
  const refused = code === status.UNAVAILABLE && more.includes('google.rpc.RetryInfo');
  return meaning(code, details, refused || code === status.RESOURCE_EXHAUSTED || !writes);
}

// What a status means for the caller.
function meaning(code, details, nothingDone) {
  const message = `${status[code]}: ${details}`;
  if (code === status.NOT_FOUND) return new Failure(NOT_FOUND, message);
  if (WRONG.includes(code)) return new Failure(USAGE, message);
  if (nothingDone) return new Failure(NOTHING_DONE, `${message} (try again later)`);
  // ABORTED, DEADLINE_EXCEEDED, a broken connection, and whatever else a write may end with.
  return new Failure(OUTCOME_UNKNOWN, `${message} (it may have happened or not: read before you repeat it)`);
}

async function batchItems() {
  let text = '';
  process.stdin.setEncoding('latin1'); // a character for every byte
  for await (const more of process.stdin) text += more;
  const lines = text.split('\n');
  if (lines.at(-1) === '') lines.pop();
  return lines.map(batchItem);
}

function batchItem(line) {
  const [, command, ...rest] = /^(\w+) ([^ ]*)(?: (.*))?$/s.exec(line) ?? [];
  const [key, value] = rest.filter((text) => text !== undefined).map((text) => Buffer.from(text, 'latin1'));
  if (command === 'put' && value) return { put: { key, value } };
  if (command === 'get' && !value) return { get: { key } };
  if (command === 'del' && !value) return { delete: { key } };
  throw new Failure(USAGE, 'every line of a batch is put KEY VALUE | get KEY | del KEY: nothing was done');
}

function print(...parts) {
  process.stdout.write(Buffer.concat([...parts, '\n'].map((part) => Buffer.from(part))));
}

async function main(args) {
  const address = args.length > 0 && !Object.hasOwn(ARGUMENTS, args[0]) ? args.shift() : '127.0.0.1:9900';
  const command = args.shift() ?? '';
  let ttlMs;
  if (command === 'put' && args.length === 4 && args[0] === '--ttl-ms' && /^\d{1,15}$/.test(args[1])) {
    [, ttlMs] = args.splice(0, 2);
  }
  if (!Object.hasOwn(ARGUMENTS, command) || !ARGUMENTS[command].includes(args.length)) {
    throw new Failure(USAGE, USAGE_LINE);
  }
  const [key, value] = args.map((text) => Buffer.from(text));
  const items = command === 'batch' ? await batchItems() : [];
  const store = storeAt(address);
  try {
    await connected(store, address);
    if (command === 'put') await call(store, 'put', { key, value, ttlMs }, true);
    if (command === 'del') await call(store, 'delete', { key }, true);
    if (command === 'get') {
      const found = await call(store, 'get', { key }, false);
      process.stdout.write(found.value);
      if (process.stdout.isTTY) process.stdout.write('\n');
    }
    if (command === 'ls') for await (const found of scan(store, key)) print(found);
    if (command === 'batch') {
      const results = await batch(store, items);
      for (const [code, text] of results) print(`${code} `, text);
      const failed = results.map(([code]) => code).filter((code) => code !== OK);
      if (failed.length > 0) throw new Failure(Math.max(...failed), `${failed.length} of ${results.length} failed`);
    }
  } finally {
    store.close();
  }
}

process.stdout.on('error', () => process.exit(141)); // whoever reads it may stop early
try {
  await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof Failure)) throw error;
  console.error(`client.mjs: ${error.message}`);
  process.exitCode = error.exitCode;
}
