// The processes of the benchmark: how the parent asks them, and how they answer.

import { fork } from 'node:child_process';
import { once } from 'node:events';

/** Starts a process and waits until it is ready. */
export async function start(file, settings) {
  const child = fork(new URL(file, import.meta.url), [JSON.stringify(settings)], {
    stdio: ['ignore', 2, 2, 'ipc'], // Standard output is for the line of JSON alone.
  });
  let stopping = false;
  child.on('exit', (code, signal) => {
    if (!stopping) fail(`${file} ended: ${signal ?? code}`);
  });

  const started = {
    /** How many jobs it said it has completed. */
    completed: 0,
    /** Sends an order, and waits for the answer of the same kind. */
    ask(kind, more = {}) {
      child.send({ kind, ...more });
      return answer(kind);
    },
    async end() {
      stopping = true;
      const ended = once(child, 'exit');
      child.disconnect();
      await ended;
    },
  };
  const waiting = new Map();
  const answer = (kind) => new Promise((resolve) => waiting.set(kind, resolve));
  child.on('message', ({ kind, ...more }) => {
    if (kind === 'progress') started.completed = more.completed;
    else waiting.get(kind)(more);
  });
  await answer('ready');
  return started;
}

/** In a process: obeys orders, each by its handler, until the parent is gone. */
export function serve(handlers) {
  process.on('message', async ({ kind, ...more }) => {
    try {
      tell(kind, await handlers[kind](more));
    } catch (error) {
      fail(`${kind}: ${error.message}`);
    }
  });
  process.on('disconnect', () => process.exit());
  tell('ready');
}

export function tell(kind, more = {}) {
  process.send({ kind, ...more }, (error) => error && process.exit(1)); // The parent is gone.
}

export const settings = () => JSON.parse(process.argv[2]);

/** Ends this process with a complaint: one for people, without a stack. */
export function fail(message) {
  console.error(message);
  process.exit(1);
}

/** What this process has used of CPU, in µs. */
export function cpu() {
  const { user, system } = process.cpuUsage();
  return user + system;
}
