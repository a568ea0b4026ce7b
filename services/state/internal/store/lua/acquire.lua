-- acquire: makes one holder the only one for a while, or lets it go.
-- KEYS 1 lease or token STRING
-- ARGV 1 verb: acquire | release, 2 token, 3 for (ms)
-- returns 0 (it is the token's, or was let go) | milliseconds until the other one's time ends
local held = redis.call('GET', KEYS[1])
if ARGV[1] == 'release' then
  if held == ARGV[2] then redis.call('DEL', KEYS[1]) end
  return 0
end
if held and held ~= ARGV[2] then return math.max(1, redis.call('PTTL', KEYS[1])) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 0
