-- complete: takes the result of a leased delivery. `done` is a fact and counts from any token while the delivery is not
-- final (or waits for a person); everything else only from the current token.
-- KEYS 1 call HASH, 2 due ZSET, 3 leases HASH, 4 letters ZSET of the destination, 5 due ZSET, 6 leases HASH of `rules`,
--      7 counters HASH
-- ARGV 1 call key, 2 destination, 3 number, 4 token, 5 verb: done | end | again, 6 state letter to end in, 7 due (ms),
--      8 now (ms), 9 retention (ms), 10 '1' if the attempt counts, 11 '1' if uncertain, 12 paused (ms) to add,
--      13 reason, 14 journal, 15 journal limit (bytes), 16 reply, 17 id of this result, 18 request id
-- returns {'ok', '1' if the pair has a head that is due now, '1' if `rules` got the result} | {'superseded', state letter}
local call, key, destination, number = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local d = redis.call('HMGET', call, number .. 's', number .. 't', number .. 'a', number .. 'z', 'q:' .. destination, 'o', 'jn', 'jb',
  number .. 'w', 'i:' .. ARGV[18], 'a:' .. number, 'p')
local state = d[1] or ''
-- A token counts only in state l: what it once was is not removed.
if ARGV[5] == 'done' then
  if state ~= 'q' and state ~= 'l' and state ~= 'a' then return {'superseded', state} end
elseif state ~= 'l' or d[2] ~= ARGV[4] then
  return {'superseded', state}
end

local set = {'HSET', call}
local function put(field, value)
  set[#set + 1] = field
  set[#set + 1] = value
end
add_journal(set, call, ARGV[14], ARGV[15], d[7], d[8])
if ARGV[10] == '1' then put(number .. 'a', tostring(tonumber(d[3] or '0') + 1)) end
if ARGV[11] == '1' then put(number .. 'u', '1') end
if ARGV[12] ~= '0' then put(number .. 'z', tostring(tonumber(d[4] or '0') + tonumber(ARGV[12]))) end
if ARGV[13] ~= '' then put(number .. 'y', ARGV[13]) end
if state == 'l' then redis.call('HDEL', KEYS[3], key) end

if ARGV[5] == 'again' then
  put(number .. 's', 'q')
  redis.call(unpack(set))
  redis.call('ZADD', KEYS[2], ARGV[7], key)
  return {'ok', tonumber(ARGV[7]) <= tonumber(ARGV[8]) and '1' or '', ''}
end

put(number .. 's', ARGV[6])
moved(set, KEYS[7], call, ARGV[18], d[10], d[11], number, ARGV[6])
put(number .. 'f', ARGV[8])
local letter = key .. '\t' .. number
if ARGV[6] == 'x' or ARGV[6] == 'a' or ARGV[6] == 'e' then
  redis.call('ZADD', KEYS[4], ARGV[8], letter)
elseif state == 'a' then
  redis.call('ZREM', KEYS[4], letter)
end

-- The next in line moves up. What a person was asked about had left its line already.
local rest, head = without(d[5], number)
if head and state == 'q' then redis.call('ZREM', KEYS[2], key) end
local gone = {'HDEL', call, number .. 't'}
if rest == '' then
  gone[4] = 'q:' .. destination
elseif rest ~= d[5] then
  put('q:' .. destination, rest)
end
redis.call(unpack(gone))
local due = ''
if head and rest ~= '' then
  redis.call('ZADD', KEYS[2], ARGV[8], key)
  due = '1'
end

-- What a person still has to decide about keeps the call.
local open = tonumber(d[6] or '0')
local told = ''
local before = open
if ARGV[6] ~= 'x' and ARGV[6] ~= 'a' then open = open - 1 end
if d[9] then
  open = open + add_result(call, key, KEYS[5], KEYS[6], number, ARGV[17], ARGV[16], ARGV[8])
  told = '1'
end
if open ~= before then put('o', tostring(open)) end
redis.call(unpack(set))
if open <= 0 then expire(call, ARGV[9], d[12]) end
return {'ok', due, told}
