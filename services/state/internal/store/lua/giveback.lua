-- giveback: ends a lease whose consumer has been silent for LEASE_TIME, one that no consumer ever saw, or a timer's lease
-- that is returned. In the first case the delivery becomes uncertain: its request was probably sent.
-- KEYS 1 call HASH, 2 due ZSET, 3 leases HASH of the destination
-- ARGV 1 member, 2 token, 3 number ('' = a timer, or of a delivery that was not there yet when it was looked for), 4 due (ms),
--      5 journal, 6 journal limit (bytes), 7 timer ('' = a delivery), 8 '1' if it may have been sent,
--      9 now (ms) for a timer that cannot be processed now
-- returns 1 | 0 (the lease is not this one any more)
local call, member, number = KEYS[1], ARGV[1], ARGV[3]
if redis.call('HGET', KEYS[3], member) ~= ARGV[2] then return 0 end
-- Written since it was looked for: whoever looks again finds it by this lease.
if number == '' and ARGV[7] == '' then return 0 end
redis.call('HDEL', KEYS[3], member)
if number == '' then
  if redis.call('HEXISTS', call, 't:' .. ARGV[7]) == 0 then return 0 end
  redis.call('ZADD', KEYS[2], ARGV[4], member)
  if ARGV[9] ~= '' then redis.call('HSETNX', call, 'e:' .. ARGV[7], ARGV[9]) end
  return 1
end
local d = redis.call('HMGET', call, number .. 't', number .. 's', number .. 'a', 'jn', 'jb')
if d[1] ~= ARGV[2] or d[2] ~= 'l' then return 0 end
local set = {'HSET', call, number .. 's', 'q'}
if ARGV[8] == '1' then
  for _, v in ipairs({number .. 'u', '1', number .. 'a', tostring(tonumber(d[3] or '0') + 1)}) do set[#set + 1] = v end
end
add_journal(set, call, ARGV[5], ARGV[6], d[4], d[5])
redis.call(unpack(set))
redis.call('ZADD', KEYS[2], ARGV[4], member)
return 1
