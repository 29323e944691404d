-- version: stream entry ids as versions.

-- Compared as numbers, part by part: as strings '9-0' would come after '10-0'. `b` may be missing.
local function newer(a, b)
  if not b then return true end
  -- 13 digits of ms on both sides, until the year 2286, and as many after: the order of numbers is that of text.
  if #a == #b and string.byte(a, 14) == 45 and string.byte(b, 14) == 45 then return a > b end
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  if a_ms ~= b_ms then return a_ms > b_ms end
  return tonumber(a_seq) > tonumber(b_seq)
end
