-- book(keys, arguments) -> rate, or '' while the campaign is not slowed
--
-- Counts what became of a campaign's jobs and slows it; the twin of workers/policy/campaign.py.
--
-- KEYS[1] campaign  hash: begun, sent, bounced, rate, base
-- KEYS[2] slowed    hash: "tenant|campaign" -> rate, jobs a policy second
-- ARGV[1], ARGV[2] origin, speed   ARGV[3] member of slowed
-- ARGV[4] sent   ARGV[5] bounced   ARGV[6] keep: real seconds without news until all is forgotten

local WINDOW, SAMPLE, SLOW_ABOVE, RETURN_BELOW = 60, 100, 0.05, 0.04
local DOWN, UP, FLOOR, Z = 0.5, 1.25, 0.1, 1.645

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local origin, speed = tonumber(ARGV[1]), tonumber(ARGV[2])
if speed ~= 1 then now = origin + (now - origin) * speed end

local found = redis.call('HMGET', KEYS[1], 'begun', 'sent', 'bounced', 'rate', 'base')
local begun = tonumber(found[1] or '') or now
local sent = (tonumber(found[2] or '') or 0) + tonumber(ARGV[4])
local bounced = (tonumber(found[3] or '') or 0) + tonumber(ARGV[5])
local rate, base = tonumber(found[4] or ''), tonumber(found[5] or '') or 0
local total, seconds = sent + bounced, now - begun

local function lower_bound(hits, total)
  local share, z2 = hits / total, Z * Z
  local spread = Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
  return (share + z2 / (2 * total) - spread) / (1 + z2 / total)
end

if total >= SAMPLE and seconds >= WINDOW then
  local share = bounced / total
  local high = share > SLOW_ABOVE
  if not high or lower_bound(bounced, total) > SLOW_ABOVE then
    if high then
      if not rate then
        base = total / seconds
        rate = base
      end
      rate = math.max(FLOOR, rate * DOWN)
    elseif rate and share < RETURN_BELOW then
      rate = rate * UP
      if rate >= base then rate, base = nil, 0 end
    end
    begun, sent, bounced = now, 0, 0
  end
end

local function text(number) return string.format('%.17g', number) end
redis.call('HSET', KEYS[1], 'begun', text(begun), 'sent', sent, 'bounced', bounced, 'base', text(base))
redis.call('EXPIRE', KEYS[1], ARGV[6])
if rate then
  redis.call('HSET', KEYS[1], 'rate', text(rate))
  redis.call('HSET', KEYS[2], ARGV[3], text(rate))
  redis.call('EXPIRE', KEYS[2], ARGV[6])
  return text(rate)
end
redis.call('HDEL', KEYS[1], 'rate')
redis.call('HDEL', KEYS[2], ARGV[3])
return ''
