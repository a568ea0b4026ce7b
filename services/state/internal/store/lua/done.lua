-- done: complete for what most results are: the only delivery of its request arrived, nothing waits behind it, and no rule
-- asked for its answer. It writes what complete.lua would.
-- KEYS 1 call HASH, 2 leases HASH of the destination, 3 counters HASH
-- ARGV 1 call key, 2 destination, 3 number, 4 request id, 5 now (ms), 6 journal, 7 journal limit (bytes), 8 retention (ms)
-- returns 1 | 0: it is not so simple, and nothing was written
local call, number = KEYS[1], ARGV[3]
local state, line, request = number .. 's', 'q:' .. ARGV[2], 'i:' .. ARGV[4]
local d = redis.call('HMGET', call, state, line, number .. 'w', request, 'jn', 'jb', number .. 'a', 'o', 'p')
if d[1] ~= 'l' or d[2] ~= number or d[3] or not d[4] then return 0 end
local outcome, hour = string.match(d[4], '^(.)q(%d+) ' .. number .. '$')
local bytes, piece, open = (d[6] or 0) + #ARGV[6], tostring((d[5] or 0) + 1), (d[8] or 0) - 1
if not outcome or bytes > tonumber(ARGV[7]) then return 0 end

redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[3], hour .. 'd', '1')
redis.call('HDEL', call, number .. 't', line)
redis.call('HSET', call, 'j' .. piece, ARGV[6], 'jn', piece, 'jb', tostring(bytes), number .. 'a', tostring((d[7] or 0) + 1),
  state, 'd', request, outcome .. 'd' .. hour .. ' ' .. number, number .. 'f', ARGV[5], 'o', tostring(open))
if open <= 0 then
  redis.call('PEXPIRE', call, d[9] and tonumber(d[9]) > tonumber(ARGV[8]) and d[9] or ARGV[8])
end
return 1
