-- lib: put in front of the scripts that use it. A script reads all it needs with one HMGET, checks, and writes with as few
-- commands as it can: each costs time and a record in the append-only file.
--
-- Lines are the numbers of a (call, destination) pair in the order in which they go out, head first, separated by blanks.

-- Adds the fields of one more piece of journal to `set`, or counts what does not fit. count and bytes are fields jn and jb.
-- Returns whether it fits.
local function add_journal(set, call, entries, limit, count, bytes)
  if entries == '' then return true end
  local size = tonumber(bytes or '0') + #entries
  if size > tonumber(limit) then
    redis.call('HINCRBY', call, 'jx', #entries)
    return false
  end
  local n = tostring(tonumber(count or '0') + 1)
  for _, v in ipairs({'j' .. n, entries, 'jn', n, 'jb', tostring(size)}) do set[#set + 1] = v end
  return true
end

-- Lets a call end by itself: after so many ms, or what its rules asked for (field p) if that is longer.
local function expire(call, retention, asked)
  if asked and tonumber(asked) > tonumber(retention) then retention = asked end
  redis.call('PEXPIRE', call, retention)
end

-- Accounting. Where a request is counted stands in its field i:<request id> of the call: outcome of the commit, bucket, hour,
-- a blank, the numbers of its deliveries. A delivery that no request of the call caused has a field a:<number> of the same
-- form, with the outcome o. The counters are fields <hour><bucket>, or <hour>o<bucket>. Everything that ever had deliveries is
-- counted in q, and what has ended in x e c n d besides: then an end costs one counter, and what is left of q waits.
local rank = {d = 1, n = 2, c = 3, e = 4, x = 5, q = 6, l = 6, a = 6}

local function count(counters, outcome, hour, bucket, by)
  redis.call('HINCRBY', counters, outcome == 'o' and hour .. 'o' .. bucket or hour .. bucket, by)
end

-- Moves a request to another bucket, with further deliveries.
local function move(set, counters, field, value, to, numbers)
  local outcome, bucket, hour, before = string.match(value, '^(.)(%l)(%d+) ?(.*)$')
  if not outcome or (before ~= '' and numbers == '') then return end -- not a request; what has deliveries is where they are
  if before ~= '' and numbers ~= '' then numbers = before .. ' ' .. numbers end
  if bucket ~= to then
    if bucket ~= 'q' then count(counters, outcome, hour, bucket, '-1') end
    if not (to == 'q' and before ~= '') then count(counters, outcome, hour, to, '1') end
  end
  set[#set + 1] = field
  set[#set + 1] = outcome .. to .. hour .. ' ' .. numbers
end

-- A delivery is in another state: its request is where the most open or else the worst of its deliveries is.
local function moved(set, counters, call, request, value, own, number, state)
  local field = 'i:' .. request
  if own then field, value = 'a:' .. number, own end
  local outcome, bucket, hour, numbers = string.match(value or '', '^(.)(%l)(%d+) (.+)$')
  if not outcome then return end
  local to = state
  if numbers ~= number then
    for n in string.gmatch(numbers, '%S+') do
      local other = n == number and state or redis.call('HGET', call, n .. 's')
      if other and rank[other] > rank[to] then to = other end
    end
  end
  if rank[to] == 6 then to = 'q' end
  if to == bucket then return end
  if bucket ~= 'q' then count(counters, outcome, hour, bucket, '-1') end
  if to ~= 'q' then count(counters, outcome, hour, to, '1') end
  set[#set + 1] = field
  set[#set + 1] = outcome .. to .. hour .. ' ' .. numbers
end

-- Takes a number out of a line. Returns the rest ('' = none) and whether it was the head.
local function without(line, number)
  if line == number then return '', true end
  local rest, head = {}, false
  for n in string.gmatch(line or '', '%S+') do
    if n ~= number then rest[#rest + 1] = n elseif #rest == 0 then head = true end
  end
  return table.concat(rest, ' '), head
end

-- Puts the result of a delivery into `rules`, where the rules asked for it (field <n>w). The latest result counts: an
-- earlier one that was not looked at yet is replaced. Returns how many entries there are more.
local function add_result(call, key, due, leases, number, id, reply, now)
  if redis.call('HEXISTS', call, number .. 'w') == 0 then return 0 end
  local name = '=' .. number
  local more = redis.call('HSET', call, 't:' .. name, id, 'm:' .. name, reply) > 0 and 1 or 0
  redis.call('HDEL', call, 'e:' .. name)
  redis.call('HDEL', leases, key .. '\t' .. name) -- whoever has the old one is outdated
  redis.call('ZADD', due, now, key .. '\t' .. name)
  return more
end
