-- reserve(KEYS[i] = mw:rcpt:<keyed hash of a recipient>;
--         ARGV = origin, rate, then per key: limit, per (policy seconds), job id, most held)
-- -> per key the policy seconds until the job may go (0: now), or -1: too many are held already.
--
-- A sorted set per recipient: member = job id, score = the time its mail goes out. At most `limit`
-- members lie in any span of `per` seconds. A job that asks again keeps its place; one whose time has
-- come is booked at now, so that what was held elsewhere counts when it really goes.
local time = redis.call('TIME')
local real = tonumber(time[1]) + tonumber(time[2]) / 1000000
local origin, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = real
if rate ~= 1 then now = origin + (real - origin) * rate end

local answers = {}
for i, key in ipairs(KEYS) do
  local base = 2 + (i - 1) * 4
  local limit, per = tonumber(ARGV[base + 1]), tonumber(ARGV[base + 2])
  local job, most_held = ARGV[base + 3], tonumber(ARGV[base + 4])
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.6f', now - per))
  local place = redis.call('ZSCORE', key, job)
  if place then
    place = tonumber(place)
    if place < now then place = now end
  else
    local count = redis.call('ZCARD', key)
    if count < limit then
      place = now
    elseif redis.call('ZCOUNT', key, '(' .. string.format('%.6f', now), '+inf') >= most_held then
      place = -1
    else
      local before = redis.call('ZRANGE', key, count - limit, count - limit, 'WITHSCORES')
      place = math.max(now, tonumber(before[2]) + per)
    end
  end
  if place >= 0 then
    redis.call('ZADD', key, string.format('%.6f', place), job)
    redis.call('PEXPIRE', key, math.ceil((place - now + per) / rate * 1000) + 1000)
  end
  answers[i] = place < 0 and '-1' or string.format('%.6f', place - now)
end
return answers
