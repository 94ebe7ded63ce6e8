// A thrifty client: any node takes any request.
//
//     node client.mjs [HOST:PORT] put KEY VALUE
//     node client.mjs [HOST:PORT] get KEY
//     node client.mjs [HOST:PORT] del KEY
//
// Exit codes: 0 ok, 1 no such key, 2 wrong usage, 3 nothing done, 5 outcome unknown.

import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const ARGUMENTS = { put: 2, get: 1, del: 1 };
const CONNECT_MS = 2000;
const REQUEST_MS = 5000; // sent along: the server gives up in time to say how far it got

const [NOT_FOUND, USAGE, NOTHING_DONE, OUTCOME_UNKNOWN] = [1, 2, 3, 5];
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
  const definition = loadSync('thrifty/store/v1/store.proto', { includeDirs: [proto], longs: String, defaults: true });
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

function call(store, method, request) {
  return new Promise((resolve, reject) => {
    store[method](request, { deadline: Date.now() + REQUEST_MS }, (error, response) =>
      error ? reject(failure(error, method !== 'get')) : resolve(response),
    );
  });
}

// What a status means for the caller.
function failure({ code, details, metadata }, writes) {
  const message = `${status[code]}: ${details}`;
  // UNAVAILABLE comes with RetryInfo if the server says so, and without if the connection broke.
  const more = metadata?.get('grpc-status-details-bin')[0] ?? '';
  const refused = code === status.UNAVAILABLE && more.includes('google.rpc.RetryInfo');
  if (code === status.NOT_FOUND) return new Failure(NOT_FOUND, message);
  if (WRONG.includes(code)) return new Failure(USAGE, message);
  if (refused || code === status.RESOURCE_EXHAUSTED || !writes) {
    return new Failure(NOTHING_DONE, `${message} (try again later)`);
  }
  // ABORTED, DEADLINE_EXCEEDED, a broken connection, and whatever else a write may end with.
  return new Failure(OUTCOME_UNKNOWN, `${message} (it may have happened or not: read before you repeat it)`);
}

async function main(args) {
  const address = args.length > 0 && !Object.hasOwn(ARGUMENTS, args[0]) ? args.shift() : '127.0.0.1:9900';
  const [command, ...rest] = args;
  if (!Object.hasOwn(ARGUMENTS, command ?? '') || rest.length !== ARGUMENTS[command]) {
    throw new Failure(USAGE, 'usage: [HOST:PORT] put KEY VALUE | get KEY | del KEY');
  }
  const [key, value] = rest.map((text) => Buffer.from(text));
  const store = storeAt(address);
  try {
    await connected(store, address);
    if (command === 'put') await call(store, 'put', { key, value });
    if (command === 'del') await call(store, 'delete', { key });
    if (command === 'get') {
      const found = await call(store, 'get', { key });
      process.stdout.write(found.value);
      if (process.stdout.isTTY) process.stdout.write('\n');
    }
  } finally {
    store.close();
  }
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof Failure)) throw error;
  console.error(`client.mjs: ${error.message}`);
  process.exitCode = error.exitCode;
}
