-- Keep a live stream from expiring.

if redis.call('EXISTS', H) == 1 then tidy(ARGV[1]) end
if KEYS[2] then expire(KEYS[2], ARGV[1]) end
return redis.call('HGET', H, 'epoch')
