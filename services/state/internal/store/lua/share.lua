-- share: divides the requests that a destination may get at once among the processes that want to send. What one still holds
-- of an earlier, larger share counts as its own until it says that it has given it up; so all together never hold more.
-- KEYS 1 shares HASH: name -> "instance seen(ms) share limit wanted"
-- ARGV 1 name, 2 instance, 3 '1' if it has been given a share before, 4 now (ms), 5 for (ms), 6 limit, 7 held, 8 '1' if wanted
-- returns its share | -1: the name is another process'
local now, lasts, limit, held = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local all = redis.call('HGETALL', KEYS[1])
local others, taken, want = {}, 0, 1
for i = 1, #all, 2 do
  local instance, seen, share, most, wanted = string.match(all[i + 1], '^(%S+) (%d+) (%d+) (%d+) (%d?)$')
  if all[i] == ARGV[1] then
    if ARGV[3] == '1' and instance ~= ARGV[2] then return -1 end
  elseif tonumber(seen) + lasts <= now then
    redis.call('HDEL', KEYS[1], all[i])
  else
    taken = taken + tonumber(share)
    if wanted == '1' then
      want = want + 1
      limit = math.min(limit, tonumber(most))
      others[#others + 1] = tonumber(share)
    end
  end
end

local share = 0
if ARGV[8] == '1' then
  -- Where it does not divide evenly some get one more.
  local each = math.floor(limit / want)
  local rest = limit - each * want
  for _, s in ipairs(others) do rest = rest - math.max(0, s - each) end
  if rest > 0 then each = each + 1 end
  share = math.max(0, math.min(each, limit - taken))
elseif held == 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], table.concat({ARGV[2], ARGV[4], string.format('%d', math.max(share, held)), ARGV[6], ARGV[8]}, ' '))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return share
