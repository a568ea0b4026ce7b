-- hold: holds or releases a destination.
-- KEYS 1 hold HASH
-- ARGV 1 verb: hold | release, 2 now (ms), 3 epoch it must have (-1 = any: a person), 4 reason, 5 probe interval (ms)
-- returns 1 | 0 (another epoch, or nothing to release)
local h = KEYS[1]
local d = redis.call('HMGET', h, 'epoch', 'since', 'probe')
if ARGV[3] ~= '-1' and (d[1] or '0') ~= ARGV[3] then return 0 end

if ARGV[1] == 'hold' then
  -- A person's hold (no probing) is not weakened by a result that comes in later.
  if d[2] and d[3] == '0' and ARGV[3] ~= '-1' then return 1 end
  redis.call('HSET', h, 'reason', ARGV[4], 'probe', ARGV[5])
  redis.call('HSETNX', h, 'since', ARGV[2])
  return 1
end

if not d[2] then return 0 end
redis.call('HINCRBY', h, 'epoch', 1)
redis.call('HINCRBY', h, 'total', math.max(0, tonumber(ARGV[2]) - tonumber(d[2])))
redis.call('HDEL', h, 'since', 'reason', 'probe')
return 1
