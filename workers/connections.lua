-- claim(keys, arguments) -> {held, wanting}
--
-- How many connections of a source to a site this worker may have open: leases with an end, in Redis'
-- clock, never more than the cap over all workers. A worker that stopped renewing loses its leases; one
-- that comes back gets what is free then, and the answer tells it so.
--
-- KEYS[1] leases   sorted set: "worker:n" by lease end, real seconds
-- KEYS[2] wanting  sorted set: workers that got nothing, by the time until which that counts
--
-- ARGV[1] worker   id of this life of the worker: a restarted one is another one
-- ARGV[2] had      leases it counts as its own: those it does not hold any more are asked anew
-- ARGV[3] want     leases it wants to hold after this call; 0 gives all back
-- ARGV[4] cap      of all workers together
-- ARGV[5] seconds  a lease lasts
--
-- wanting: other workers that wait for a first connection

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local worker, had, want = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local cap, seconds = tonumber(ARGV[4]), tonumber(ARGV[5])

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local mine = 0
for n = 1, had do
  if redis.call('ZSCORE', KEYS[1], worker .. ':' .. n) then mine = mine + 1 end
end
local others = redis.call('ZCARD', KEYS[1]) - mine
local held = math.max(0, math.min(want, cap - others))
for n = 1, held do redis.call('ZADD', KEYS[1], now + seconds, worker .. ':' .. n) end
for n = held + 1, had do redis.call('ZREM', KEYS[1], worker .. ':' .. n) end
if want > 0 and held == 0 then
  redis.call('ZADD', KEYS[2], now + seconds / 2, worker)
else
  redis.call('ZREM', KEYS[2], worker)
end
local keep = math.ceil(seconds) + 1
redis.call('EXPIRE', KEYS[1], keep)
redis.call('EXPIRE', KEYS[2], keep)
local wanting = redis.call('ZCARD', KEYS[2])
if held == 0 and want > 0 then wanting = wanting - 1 end
return { held, wanting }
