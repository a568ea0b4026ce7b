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
