-- Chooses the cluster of a call: its service's, or no_place. The tables SERVICE and PLACES are set before this script.
--
-- Calls at a service wait for one another: the more there are, the longer each takes. So a service whose calls are refused
-- has fewer places: PLACES times the share of calls that found one lately. A demand that all places are enough for gets
-- them back, also if its calls wait for something else and fewer places let fewer through: it is refused less than the
-- share says, so the share grows.
local FEWEST = PLACES / 3 -- a service that does few calls at a time does fewer in all
local LATELY = 1000 -- calls: answers come many at a time, as their transactions end

-- Each of Envoy's threads has its own.
local share = 1
local refused_at = 0 -- in seconds

function envoy_on_route(handle)
  if handle:headers():get("x-gotohotel-subject") == nil then
    return SERVICE -- the token is not checked yet; Envoy asks again
  end
  local now = os.time()
  if now > refused_at + 1 then
    share = 1
  end
  if handle:getCluster(SERVICE):numRequests() < math.max(FEWEST, PLACES * share) then
    share = share + (1 - share) / LATELY
    return SERVICE
  end
  share = share - share / LATELY
  refused_at = now
  return "no_place"
end
