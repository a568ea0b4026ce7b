-- lease: hands the head of one (call, destination), or a timer, to a consumer, if it is due.
-- KEYS 1 call HASH, 2 due ZSET, 3 leases HASH of the destination
-- ARGV 1 member (call key, or call key TAB timer), 2 destination, 3 token, 4 now (ms), 5 timer ('' = a delivery)
-- returns false | {timer id, due (ms), body ('' = a plain timer), since when it waits (ms, '' = it does not)} | {number, body, attempts, uncertain, paused (ms), '1' if another waits behind it,
--      when a person retried it (ms)}
local call, member = KEYS[1], ARGV[1]
-- The clocks of two state processes differ by a network round trip: a delivery may go out that much earlier.
local skew = ARGV[5] == '' and 20 or 0
local due = redis.call('ZSCORE', KEYS[2], member)
if not due or tonumber(due) > tonumber(ARGV[4]) + skew then return false end

redis.call('ZREM', KEYS[2], member)
if ARGV[5] ~= '' then
  local entry = redis.call('HMGET', call, 't:' .. ARGV[5], 'm:' .. ARGV[5], 'e:' .. ARGV[5])
  if not entry[1] then return false end
  redis.call('HSET', KEYS[3], member, ARGV[3])
  return {entry[1], due, entry[2] or '', entry[3] or ''}
end

local line = redis.call('HGET', call, 'q:' .. ARGV[2])
if not line then return false end
local number = string.match(line, '^%S+')
redis.call('HSET', KEYS[3], member, ARGV[3])
redis.call('HSET', call, number .. 's', 'l', number .. 't', ARGV[3])
local d = redis.call('HMGET', call, number, number .. 'a', number .. 'u', number .. 'z', number .. 'b')
return {number, d[1], d[2] or '0', d[3] or '', d[4] or '0', string.find(line, ' ', 1, true) and '1' or '', d[5] or ''}
