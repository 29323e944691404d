#!/usr/bin/env node
// How many jobs a second BullMQ carries, from the first add to the last completion: what `job-router bench throughput`
// measures of job-router. Progress on standard error; one line of JSON on standard output.

import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { Queue } from 'bullmq';
import { fail, start } from './child.mjs';
import { connect, cpuOf, privateRedis } from './redis.mjs';

const QUEUE = 'bench';
// Not counted: so that the compilers of JavaScript and the scripts' cache are warm.
const WARM_UP_JOBS = 2_000;
// Nothing has completed for so long: nothing more will.
const STILL_MAX_MS = 15_000;
const LOOK_EVERY_MS = 20;

const options = readOptions();
const redisServer = await privateRedis();
const redis = connect(redisServer.socket);
const settings = { socket: redisServer.socket, queueName: QUEUE, ...options };
console.error('starting workers and the producer');
const workers = await Promise.all(Array.from({ length: options.workers }, () => start('worker.mjs', settings)));
const producer = await start('producer.mjs', settings);

await measure(1, WARM_UP_JOBS);
const measured = await measure(WARM_UP_JOBS + 1, options.jobs);

await Promise.all([...workers, producer].map((child) => child.end()));
redis.disconnect();
await redisServer.end();
console.log(JSON.stringify(measured));
const { lost, doubled, left } = measured;
if (lost || doubled || left) fail(`${lost} jobs were lost, ${doubled} run twice, ${left} left in Redis`);

/** Publishes jobs, waits until all have completed or nothing moves any more, and looks at each one's life. */
async function measure(firstId, jobs) {
  await Promise.all(workers.map((worker) => worker.ask('begin')));
  workers.forEach((worker) => (worker.completed = 0));
  const redisBefore = await cpuOf(redis);
  const [published] = await Promise.all([producer.ask('publish', { firstId, jobs }), allCompleted(jobs)]);
  const redisCpu = (await cpuOf(redis)) - redisBefore;
  const reports = await Promise.all(workers.map((worker) => worker.ask('report')));

  const [runs, completions] = ['run', 'completed'].map((what) => counts(reports.flatMap((report) => report[what])));
  let [lost, doubled] = [0, 0];
  for (let id = firstId; id < firstId + jobs; id++) {
    const [ran, ended] = [runs.get(id) ?? 0, completions.get(id) ?? 0];
    lost += ran === 0 || ended === 0;
    doubled += ran > 1 || ended > 1;
  }
  const seconds = (Math.max(...reports.map((report) => report.lastEnd)) - published.firstAdd) / 1e3;
  const usPerJob = (us) => Math.round((us * 10) / jobs) / 10;
  return {
    bench: 'bullmq-throughput',
    jobs,
    jobs_per_s: Math.round(jobs / seconds),
    seconds,
    publish_seconds: published.seconds,
    redis_cpu_us_per_job: usPerJob(redisCpu),
    worker_cpu_us_per_job: usPerJob(reports.reduce((sum, report) => sum + report.cpu, 0)),
    producer_cpu_us_per_job: usPerJob(published.cpu),
    lost,
    doubled,
    left: await leftInRedis(),
    payload_bytes: options.payloadBytes,
    workers: options.workers,
    slots: options.slots,
    batch: options.batch,
    in_flight: options.inFlight,
  };
}

async function allCompleted(jobs) {
  let [sum, moved] = [0, Date.now()];
  while (sum < jobs && Date.now() - moved < STILL_MAX_MS) {
    await sleep(LOOK_EVERY_MS);
    const now = workers.reduce((sum, worker) => sum + worker.completed, 0);
    if (now === sum) continue;
    [sum, moved] = [now, Date.now()];
    if (process.stderr.isTTY) process.stderr.write(`\r${sum} of ${jobs} jobs`);
  }
  if (process.stderr.isTTY) process.stderr.write('\n');
}

/** Jobs that BullMQ still knows of, in whatever state: none, as completed ones are removed. */
async function leftInRedis() {
  const queue = new Queue(QUEUE, { connection: redis });
  const states = await queue.getJobCounts();
  return Object.values(states).reduce((sum, count) => sum + count, 0);
}

function counts(ids) {
  const counts = new Map();
  for (const id of ids) counts.set(id, (counts.get(id) ?? 0) + 1);
  return counts;
}

function readOptions() {
  // What proved fastest on two cores; see README.md.
  const defaults = {
    jobs: 60_000,
    'payload-bytes': 1_024,
    workers: 1, // processes
    slots: 200, // of each: BullMQ's concurrency
    batch: 100, // jobs in one addBulk
    'in-flight': 2, // addBulks on their way at once
  };
  const shape = Object.keys(defaults).map((name) => [name, { type: 'string', default: String(defaults[name]) }]);
  const { values } = parseArgs({ options: Object.fromEntries(shape) });
  const number = (name) => {
    if (!/^[1-9]\d*$/.test(values[name])) fail(`--${name} is a whole number above 0`);
    return Number(values[name]);
  };
  return {
    jobs: number('jobs'),
    payloadBytes: number('payload-bytes'),
    workers: number('workers'),
    slots: number('slots'),
    batch: number('batch'),
    inFlight: number('in-flight'),
  };
}
