-- book(keys, arguments) -> phase
--
-- Books what attempts said of their path: breaker, live rate, counters. The only writer of the path's
-- state; the twin of workers/policy/breaker.py and adaptive.py, constants and all.
--
-- KEYS[1] path   hash (mailweir.plumbing.keys.path_state)
-- KEYS[2] probe  string: probe lease, freed by the probe's result
-- KEYS[3] index  set of "source|provider"
--
-- ARGV[1], ARGV[2] origin, speed      ARGV[3] member of the index
-- ARGV[4] ceiling  the policy's rate of the path, jobs per policy second
-- ARGV[5] chance   0..1, jitters the next recheck
-- ARGV[6] hold     policy time before which the remote wants nothing; 0: it named none
-- ARGV[7] keep     real seconds the state is kept after its last attempt
-- then 2 per attempt: event (good | answered | slow | bad | neutral), policy time it began

local FAILURES, WINDOW, SAMPLE, SHARE = 5, 30, 20, 0.5
local LADDER, REPEAT, JITTER = { 60, 300, 900, 1800, 3600, 14400 }, 14400, 0.2
local TRICKLE_SECONDS, RAMP_SECONDS, RAMP_ERRORS = 180, 900, 0.05
local STEP_SECONDS, UP, UP_NEAR, DOWN = 10, 0.05, 0.005, 0.85
local NEAR_LOW, NEAR_HIGH, SLOW_WEIGHT, FLOOR, SPENT = 0.8, 1.1, 8, 0.01, 0.1

local time = redis.call('TIME')
local real = time[1] + time[2] / 1000000
local origin, speed = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = real
if speed ~= 1 then now = origin + (real - origin) * speed end
local ceiling, chance, hold = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

local names = { 'phase', 'streak', 'slot', 'good', 'good1', 'bad', 'bad1', 'opened', 'step', 'until',
  'back', 'rate', 'credit', 'limit', 'hold', 'day', 'day_n', 'hour', 'hour_n', 'shut' }
local found, s = redis.call('HMGET', KEYS[1], unpack(names)), {}
for i, name in ipairs(names) do
  if name == 'phase' then s.phase = found[i] or 'closed' else s[name] = tonumber(found[i] or '') end
end
local function number(name) return s[name] or 0 end

local function open(opened, step)
  local after
  while true do
    local last = #LADDER - 1
    after = LADDER[math.min(step, last) + 1] + math.max(0, step - last) * REPEAT
    if opened + after > now or step > 1000 then break end
    step = step + 1
  end
  local at = opened + after
  if step > 0 then at = math.max(now + 1, opened + after * (1 + JITTER * (2 * chance - 1))) end
  s.phase, s.opened, s.step, s['until'], s.shut = 'open', opened, step, at, now
  s.streak, s.good, s.good1, s.bad, s.bad1 = 0, 0, 0, 0, 0
end

local function count(failed)
  local slot = math.floor(now / (WINDOW / 2))
  if slot == number('slot') + 1 then
    s.good1, s.bad1, s.good, s.bad = number('good'), number('bad'), 0, 0
  elseif slot ~= number('slot') then
    s.good1, s.bad1, s.good, s.bad = 0, 0, 0, 0
  end
  s.slot = slot
  if failed then
    s.bad, s.streak = number('bad') + 1, number('streak') + 1
  else
    s.good, s.streak = number('good') + 1, 0
  end
end

local function breaker(event, began)
  if s.phase == 'back' and now >= number('back') + TRICKLE_SECONDS + RAMP_SECONDS then
    s.phase, s.step, s.streak = 'closed', 0, 0
  end
  if event == 'neutral' then return end
  -- the rate obeys a remote that asks for less; the breaker judges a probe, and a rate near its floor
  if event == 'slow' and s.phase ~= 'open' and (s.rate or ceiling) > SPENT * ceiling then return end
  local failed = event == 'bad' or event == 'slow'
  if event == 'answered' and s.phase ~= 'open' then return end
  count(failed)
  local good, bad = number('good') + number('good1'), number('bad') + number('bad1')
  if s.phase == 'closed' then
    local over = good + bad >= SAMPLE and bad > SHARE * (good + bad)
    if failed and (number('streak') >= FAILURES or over) then open(now, 0) end
  elseif s.phase == 'open' then
    if began < number('until') then return end
    redis.call('DEL', KEYS[2])
    if failed then
      open(number('opened'), number('step') + 1)
    else
      s.phase, s.back, s.streak = 'back', now, 0
      s.good, s.good1, s.bad, s.bad1 = 0, 0, 0, 0
    end
  else
    if began < number('back') then return end
    local ramp_failed = bad > RAMP_ERRORS * (good + bad)
    if failed and (now < number('back') + TRICKLE_SECONDS or ramp_failed) then
      open(number('opened'), number('step') + 1)
    end
  end
end

local function adapt(slow)
  if not slow and not s.rate then return end
  local rate = math.min(s.rate or ceiling, ceiling)
  local step = math.max(1, rate * STEP_SECONDS)
  if slow then
    s.credit = math.min(number('credit'), 0) - SLOW_WEIGHT / step
    s.rate = rate
    if s.credit <= -1 then
      s.limit, s.rate, s.credit = rate, math.max(rate * DOWN, FLOOR * ceiling), 0
    end
    return
  end
  s.credit, s.rate = number('credit') + 1 / step, rate
  if s.credit < 1 then return end
  local limit = number('limit')
  local near = NEAR_LOW * limit <= rate and rate <= NEAR_HIGH * limit
  s.rate, s.credit = rate + (near and UP_NEAR or UP) * ceiling, 0
  if s.rate >= ceiling then s.rate, s.limit = nil, 0 end
end

local day, hour = math.floor(now / 86400), math.floor(now / 3600)
if s.day ~= day then s.day, s.day_n = day, 0 end
if s.hour ~= hour then s.hour, s.hour_n = hour, 0 end
for i = 8, #ARGV, 2 do
  local event = ARGV[i]
  breaker(event, tonumber(ARGV[i + 1]))
  if event == 'good' then adapt(false) elseif event == 'slow' then adapt(true) end
  s.day_n, s.hour_n = s.day_n + 1, s.hour_n + 1
end
if hold > now and hold > number('hold') then s.hold, s.shut = hold, now end
if s.hold and s.hold <= now then s.hold = nil end

local write, gone = {}, {}
for _, name in ipairs(names) do
  local value = s[name]
  if value == nil then
    gone[#gone + 1] = name
  else
    write[#write + 1] = name
    write[#write + 1] = name == 'phase' and value or string.format('%.17g', value)
  end
end
redis.call('HSET', KEYS[1], unpack(write))
if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('SADD', KEYS[3], ARGV[3])
return s.phase
