-- limit: so many places, each of which ends by itself; and a pause, in which there are none.
-- KEYS 1 limit ZSET: token of a place, '' of the pause -> when it ends (us)
-- ARGV 1 verb: take | release | pause, 2 token ('' to pause), 3 ends in (us), 4 number of places (take),
--      5 a second (us): how long a place is kept after it is given back (take), 6 now (us, '' = Redis' own clock)
-- returns 0 | us before which no place can be free
local now = tonumber(ARGV[6])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
local function keep(mode) -- up to 2^53 a score is exact
  redis.call('ZADD', KEYS[1], mode, string.format('%.0f', now + ARGV[3]), ARGV[2])
  local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
  if last then redis.call('PEXPIRE', KEYS[1], math.ceil((last - now) / 1000) + 1000) end
  return 0
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if ARGV[1] == 'release' then return redis.call('ZSCORE', KEYS[1], ARGV[2]) and keep('LT') or 0 end
if ARGV[1] == 'pause' then return keep('GT') end
local paused = redis.call('ZSCORE', KEYS[1], '')
if paused then return paused - now end
if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[4]) or redis.call('ZSCORE', KEYS[1], ARGV[2]) then return keep('GT') end
-- Those that are not given back yet are kept for a second from then on, which is later than now.
return math.min(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] - now, tonumber(ARGV[5]))
