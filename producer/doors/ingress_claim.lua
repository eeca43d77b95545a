-- Claim a batch of published messages: from the queue into the claimed list of one consumer, and its
-- lease with it, in one step. What a consumer still holds comes first; then what a dead one held (its
-- lease ran out by this server's clock); then the queue.
-- KEYS  queue, leases (hash consumer -> end in ms)
-- ARGV  consumer, lease in ms, most messages, prefix of claimed lists
-- Returns the claimed entries, oldest first, then nothing else.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mine = ARGV[4] .. ARGV[1]
local most = tonumber(ARGV[3])

redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', now + ARGV[2]))

if redis.call('LLEN', mine) == 0 then
  local leases = redis.call('HGETALL', KEYS[2])
  for i = 1, #leases, 2 do
    local other = leases[i]
    if other ~= ARGV[1] and tonumber(leases[i + 1]) < now then
      redis.call('HDEL', KEYS[2], other)
      if redis.call('EXISTS', ARGV[4] .. other) == 1 then
        redis.call('RENAME', ARGV[4] .. other, mine)
        break
      end
    end
  end
end

if redis.call('LLEN', mine) == 0 then
  local entries = redis.call('RPOP', KEYS[1], most)
  if entries then
    for _, entry in ipairs(entries) do
      redis.call('RPUSH', mine, entry)
    end
  end
end

return redis.call('LRANGE', mine, 0, most - 1)
