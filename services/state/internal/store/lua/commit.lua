-- commit: the only way in which rules change a call. Checks everything, then writes; Redis does not roll back.
-- KEYS 1 call HASH, 2 due ZSET of `rules`, 3 leases HASH of `rules`, then for each delivery: due ZSET, leases HASH; then,
--      where there are cards, cards HASH; last: counters HASH
-- ARGV 1 input id, 2 expected version, 3 commit id ('' = journal only), 4 record, 5 journal, 6 outcome, 7 now (ms),
--      8 retention (ms), 9 journal limit (bytes), 10 call key, 11 entry timer ('' = none), 12 entry timer id,
--      13 number of deliveries, of timers set, of timers cancelled, of cards (four arguments), 17 retention (ms) of this call
--      ('' = as before), then number, destination, body, lease token ('' = none), '1' if its result is an input of each
--      delivery; name, due (ms), body ('' = none: a plain timer) of each timer set; name of each cancelled;
--      field, body ('' = it ended) of each card;
--      then hour, and request id, bucket letter, delivery numbers of each request that is moved
-- A delivery with a lease token that becomes the head of its line is leased at once.
-- returns {'earlier', outcome} | {'conflict', field, value, ...} | {'stale'} | {'ok', for each delivery: 'due' = the new
--      head of its line, 'leased', or '' = it waits behind another}
local call, commit, now, key = KEYS[1], ARGV[3], ARGV[7], ARGV[10]
local deliveries, timers, cancelled, cards = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])

-- What has to be known: fixed fields, the line of each delivery, each timer.
local fields = {'HMGET', call, 'i:' .. ARGV[1], 'v', 'o', 'jn', 'jb', 't:' .. ARGV[11], 'p'}
local at = 18
for _ = 1, deliveries do fields[#fields + 1] = 'q:' .. ARGV[at + 1]; at = at + 5 end
for _ = 1, timers do fields[#fields + 1] = 't:' .. ARGV[at]; at = at + 3 end
for _ = 1, cancelled do fields[#fields + 1] = 't:' .. ARGV[at]; at = at + 1 end
at = at + 2 * cards
for i = at + 1, #ARGV, 3 do fields[#fields + 1] = 'i:' .. ARGV[i] end
local known = redis.call(unpack(fields))

if known[1] then return {'earlier', known[1]} end
if (known[2] or '') ~= ARGV[2] then
  local all = redis.call('HGETALL', call)
  table.insert(all, 1, 'conflict')
  return all
end
if ARGV[11] ~= '' and known[6] ~= ARGV[12] then return {'stale'} end

local set = {'HSET', call}
local function put(field, value)
  set[#set + 1] = field
  set[#set + 1] = value
end
local open = tonumber(known[3] or '0')
local before = open
local next_known = 8
local gone = {} -- timers that end

local function drop_timer(name, id)
  if id then
    open = open - 1
    gone[#gone + 1] = 't:' .. name
    gone[#gone + 1] = 'm:' .. name
    gone[#gone + 1] = 'e:' .. name
  end
  redis.call('ZREM', KEYS[2], key .. '\t' .. name)
  redis.call('HDEL', KEYS[3], key .. '\t' .. name)
end

if ARGV[17] ~= '' then put('p', ARGV[17]) end
if commit ~= '' then
  put('v', commit)
  put('r', ARGV[4])
end
if ARGV[11] ~= '' then drop_timer(ARGV[11], known[6]) end

local reply, lines = {'ok'}, {}
at = 18
for i = 1, deliveries do
  local number, destination, token = ARGV[at], ARGV[at + 1], ARGV[at + 3]
  local line = lines[destination] or known[next_known]
  local place = ''
  if line then
    line = line .. ' ' .. number
  else
    line = number
    place = token == '' and 'due' or 'leased'
  end
  lines[destination] = line
  put(number, ARGV[at + 2])
  if ARGV[at + 4] == '1' then put(number .. 'w', '1') end
  if place == 'leased' then
    put(number .. 's', 'l')
    put(number .. 't', token)
    redis.call('HSET', KEYS[3 + 2 * i], key, token)
  else
    put(number .. 's', 'q')
    if place == 'due' then redis.call('ZADD', KEYS[2 + 2 * i], now, key) end
  end
  reply[#reply + 1] = place
  open = open + 1
  next_known = next_known + 1
  at = at + 5
end
for destination, line in pairs(lines) do put('q:' .. destination, line) end

for _ = 1, timers do
  local name = ARGV[at]
  if name == ARGV[11] then
    table.remove(gone, 1) -- the entry's own timer, set again: t: and m: stay
    table.remove(gone, 1)
    open = open + 1
  elseif known[next_known] then
    redis.call('HDEL', KEYS[3], key .. '\t' .. name) -- whoever has the old one is outdated
    gone[#gone + 1] = 'e:' .. name
  else
    open = open + 1
  end
  put('t:' .. name, commit)
  if ARGV[at + 2] ~= '' then put('m:' .. name, ARGV[at + 2]) end
  redis.call('ZADD', KEYS[2], ARGV[at + 1], key .. '\t' .. name)
  next_known = next_known + 1
  at = at + 3
end
for _ = 1, cancelled do
  if ARGV[at] ~= ARGV[11] then drop_timer(ARGV[at], known[next_known]) end
  next_known = next_known + 1
  at = at + 1
end

for _ = 1, cards do
  if ARGV[at + 1] == '' then
    redis.call('HDEL', KEYS[#KEYS - 1], ARGV[at])
  else
    redis.call('HSET', KEYS[#KEYS - 1], ARGV[at], ARGV[at + 1])
  end
  at = at + 2
end

-- Repeats without end must not make a call grow without end: once its journal is full, a repeat leaves no input id. To
-- commit it a second time would only count its bytes again.
-- Neither does it count.
if add_journal(set, call, ARGV[5], ARGV[9], known[4], known[5]) or commit ~= '' then
  local own = ARGV[6]
  local hour, counters = ARGV[at], KEYS[#KEYS]
  for i = at + 1, #ARGV, 3 do
    local value, to, numbers = known[next_known], ARGV[i + 1], ARGV[i + 2]
    next_known = next_known + 1
    if ARGV[i] == ARGV[1] then
      own = own .. to .. hour .. ' ' .. numbers
      redis.call('HINCRBY', counters, hour .. to, '1')
    elseif value then
      move(set, counters, 'i:' .. ARGV[i], value, to, numbers)
    else
      for number in string.gmatch(numbers, '%S+') do
        put('a:' .. number, 'oq' .. hour .. ' ' .. number)
        redis.call('HINCRBY', counters, hour .. 'oq', '1')
      end
    end
  end
  put('i:' .. ARGV[1], own)
end
if open ~= before then put('o', tostring(open)) end
if #set > 2 then redis.call(unpack(set)) end
if #gone > 0 then redis.call('HDEL', call, unpack(gone)) end
if open == 0 then
  expire(call, ARGV[8], ARGV[17] ~= '' and ARGV[17] or known[7])
elseif before == 0 and (known[4] or known[2]) then
  redis.call('PERSIST', call)
end
return reply
