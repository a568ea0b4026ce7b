-- limit: reserves evenly spaced places, or pauses all of them.
-- KEYS 1 limit STRING: when the next place is free (us)
-- ARGV 1 verb: take | pause, 2 now (us), 3 take: time per place (us); pause: for (us), 4 number of places, 5 longest wait (us)
-- returns {1, wait (us)} | {0, wait (us)}: too long, nothing was reserved
local now, free = tonumber(ARGV[2]), tonumber(redis.call('GET', KEYS[1]) or '0')
local function keep(t)
  redis.call('SET', KEYS[1], string.format('%.0f', t), 'PX', math.ceil((t - now) / 1000) + 1000)
end
if ARGV[1] == 'pause' then
  if now + tonumber(ARGV[3]) > free then keep(now + tonumber(ARGV[3])) end
  return {1, 0}
end
local start = math.max(free, now)
if start - now > tonumber(ARGV[5]) then return {0, start - now} end
keep(start + tonumber(ARGV[3]) * tonumber(ARGV[4]))
return {1, start - now}
