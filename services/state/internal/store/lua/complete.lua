-- complete: takes the result of a leased delivery. `done` is a fact and counts from any token while the delivery is not
-- final (or waits for a person); everything else only from the current token.
-- KEYS 1 call HASH, 2 due ZSET, 3 leases HASH, 4 letters ZSET of the destination
-- ARGV 1 call key, 2 destination, 3 number, 4 token, 5 verb: done | end | again, 6 state letter to end in, 7 due (ms),
--      8 now (ms), 9 retention (ms), 10 '1' if the attempt counts, 11 '1' if uncertain, 12 paused (ms) to add,
--      13 reason, 14 journal, 15 journal limit (bytes)
-- returns {'ok', '1' if the pair has a head that is due now} | {'superseded', state letter}
local call, key, number = KEYS[1], ARGV[1], ARGV[3]
local d = redis.call('HMGET', call, number .. 's', number .. 't')
local state, token = d[1] or '', d[2] or ''

if ARGV[5] == 'done' then
  if state ~= 'q' and state ~= 'l' and state ~= 'a' then return {'superseded', state} end
elseif state ~= 'l' or token ~= ARGV[4] then
  return {'superseded', state}
end

append_journal(call, ARGV[14], ARGV[15])
if ARGV[10] == '1' then redis.call('HINCRBY', call, number .. 'a', 1) end
if ARGV[11] == '1' then redis.call('HSET', call, number .. 'u', '1') end
if ARGV[12] ~= '0' then redis.call('HINCRBY', call, number .. 'z', ARGV[12]) end
if ARGV[13] ~= '' then redis.call('HSET', call, number .. 'y', ARGV[13]) end
if token ~= '' then
  redis.call('HDEL', call, number .. 't')
  redis.call('HDEL', KEYS[3], key)
end

if ARGV[5] == 'again' then
  redis.call('HSET', call, number .. 's', 'q')
  redis.call('ZADD', KEYS[2], ARGV[7], key)
  return {'ok', tonumber(ARGV[7]) <= tonumber(ARGV[8]) and '1' or ''}
end

redis.call('HSET', call, number .. 's', ARGV[6], number .. 'f', ARGV[8])
local letter = key .. '\t' .. number
if ARGV[6] == 'x' or ARGV[6] == 'a' or ARGV[6] == 'e' then
  redis.call('ZADD', KEYS[4], ARGV[8], letter)
else
  redis.call('ZREM', KEYS[4], letter)
end

local head = leave_line(call, key, KEYS[2], ARGV[2], number, ARGV[8])
-- What a person still has to decide about keeps the call.
if ARGV[6] ~= 'x' and ARGV[6] ~= 'a' then closed_one(call, ARGV[9]) end
return {'ok', head}
