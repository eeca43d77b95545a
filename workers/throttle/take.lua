-- take(keys, arguments) -> {granted, layer, available, first, step, cap, now, probe, shut,
--                          promised, soon, gap, used...}
--
-- Takes up to n tokens from every layer, or from none. Redis' clock; microseconds.
--
-- KEYS[1] epoch         string: id of this Redis' life
-- KEYS[2] counters      string: epoch the counted limits were recounted for
-- KEYS[3] since         hash {epoch, since}: buckets never seen in this epoch were empty at `since`
-- KEYS[4] path          hash: path state (read only; book.lua writes it)
-- KEYS[5] probe         string: probe lease of the path
-- KEYS[6..] layers      rate: hash {tokens, updated, place, front}; count: string prefix, slot appended
--
-- ARGV[1], ARGV[2] origin, speed: policy time = origin + (real - origin) * speed
-- ARGV[3] n             tokens asked
-- ARGV[4] token         value of the probe lease
-- ARGV[5] lease         probe lease, real milliseconds
-- ARGV[6] ahead         places reach at most so many policy seconds behind the first free token
-- ARGV[7] waiting       askers that wait for a token: they may be promised one of the near future
-- ARGV[8] near          policy seconds from now in which a promised token must be there
-- ARGV[9] back          1: they have waited for a place before, and come back to it: their line is another
-- then 3 per layer      kind (path | rate | count), depth and rate, or limit and slot seconds;
--                       `path` comes first: a rate that breaker and live rate scale
--
-- granted    tokens taken from every layer (0..n)
-- layer      1-based layer that frees last: the binding one; 0 when nothing was missing
-- available  policy time at which one more token is there on every layer
-- first, step, cap  places of the askers not granted: min(first + i * step, cap), i = 0, 1, ...
-- now        policy time of this call;  probe  1 when the grant is a half-open path's probe
-- shut       policy time since when the path may not be tried at all; '' where a rate alone binds
-- promised   tokens taken beyond those granted: the k-th is there at soon + (k - 1) * gap
-- used...    one number per count layer: its count after this call (0 while not recounted)

local TRICKLE, TRICKLE_SECONDS = 0.1, 180
local RAMP_START, RAMP_SECONDS = 0.1, 900
local FIXED = 5
local KEEP = 30 * 86400  -- real seconds a key is kept at most

local time = redis.call('TIME')
local real = time[1] + time[2] / 1000000
local origin, speed = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = real
if speed ~= 1 then now = origin + (real - origin) * speed end
local n, ahead = tonumber(ARGV[3]), tonumber(ARGV[6])
local waiting, near = tonumber(ARGV[7]), tonumber(ARGV[8])
local line = ARGV[9] == '1' and 'front' or 'place'

local function text(number) return string.format('%.6f', number) end

-- a missing bucket was empty when this epoch was first seen
local epoch = redis.call('GET', KEYS[1]) or ''
local known = redis.call('HMGET', KEYS[3], 'epoch', 'since')
local since = tonumber(known[2] or '')
if known[1] ~= epoch or not since then
  since = now
  redis.call('HSET', KEYS[3], 'epoch', epoch, 'since', text(now))
end
local recounted = epoch ~= '' and redis.call('GET', KEYS[2]) == epoch

-- the path: what its breaker, live rate and the remote's own wish leave of the policy's rate
local state = redis.call('HMGET', KEYS[4], 'phase', 'until', 'back', 'rate', 'hold', 'shut')
local phase = state[1] or 'closed'
local usual = phase == 'closed'
local path_wait, probe, trickle, share, shut = nil, 0, false, 1, nil
local shut_at = tonumber(state[6] or '') or 0
local hold = tonumber(state[5] or '')
if hold and hold > now then path_wait, shut = hold, shut_at end
if phase == 'open' then
  local until_ = tonumber(state[2])
  if now < until_ then
    path_wait, shut = math.max(path_wait or 0, until_), shut_at
  else
    local left = redis.call('PTTL', KEYS[5])
    if left ~= -2 then  -- somebody probes, since then
      path_wait = math.max(path_wait or 0, now + ahead)
      shut = math.max(shut or 0, now - (tonumber(ARGV[5]) - left) / 1000 * speed)
    else
      probe = 1
    end
  end
elseif phase == 'back' then
  local gone = now - tonumber(state[3]) - TRICKLE_SECONDS
  if gone < 0 then
    trickle = true
  elseif gone < RAMP_SECONDS then
    share = RAMP_START + (1 - RAMP_START) * gone / RAMP_SECONDS
  else
    usual = true
  end
end

