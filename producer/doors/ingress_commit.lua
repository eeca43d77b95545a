-- Forget the first messages of a claim: they are committed. Only the owner may; one whose claim was
-- taken over gets 0, and the new owner commits the same messages again (they carry ids).
-- KEYS  leases, claimed list of the consumer
-- ARGV  consumer, number of messages
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('LTRIM', KEYS[2], ARGV[2], -1)
return 1
