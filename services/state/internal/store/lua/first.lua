-- first: commit for what most commits are: the first of their call, with one delivery, caused by the input itself, and
-- nothing else. Nothing is stored that had to be known. It writes what commit.lua would.
-- KEYS 1 call HASH, 2 leases HASH of the destination if there is a token, else its due ZSET, 3 counters HASH
-- ARGV 1 call key, 2 commit id, 3 record, 4 journal, 5 input id, 6 outcome, 7 hour, 8 destination, 9 body,
--      10 lease token ('' = none: it is due), 11 now (ms)
-- returns 1 | 0: something is stored of this call, and commit has to look at it
local call, journal, token, hour = KEYS[1], ARGV[4], ARGV[10], ARGV[7]
if redis.call('EXISTS', call) == 1 then return 0 end
local state, field, value = 'l', '1t', token
if token == '' then
  state, field, value = 'q', '1s', 'q' -- no token: the state once more
  redis.call('ZADD', KEYS[2], ARGV[11], ARGV[1])
else
  redis.call('HSET', KEYS[2], ARGV[1], token)
end
redis.call('HINCRBY', KEYS[3], hour .. 'q', '1')
redis.call('HSET', call, 'v', ARGV[2], 'r', ARGV[3], '1', ARGV[9], '1s', state, field, value, 'q:' .. ARGV[8], '1',
  'j1', journal, 'jn', '1', 'jb', tostring(#journal), 'i:' .. ARGV[5], ARGV[6] .. 'q' .. hour .. ' 1', 'o', '1')
return 1
