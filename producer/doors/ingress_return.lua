-- Give claimed messages back: one that fails to the end of the queue, so that others pass it; all of them
-- to its front when the consumer leaves. Only the owner may.
-- KEYS  leases, claimed list of the consumer, queue
-- ARGV  consumer, 'first' or 'leave'
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 0
end
if ARGV[2] == 'first' then
  local entry = redis.call('LPOP', KEYS[2])
  if entry then
    redis.call('LPUSH', KEYS[3], entry)
  end
  return 1
end
while true do
  local entry = redis.call('RPOP', KEYS[2])
  if not entry then
    break
  end
  redis.call('RPUSH', KEYS[3], entry)
end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
