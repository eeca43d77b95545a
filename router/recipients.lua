-- reserve(keys, arguments) -> {now, index, wait, index, wait, ...}
--
-- Places for jobs to recipients, all under one limit: for each key whose job must wait, its index and the
-- policy seconds until it may go, or -1: too many are held already. Nothing at all while the places of
-- this Redis' life were not recounted. The twin of router/policy/recipients.py.
--
-- KEYS[1] epoch      string: id of this Redis' life
-- KEYS[2] recounted  string: epoch the places were recounted for
-- KEYS[2 + i]        string: "job time job time ...", the earliest first, of one recipient (keyed hash)
--
-- ARGV[1], ARGV[2] origin, rate: policy time = origin + (real - origin) * rate
-- ARGV[3] limit, ARGV[4] per: at most so many in any span of so many policy seconds
-- ARGV[5] most held
-- ARGV[5 + i]  the job that asks for KEYS[2 + i]

local KEEP = 30 * 86400 * 1000  -- real milliseconds a key is kept at most

local epoch = redis.call('GET', KEYS[1])
if not epoch or redis.call('GET', KEYS[2]) ~= epoch then return {} end

local time = redis.call('TIME')
local real = tonumber(time[1]) + tonumber(time[2]) / 1000000
local origin, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = real
if rate ~= 1 then now = origin + (real - origin) * rate end
local limit, per, most_held = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local function text(number) return string.format('%.6f', number) end
local function ttl(until_) return math.min(math.ceil((until_ - now) / rate * 1000) + 1000, KEEP) end

local at_once, short = ' ' .. text(now), ttl(now + per)
local answer = { text(now) }

for i = 1, #KEYS - 2 do
  local key, job = KEYS[2 + i], ARGV[5 + i]
  local stored = redis.call('GET', key)
  if not stored and limit > 0 then
    redis.call('SET', key, job .. at_once, 'PX', short)
  else
    local kept, places, held, mine = {}, {}, 0, nil
    for name, at in string.gmatch(stored or '', '(%S+) (%S+)') do
      local place = tonumber(at)
      if place > now - per then
        if name == job then
          mine = place
        else
          kept[#kept + 1], places[#places + 1] = name, place
        end
        if place > now then held = held + 1 end
      end
    end
    local place
    if mine then
      place = math.max(mine, now)
    elseif #kept < limit then
      place = now
    elseif held < most_held then
      place = math.max(now, places[#places - limit + 1] + per)
    end
    if place then
      local slot = #places + 1
      while slot > 1 and places[slot - 1] > place do slot = slot - 1 end
      table.insert(places, slot, place)
      table.insert(kept, slot, job)
      for n = limit + 1, #places do  -- those behind it move as far as it came late
        places[n] = math.max(places[n], places[n - limit] + per)
      end
      local out = {}
      for n, name in ipairs(kept) do out[n] = name .. ' ' .. text(places[n]) end
      redis.call('SET', key, table.concat(out, ' '), 'PX', ttl(places[#places] + per))
    end
    if not place or place > now then
      answer[#answer + 1] = i
      answer[#answer + 1] = place and text(place - now) or '-1'
    end
  end
end
return answer
