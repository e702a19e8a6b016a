-- Keep a live stream from expiring.

if redis.call('EXISTS', H) == 1 then tidy(ARGV[1]) end
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
return redis.call('HGET', H, 'epoch')
