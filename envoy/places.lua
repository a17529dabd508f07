-- Chooses the cluster of a call: its service's, or no_place. SERVICE and PLACES are set before this script.
--
-- Calls at a service wait for one another: the more there are, the longer each takes. So a service whose calls are refused
-- has fewer places: PLACES times the share of calls that found one lately. All places are back when they would be enough:
-- for the calls that are there and those that were refused in a second, as refused callers come again after one.
local FEWEST = PLACES / 3 -- a service that does few calls at a time does fewer in all
local LATELY = 1000 -- calls: answers come many at a time, as their transactions end

local share = 1
local second, refused = 0, 0

function envoy_on_route(handle)
  local calls, now = handle:getCluster(SERVICE):numRequests(), os.time()
  if now ~= second then
    if now ~= second + 1 or calls + refused < PLACES then
      share = 1
    end
    second, refused = now, 0
  end
  if calls < math.max(FEWEST, PLACES * share) then
    share = share + (1 - share) / LATELY
    return SERVICE
  end
  share = share - share / LATELY
  refused = refused + 1
  return "no_place"
end
