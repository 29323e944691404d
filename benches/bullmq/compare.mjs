#!/usr/bin/env node
// Runs `job-router bench throughput` and BullMQ in turns on this machine, and states the ratio. What stands after `--`
// goes to throughput.mjs. A table on standard output, then one line of JSON.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { fail } from './child.mjs';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const { values, positionals } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    jobs: { type: 'string', default: '60000' },
    'payload-bytes': { type: 'string', default: '1024' },
    'job-router': { type: 'string', default: here('../../target/release/job-router') },
  },
  allowPositionals: true,
});
const rounds = Number(values.rounds);
if (!(Number.isInteger(rounds) && rounds > 0)) fail('--rounds is a whole number above 0');
if (!existsSync(values['job-router'])) fail(`${values['job-router']} is missing: cargo build --release`);
const load = ['--jobs', values.jobs, '--payload-bytes', values['payload-bytes']];

const row = (...cells) => console.log(cells.map((cell) => String(cell).padStart(14)).join(''));
row('', 'job-router', 'BullMQ', 'ratio', 'job-router', 'BullMQ');
row('', 'jobs/s', 'jobs/s', '', 'Redis µs/job', 'Redis µs/job');
const [ours, bullmq] = [[], []];
for (let round = 1; round <= rounds; round++) {
  ours.push(await run(values['job-router'], ['bench', 'throughput', '--json', ...load]));
  bullmq.push(await run(process.execPath, [here('throughput.mjs'), ...load, ...positionals]));
  const [a, b] = [ours.at(-1), bullmq.at(-1)];
  const ratio = (a.jobs_per_s / b.jobs_per_s).toFixed(2);
  row(round, a.jobs_per_s, b.jobs_per_s, ratio, a.redis_cpu_us_per_job, b.redis_cpu_us_per_job);
}

const summary = {
  bench: 'compare',
  rounds,
  jobs: Number(values.jobs),
  payload_bytes: Number(values['payload-bytes']),
  job_router: both(ours),
  bullmq: both(bullmq),
};
summary.ratio_of_medians = round2(summary.job_router.jobs_per_s.median / summary.bullmq.jobs_per_s.median);
summary.ratio_in_a_round = spread(ours.map((run, round) => round2(run.jobs_per_s / bullmq[round].jobs_per_s)));
summary.versions = { node: process.versions.node, ...JSON.parse(readFileSync(here('package.json'))).dependencies };
for (const which of ['median', 'least', 'greatest']) {
  const [a, b] = [summary.job_router, summary.bullmq];
  const cells = [a.jobs_per_s, b.jobs_per_s, summary.ratio_in_a_round, a.redis_cpu_us_per_job, b.redis_cpu_us_per_job];
  row(which, ...cells.map((cell) => cell[which]));
}
console.log(`ratio of medians, job-router / BullMQ: ${summary.ratio_of_medians}`);
console.log(JSON.stringify(summary));

/** Runs one benchmark to its end, and returns what its last line says. */
async function run(program, args) {
  console.error(`${program} ${args.join(' ')}`);
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  // Ctrl-C reaches it by itself; a signal to us alone must be passed on.
  const pass = (signal) => {
    child.kill(signal);
    fail(signal);
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  signals.forEach((signal) => process.on(signal, pass));
  const [output, [code, signal]] = await Promise.all([text(child.stdout), once(child, 'close')]);
  signals.forEach((signal) => process.off(signal, pass));
  // A run that lost a job or ran one twice ends so too: it measured something else.
  if (code !== 0) fail(`${program} ended: ${signal ?? code}`);
  return JSON.parse(output.trim().split('\n').at(-1));
}

function both(runs) {
  return {
    jobs_per_s: spread(runs.map((run) => run.jobs_per_s)),
    redis_cpu_us_per_job: spread(runs.map((run) => run.redis_cpu_us_per_job)),
  };
}

function spread(numbers) {
  const sorted = numbers.toSorted((a, b) => a - b);
  const [low, high] = [sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]];
  return { median: round2((low + high) / 2), least: sorted[0], greatest: sorted.at(-1) };
}

function round2(number) {
  return Math.round(number * 100) / 100;
}
