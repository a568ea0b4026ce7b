-- account: creates, changes or deletes a connected account by compare-and-set.
-- KEYS 1 account HASH, 2 ids SET
-- ARGV 1 id, 2 expected version, 3 new version ('' = delete), 4 serialised Account, 5 end of its access token (ms, '' = none)
-- returns 1 | 0 (another version)
local v = redis.call('HGET', KEYS[1], 'v') or ''
if v == ARGV[3] then return 1 end -- the same call again
if v ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[1])
  redis.call('SREM', KEYS[2], ARGV[1])
  return 1
end
redis.call('HSET', KEYS[1], 'v', ARGV[3], 'b', ARGV[4])
if ARGV[5] == '' then redis.call('HDEL', KEYS[1], 'x') else redis.call('HSET', KEYS[1], 'x', ARGV[5]) end
redis.call('SADD', KEYS[2], ARGV[1])
return 1
