-- Keep a live stream, or a queued request, from expiring.

if redis.call('EXISTS', H) == 1 then tidy(ARGV[1]) end
expire(KEYS[2], ARGV[1])
return 1
