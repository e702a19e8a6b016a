-- The longer ids that a short one stands for, as JSON for the same reason: they may be thousands.

return cjson.encode(redis.call('ZRANGE', H, 0, -1))
