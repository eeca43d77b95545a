// Enqueues in addBulk of 100, as an accept commit of ours has 100 rows.
const fs = require('fs')
const { Queue } = require('bullmq')
const IORedis = require('ioredis')

const raw = fs.readFileSync('mail.eml').toString('base64')
const queue = new Queue('mail', {
  connection: new IORedis({ path: process.env.PEER_REDIS, maxRetriesPerRequest: null }),
  defaultJobOptions: { removeOnComplete: true }
})

async function run () {
  const total = Number(process.argv[2])
  for (let first = 0; first < total; first += 100) {
    const jobs = []
    for (let n = first; n < Math.min(total, first + 100); n++) {
      jobs.push({ name: 'send', data: { to: `user${n}@d${n % 200}.example.test`, raw } })
    }
    await queue.addBulk(jobs)
  }
}

queue.waitUntilReady().then(() => {
  process.stdout.write('ready\n')
  process.stdin.once('data', () => run())
})
