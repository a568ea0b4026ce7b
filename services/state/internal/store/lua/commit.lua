-- commit: the only way in which rules change a call. Checks everything, then writes; Redis does not roll back.
-- KEYS 1 call HASH, 2 due ZSET of `rules`, 3 leases HASH of `rules`, 4.. due ZSET of each delivery's destination
-- ARGV 1 input id, 2 expected version, 3 commit id ('' = journal only), 4 record, 5 journal, 6 outcome, 7 now (ms),
--      8 retention (ms), 9 journal limit (bytes), 10 call key, 11 entry timer ('' = none), 12 entry timer id,
--      13 number of deliveries, of timers set, of timers cancelled (three arguments),
--      then number, destination, body of each delivery; name, due (ms) of each timer set; name of each cancelled
-- returns {'earlier', outcome} | {'conflict', field, value, ...} | {'stale'} | {'ok', destination with a new head, ...}
local call = KEYS[1]
local commit, now, key = ARGV[3], ARGV[7], ARGV[10]

local earlier = redis.call('HGET', call, 'i:' .. ARGV[1])
if earlier then return {'earlier', earlier} end
if (redis.call('HGET', call, 'v') or '') ~= ARGV[2] then
  local all = redis.call('HGETALL', call)
  table.insert(all, 1, 'conflict')
  return all
end
if ARGV[11] ~= '' and redis.call('HGET', call, 't:' .. ARGV[11]) ~= ARGV[12] then return {'stale'} end

local opened = 0
local function drop_timer(name)
  if redis.call('HDEL', call, 't:' .. name) == 1 then opened = opened - 1 end
  redis.call('ZREM', KEYS[2], key .. '\t' .. name)
  redis.call('HDEL', KEYS[3], key .. '\t' .. name)
end

if commit ~= '' then redis.call('HSET', call, 'v', commit, 'r', ARGV[4]) end
redis.call('HSET', call, 'i:' .. ARGV[1], ARGV[6])
if ARGV[11] ~= '' then drop_timer(ARGV[11]) end

local reply = {'ok'}
local at = 16
for i = 1, tonumber(ARGV[13]) do
  local number, destination = ARGV[at], ARGV[at + 1]
  redis.call('HSET', call, number, ARGV[at + 2], number .. 's', 'q')
  if join_line(call, key, KEYS[3 + i], destination, number, now) == '1' then reply[#reply + 1] = destination end
  opened = opened + 1
  at = at + 3
end
for _ = 1, tonumber(ARGV[14]) do
  local name, due = ARGV[at], ARGV[at + 1]
  drop_timer(name)
  redis.call('HSET', call, 't:' .. name, commit)
  redis.call('ZADD', KEYS[2], due, key .. '\t' .. name)
  opened = opened + 1
  at = at + 2
end
for _ = 1, tonumber(ARGV[15]) do
  drop_timer(ARGV[at])
  at = at + 1
end

append_journal(call, ARGV[5], ARGV[9])

local open = tonumber(redis.call('HGET', call, 'o') or '0')
if opened ~= 0 then open = redis.call('HINCRBY', call, 'o', opened) end
if open > 0 then redis.call('PERSIST', call) else redis.call('PEXPIRE', call, ARGV[8]) end
return reply
