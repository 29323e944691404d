// A redis-server of our own, set up as `job-router bench` sets up its own, and connections to it.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { fail } from './child.mjs';

// The shell reads from a pipe that we hold: whatever ends us closes it, and the server and its directory go too.
const GUARD = 'dir=$1; shift; redis-server "$@" & read -r _; kill -KILL $!; wait; rm -rf -- "$dir"';
const SOCKET_PATH_MAX = 107; // bytes, without the final zero
const START_MAX_MS = 10_000;

/** Starts a server that ends with this process, or when `end` is called. */
export async function privateRedis() {
  const parent = join(tmpdir(), 'jr-bullmq-XXXXXX', 's').length <= SOCKET_PATH_MAX ? tmpdir() : '/tmp';
  const dir = mkdtempSync(join(parent, 'jr-bullmq-'));
  const socket = join(dir, 's');
  const settings = {
    port: '0',
    unixsocket: socket,
    unixsocketperm: '700',
    dir,
    logfile: join(dir, 'log'),
    save: '',
    appendonly: 'no',
    'stream-node-max-bytes': '1024',
  };
  const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]);
  const guard = spawn('/bin/sh', ['-c', GUARD, 'redis-guard', dir, ...args], {
    stdio: ['pipe', 'ignore', 'inherit'],
    detached: true, // Ctrl-C is for us; the guard hears of it by our end.
  });
  const end = async () => {
    guard.stdin.end();
    await once(guard, 'exit');
  };
  const deadline = Date.now() + START_MAX_MS;
  while (!existsSync(socket)) {
    if (Date.now() > deadline) {
      await end();
      fail('redis-server does not start; is it installed?');
    }
    await sleep(5);
  }
  return { socket, end };
}

/** A connection as BullMQ wants it: a call waits for ever for its answer. */
export function connect(socket) {
  return new Redis({ path: socket, maxRetriesPerRequest: null });
}

/** What redis-server has used of CPU, in µs. */
export async function cpuOf(redis) {
  const info = await redis.info('cpu');
  const values = [...info.matchAll(/^used_cpu_(?:sys|user):(.+)$/gm)];
  if (values.length !== 2) throw new Error('INFO cpu is of another version');
  return values.reduce((sum, [, seconds]) => sum + Number(seconds) * 1e6, 0);
}
