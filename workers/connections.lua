-- claim(keys, arguments) -> {held, wanting}
--
-- How many connections of a source to a site this worker may have open: leases with an end, in Redis'
-- clock, never more than the cap over all workers. A worker that stopped renewing loses its leases; one
-- that comes back gets what is free then, and the answer tells it so.
--
-- KEYS[1] leases   sorted set: "worker:n" by lease end, real seconds
-- KEYS[2] wanting  sorted set: workers that got less than their part, by the time until which that counts
--
-- ARGV[1] worker   id of this life of the worker: a restarted one is another one
-- ARGV[2] want     leases it wants to hold after this call; 0 gives all back
-- ARGV[3] cap      of all workers together
-- ARGV[4] seconds  a lease lasts
-- ARGV[5] part     of the cap: who wants more and gets less than this is wanting
--
-- wanting: other workers that wait for their part

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local worker, want = ARGV[1], tonumber(ARGV[2])
local cap, seconds = tonumber(ARGV[3]), tonumber(ARGV[4])
local part = tonumber(ARGV[5])

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local mine, others = {}, 0
for _, lease in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if string.sub(lease, 1, #worker + 1) == worker .. ':' then
    mine[#mine + 1] = lease
  else
    others = others + 1
  end
end
local held = math.max(0, math.min(want, cap - others))
if #mine > 0 then redis.call('ZREM', KEYS[1], unpack(mine)) end
for n = 1, held do redis.call('ZADD', KEYS[1], now + seconds, worker .. ':' .. n) end
local short = held < math.min(want, part)
if short then
  redis.call('ZADD', KEYS[2], now + seconds / 2, worker)
else
  redis.call('ZREM', KEYS[2], worker)
end
local keep = math.ceil(seconds) + 1
redis.call('EXPIRE', KEYS[1], keep)
redis.call('EXPIRE', KEYS[2], keep)
local wanting = redis.call('ZCARD', KEYS[2])
if short then wanting = wanting - 1 end
return { held, wanting }
