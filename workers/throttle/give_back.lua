-- give_back(keys, arguments) -> 1
--
-- Returns n unused tokens of a grant to every layer it was taken from; a negative n debits counted
-- layers by what was sent while Redis was away.
--
-- KEYS[1] probe         string: probe lease of the path, freed when this grant holds it
-- KEYS[2..] layers      rate: hash {tokens, updated, place}; count: string prefix, slot appended
--
-- ARGV[1], ARGV[2] origin, speed   ARGV[3] n   ARGV[4] token: value of the probe lease
-- ARGV[5] at            policy time of the grant: the slot counted limits were counted in
-- then 3 per layer      kind (path | rate | count), depth and rate, or limit and slot seconds

local n, speed = tonumber(ARGV[3]), tonumber(ARGV[2])
if n > 0 and redis.call('GET', KEYS[1]) == ARGV[4] then redis.call('DEL', KEYS[1]) end
for i = 1, #KEYS - 1 do
  local at = 5 + (i - 1) * 3
  local key, kind = KEYS[i + 1], ARGV[at + 1]
  local a, b = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if kind == 'count' then
    local store = key .. ':' .. string.format('%d', math.floor(tonumber(ARGV[5]) / b))
    if n < 0 or redis.call('EXISTS', store) == 1 then
      redis.call('DECRBY', store, n)
      redis.call('EXPIRE', store, math.min(math.ceil(b / speed), 30 * 86400) + 3600)
    end
  elseif n > 0 then
    local tokens = tonumber(redis.call('HGET', key, 'tokens') or '')
    if tokens then
      redis.call('HSET', key, 'tokens', string.format('%.6f', math.min(a, tokens + n)))
    end
  end
end
return 1
