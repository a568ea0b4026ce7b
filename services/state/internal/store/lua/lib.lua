-- lib: put in front of every script. A script reads all it needs with one HMGET, checks, and writes with as few commands as
-- it can: each costs time and a record in the append-only file.
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
  redis.call('HDEL', leases, key .. '\t' .. name) -- whoever has the old one is outdated
  redis.call('ZADD', due, now, key .. '\t' .. name)
  return more
end
