-- lib: put in front of every script. Lines are the numbers of a (call, destination) pair in the order in which they go
-- out, head first, separated by blanks.
local function append_journal(call, entries, limit)
  local journal = redis.call('HGET', call, 'j') or ''
  if #journal + #entries <= tonumber(limit) then
    redis.call('HSET', call, 'j', journal .. entries)
  else
    redis.call('HINCRBY', call, 'jx', #entries)
  end
end

-- Puts a delivery at the end of its line. Returns '1' if it is the head (then it is due now).
local function join_line(call, key, due, destination, number, now)
  local line = redis.call('HGET', call, 'q:' .. destination)
  if line then
    redis.call('HSET', call, 'q:' .. destination, line .. ' ' .. number)
    return ''
  end
  redis.call('HSET', call, 'q:' .. destination, number)
  redis.call('ZADD', due, now, key)
  return '1'
end

-- Takes a delivery out of its line. Returns '1' if another one became the head by that (it is due now).
local function leave_line(call, key, due, destination, number, now)
  local rest, was_head, first = {}, false, true
  for n in string.gmatch(redis.call('HGET', call, 'q:' .. destination) or '', '%S+') do
    if n ~= number then rest[#rest + 1] = n elseif first then was_head = true end
    first = false
  end
  if was_head then redis.call('ZREM', due, key) end
  if #rest == 0 then
    redis.call('HDEL', call, 'q:' .. destination)
    return ''
  end
  redis.call('HSET', call, 'q:' .. destination, table.concat(rest, ' '))
  if not was_head then return '' end
  redis.call('ZADD', due, now, key)
  return '1'
end

-- One thing less is open in the call; the last one starts its time to live.
local function closed_one(call, retention)
  if redis.call('HINCRBY', call, 'o', -1) <= 0 then redis.call('PEXPIRE', call, retention) end
end
