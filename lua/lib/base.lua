-- base: what every script stands on.
--
-- KEYS[1]  {jr:<p>}:      the partition: prefix of every key a script touches. No such key exists, and that
--                         is its use: while a Redis Cluster migrates the slot, a call that names it and a
--                         second key is answered TRYAGAIN by both nodes, so no script ever sees half the keys.
-- KEYS[2]  {jr:<p>}:pods  zset  pod -> last heartbeat in Redis' ms
--
-- Ids stay strings: Lua's numbers garble them above 2^53. Text from outside arrives as JSON or as checked
-- words, so events are made by joining strings.

local call = redis.call
local P = KEYS[1]

-- Redis' clock in ms, read once: it moves during a script on 7.0.
local TIME = call('TIME')
local NOW = TIME[1] * 1000 + math.floor(TIME[2] / 1000)
local NOW_TEXT = string.format('%.0f', NOW)

-- The longest loop over anything that is not an argument of the call.
local STEPS = 64
