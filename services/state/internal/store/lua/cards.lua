-- cards: forgets a card whose time is over, if nothing changed it since it was read.
-- KEYS 1 cards HASH
-- ARGV 1 field, 2 body that was read
-- returns 1 | 0: it is another one by now
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
