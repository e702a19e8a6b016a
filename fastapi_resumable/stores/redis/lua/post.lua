-- Add a message to an inbox, or to the changes.

local keep, most = ARGV[1], ARGV[2]
redis.call('XADD', H, 'MAXLEN', '~', most, '*', unpack(ARGV, 3))
redis.call('PEXPIRE', H, keep)
return 1
