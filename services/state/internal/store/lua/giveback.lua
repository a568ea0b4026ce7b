-- giveback: ends a lease whose consumer has been silent for LEASE_TIME, or a timer's lease that is returned.
-- The delivery becomes uncertain: its request was probably sent.
-- KEYS 1 call HASH, 2 due ZSET, 3 leases HASH of the destination
-- ARGV 1 member, 2 token, 3 number ('' = a timer), 4 due (ms), 5 journal, 6 journal limit (bytes), 7 timer
-- returns 1 | 0 (the lease is not this one any more)
local call, member, number = KEYS[1], ARGV[1], ARGV[3]
if redis.call('HGET', KEYS[3], member) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[3], member)
if number == '' then
  if redis.call('HEXISTS', call, 't:' .. ARGV[7]) == 0 then return 0 end
  redis.call('ZADD', KEYS[2], ARGV[4], member)
  return 1
end
if redis.call('HGET', call, number .. 't') ~= ARGV[2] then return 0 end
redis.call('HDEL', call, number .. 't')
redis.call('HSET', call, number .. 's', 'q', number .. 'u', '1')
redis.call('HINCRBY', call, number .. 'a', 1)
redis.call('ZADD', KEYS[2], ARGV[4], member)
append_journal(call, ARGV[5], ARGV[6])
return 1
