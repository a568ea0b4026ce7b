-- settle: a person retries or discards a delivery. Changes the version, so that rules which looked at the call before
-- decide again.
-- KEYS 1 call HASH, 2 due ZSET, 3 letters ZSET of the destination, 4 due ZSET, 5 leases HASH of `rules`, 6 counters HASH
-- ARGV 1 call key, 2 destination, 3 number, 4 expected version, 5 new version, 6 state letter it must be in,
--      7 verb: retry | discard, 8 now (ms), 9 retention (ms), 10 journal, 11 journal limit (bytes), 12 reason,
--      13 paused (ms) with which its age begins anew, 14 id of this result, 15 request id
-- returns {'ok', '1' if the pair has a head that is due now} | {'conflict'}
local call, key, number = KEYS[1], ARGV[1], ARGV[3]
local line = 'q:' .. ARGV[2]
local d = redis.call('HMGET', call, 'v', number .. 's', 'o', 'jn', 'jb', line, number .. 'u',
  'i:' .. ARGV[15], 'a:' .. number, 'p')
local state = d[2] or ''
if (d[1] or '') ~= ARGV[4] or state ~= ARGV[6] then return {'conflict'} end

local set = {'HSET', call, 'v', ARGV[5]}
local function put(field, value)
  set[#set + 1] = field
  set[#set + 1] = value
end
add_journal(set, call, ARGV[10], ARGV[11], d[4], d[5])
redis.call('ZREM', KEYS[3], key .. '\t' .. number)
local open = tonumber(d[3] or '0')
local counted = state == 'q' or state == 'x' or state == 'a'
local due = ''
moved(set, KEYS[6], call, ARGV[15], d[8], d[9], number, ARGV[7] == 'retry' and 'q' or 'c')

if ARGV[7] == 'retry' then
  put(number .. 's', 'q')
  put(number .. 'z', ARGV[13])
  put(number .. 'b', ARGV[8])
  -- A person looked: nobody has to be asked again about attempts before this. For the gate it stays uncertain.
  if d[7] then put(number .. 'u', '0') end
  if d[6] then
    put(line, d[6] .. ' ' .. number)
  else
    put(line, number)
    redis.call('ZADD', KEYS[2], ARGV[8], key)
    due = '1'
  end
  if not counted then open = open + 1 end
  redis.call('HDEL', call, number .. 'a', number .. 'f', number .. 'y')
  redis.call('PERSIST', call)
else
  put(number .. 's', 'c')
  put(number .. 'f', ARGV[8])
  put(number .. 'y', ARGV[12])
  if state == 'q' then
    local rest, head = without(d[6], number)
    if head then redis.call('ZREM', KEYS[2], key) end
    if rest == '' then redis.call('HDEL', call, line) else put(line, rest) end
    if head and rest ~= '' then
      redis.call('ZADD', KEYS[2], ARGV[8], key)
      due = '1'
    end
  end
  if counted then open = open - 1 end
  open = open + add_result(call, key, KEYS[4], KEYS[5], number, ARGV[14], '', ARGV[8])
  if open > 0 then redis.call('PERSIST', call) end
end
put('o', tostring(open))
redis.call(unpack(set))
if open <= 0 then expire(call, ARGV[9], d[10]) end
return {'ok', due}
