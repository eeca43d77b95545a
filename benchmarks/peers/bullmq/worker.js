// One delivering process: BullMQ's worker, Nodemailer's pool, finished bytes sent as raw.
const { Worker } = require('bullmq')
const IORedis = require('ioredis')
const nodemailer = require('nodemailer')

const transport = nodemailer.createTransport({
  host: '127.0.0.1',
  port: Number(process.env.PEER_SINK),
  name: 'peer.example.test',
  pool: true,
  maxConnections: 10,
  maxMessages: Infinity,
  ignoreTLS: true
})
const worker = new Worker(
  'mail',
  (job) =>
    transport.sendMail({
      envelope: { from: 'news@s.example.test', to: [job.data.to] },
      raw: Buffer.from(job.data.raw, 'base64')
    }),
  {
    connection: new IORedis({ path: process.env.PEER_REDIS, maxRetriesPerRequest: null }),
    concurrency: Number(process.env.PEER_CONCURRENCY),
    removeOnComplete: { count: 0 }
  }
)
worker.waitUntilReady().then(() => process.stdout.write('ready\n'))
