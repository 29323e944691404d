// The producer: adds jobs as fast as they go, in bulk, with a few calls on their way at once.

import { Queue } from 'bullmq';
import { cpu, serve, settings } from './child.mjs';
import { connect } from './redis.mjs';

const { socket, queueName, payloadBytes, batch, inFlight } = settings();
const queue = new Queue(queueName, { connection: connect(socket) });
queue.on('error', (error) => console.error(`producer: ${error.message}`));
await queue.waitUntilReady();

/** The data of one job: JSON of just so many bytes. */
function payload(id) {
  const head = `{"id":${id},"pad":""}`.length;
  return { id, pad: 'x'.repeat(Math.max(0, payloadBytes - head)) };
}

async function publish({ firstId, jobs }) {
  const [cpuBefore, firstAdd, end] = [cpu(), Date.now(), firstId + jobs];
  let next = firstId;
  const turn = async () => {
    while (next < end) {
      const ids = Array.from({ length: Math.min(batch, end - next) }, (_, nth) => next + nth);
      next += ids.length;
      await queue.addBulk(ids.map((id) => ({ name: 'job', data: payload(id) })));
    }
  };
  await Promise.all(Array.from({ length: inFlight }, turn));
  return { firstAdd, seconds: (Date.now() - firstAdd) / 1e3, cpu: cpu() - cpuBefore };
}

serve({ publish });
