// A worker: ends each job at once, and notes which it had and which BullMQ says have completed.

import { Worker } from 'bullmq';
import { cpu, serve, settings, tell } from './child.mjs';
import { connect } from './redis.mjs';

const PROGRESS_MS = 20;

const { socket, queueName, slots } = settings();
let [run, completed, lastEnd, cpuBefore] = [[], [], 0, 0];

const worker = new Worker(queueName, async (job) => void run.push(job.data.id), {
  connection: connect(socket),
  concurrency: slots,
  removeOnComplete: { count: 0 }, // Here and not on each job, which would store it with each.
});
worker.on('completed', (job) => {
  completed.push(job.data.id);
  lastEnd = Date.now();
});
worker.on('failed', (job, error) => console.error(`job ${job?.data.id} failed: ${error.message}`));
worker.on('error', (error) => console.error(`worker: ${error.message}`));
await worker.waitUntilReady();

let told = 0;
setInterval(() => {
  if (completed.length === told) return;
  told = completed.length;
  tell('progress', { completed: told });
}, PROGRESS_MS);

serve({
  begin() {
    [run, completed, lastEnd, told, cpuBefore] = [[], [], 0, 0, cpu()];
  },
  report() {
    return { cpu: cpu() - cpuBefore, run, completed, lastEnd };
  },
});
