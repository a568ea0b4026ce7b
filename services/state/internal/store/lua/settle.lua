-- settle: a person retries or discards a delivery. Changes the version, so that rules which looked at the call before
-- decide again.
-- KEYS 1 call HASH, 2 due ZSET, 3 letters ZSET of the destination
-- ARGV 1 call key, 2 destination, 3 number, 4 expected version, 5 new version, 6 state letter it must be in,
--      7 verb: retry | discard, 8 now (ms), 9 retention (ms), 10 journal, 11 journal limit (bytes), 12 reason,
--      13 paused (ms) with which its age begins anew
-- returns {'ok', '1' if the pair has a head that is due now} | {'conflict'}
local call, key, number = KEYS[1], ARGV[1], ARGV[3]
local d = redis.call('HMGET', call, 'v', number .. 's')
local state = d[2] or ''
if (d[1] or '') ~= ARGV[4] or state ~= ARGV[6] then return {'conflict'} end

redis.call('HSET', call, 'v', ARGV[5])
append_journal(call, ARGV[10], ARGV[11])
redis.call('ZREM', KEYS[3], key .. '\t' .. number)
local open = state == 'q' or state == 'x' or state == 'a'

if ARGV[7] == 'retry' then
  redis.call('HSET', call, number .. 's', 'q', number .. 'z', ARGV[13])
  redis.call('HDEL', call, number .. 'a', number .. 'f', number .. 'y')
  if not open then redis.call('HINCRBY', call, 'o', 1) end
  redis.call('PERSIST', call)
  return {'ok', join_line(call, key, KEYS[2], ARGV[2], number, ARGV[8])}
end

redis.call('HSET', call, number .. 's', 'c', number .. 'f', ARGV[8], number .. 'y', ARGV[12])
local head = ''
if state == 'q' then head = leave_line(call, key, KEYS[2], ARGV[2], number, ARGV[8]) end
if open then closed_one(call, ARGV[9]) end
return {'ok', head}