local layers, granted, used = {}, n, {}
local reach = math.min(n, waiting)  -- tokens that are there soon enough
if probe == 1 then granted = math.min(granted, 1) end
if path_wait then granted = 0 end
if not usual or path_wait then reach = 0 end

for i = 1, #KEYS - FIXED do
  local at = 9 + (i - 1) * 3
  local layer = { kind = ARGV[at + 1], key = KEYS[FIXED + i] }
  local a, b = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if layer.kind == 'count' then
    layer.slot = math.floor(now / b)
    layer.ends = (layer.slot + 1) * b
    layer.limit = a
    layer.store = layer.key .. ':' .. string.format('%d', layer.slot)
    layer.expire = math.min(math.ceil(b / speed), KEEP) + 3600
    layer.used = recounted and tonumber(redis.call('GET', layer.store) or '0') or 0
    local room = recounted and math.max(0, a - layer.used) or 0
    granted, reach = math.min(granted, room), math.min(reach, room)
  else
    local depth, rate = a, b
    if layer.kind == 'path' then
      if trickle then
        depth, rate = 1, math.min(rate, TRICKLE)
      else
        rate = rate * share
        depth = math.max(1, math.floor(depth * share))
      end
      local live = tonumber(state[4] or '')
      if live then rate = math.min(rate, live) end
    end
    local stored = redis.call('HMGET', layer.key, 'tokens', 'updated', line)
    local tokens = tonumber(stored[1] or '') or 0
    local updated = tonumber(stored[2] or '') or since
    layer.place = tonumber(stored[3] or '') or 0
    layer.tokens = math.min(depth, tokens + math.max(0, now - updated) * rate)
    layer.updated = math.max(now, updated)
    layer.rate = rate
    layer.expire = math.min(math.ceil(depth / rate / speed), KEEP) + 3600
    granted = math.min(granted, math.max(0, math.floor(layer.tokens + 0.000001)))
    reach = math.min(reach, math.floor(layer.tokens + near * rate + 0.000001))
  end
  layers[i] = layer
end

-- the promised: each when the slowest layer has it; between first and last they are evenly spread,
-- which is late enough because the slowest of several lines lies below its chord
local promised, soon, last = math.max(0, reach - granted), now, now
if promised > 0 then
  for _, layer in ipairs(layers) do
    if layer.kind ~= 'count' then
      soon = math.max(soon, layer.updated + (granted + 1 - layer.tokens) / layer.rate)
      last = math.max(last, layer.updated + (granted + promised - layer.tokens) / layer.rate)
    end
  end
end
local gap = promised > 1 and (last - soon) / (promised - 1) or 0
local taken = granted + promised

-- take from all, then see when one more would be there
local binding, available = 0, now
for i, layer in ipairs(layers) do
  local free = now
  if layer.kind == 'count' then
    if taken > 0 then
      layer.used = redis.call('INCRBY', layer.store, taken)
      redis.call('EXPIRE', layer.store, layer.expire)
    end
    if not recounted then
      free = now + speed  -- one real second: the recount is on its way
    elseif layer.used >= layer.limit then
      free = layer.ends
    end
    used[#used + 1] = layer.used
  else
    layer.tokens = layer.tokens - taken
    if layer.tokens < 1 - 0.000001 then
      free = layer.updated + (1 - layer.tokens) / layer.rate
    end
    if layer.kind == 'path' and path_wait then free = math.max(free, path_wait) end
  end
  if free > available then binding, available = i, free end
end
if probe == 1 and granted == 1 then
  redis.call('SET', KEYS[5], ARGV[4], 'PX', ARGV[5])
end
-- a probe is alone: whoever asked with it waits for what it finds
if probe == 1 and granted < n then
  if granted == 1 then shut = now end
  binding, available = 1, math.max(available, now + ahead)
end

-- a place in time for each asker that got nothing: one that came back too late stands before the newcomers
local first, step, cap, missing = available, 0, available + ahead, n - taken
if missing > 0 then
  local queue = layers[binding]
  if not queue or queue.kind == 'count' then queue = layers[1] end
  step = 1 / queue.rate
  first = math.min(math.max(queue.place, available), cap)
  queue.place = math.min(first + missing * step, cap)
else
  binding = 0
end

for _, layer in ipairs(layers) do
  if layer.kind ~= 'count' then
    redis.call('HSET', layer.key, 'tokens', text(layer.tokens), 'updated', text(layer.updated),
      line, text(layer.place))
    redis.call('EXPIRE', layer.key, layer.expire)
  end
end

local answer = { granted, binding, text(available), text(first), text(step), text(cap), text(now), probe * math.min(granted, 1),
  shut and text(shut) or '', promised, text(soon), text(gap) }
for _, count in ipairs(used) do answer[#answer + 1] = count end
return answer
