-- GET /healthz: whether an order could be taken at this moment, and what is missing if not.

-- grpc.health.v1.HealthCheckRequest{service: "database"} in a gRPC frame: 5 bytes of header, then the message.
local CHECK_DATABASE = "\0\0\0\0\10\10\8database"
-- HealthCheckResponse{status: SERVING}, framed likewise.
local SERVING = "\0\0\0\0\2\8\1"
local TIMEOUT_MS = 2000
local TRIES = 3 -- as many as other calls have: a replica may be dead that the name server still names

-- The last answer is good for a second, so that those who ask often take no places from other callers; while a new one is
-- on its way, for five.
local status, body_text, asked, answered = nil, nil, 0, 0

local function say(handle)
  handle:respond({[":status"] = status, ["content-type"] = "application/json"}, body_text)
end

local function answer(handle, new_status, new_body)
  status, body_text, answered = new_status, new_body, os.time()
  say(handle)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":path"):match("^[^?]*") ~= "/healthz" or headers:get(":method") ~= "GET" then
    return
  end
  local now = os.time()
  if status ~= nil and (now - answered < 1 or (now - asked < 5 and asked > answered)) then
    say(handle)
    return
  end
  asked = now
  local answered_with, body
  for _ = 1, TRIES do
    answered_with, body = handle:httpCall("order_svc", {
      [":method"] = "POST",
      [":path"] = "/grpc.health.v1.Health/Check",
      [":authority"] = "order_svc",
      ["content-type"] = "application/grpc",
      ["te"] = "trailers",
    }, CHECK_DATABASE, TIMEOUT_MS)
    -- UNAVAILABLE (14): it can't be reached, or does not answer in time; then there is no time for another try.
    if answered_with["grpc-status"] ~= "14" or os.time() > now + 1 then
      break
    end
  end
  -- NOT_FOUND (5): an order_svc of the release before, which knows no such name, answers.
  if body == SERVING or answered_with["grpc-status"] == "5" then
    answer(handle, "200", '{"status":"SERVING"}')
  elseif answered_with[":status"] == "200" and body ~= nil then
    answer(handle, "503", '{"status":"NOT_SERVING","missing":["postgres"]}')
  else
    answer(handle, "503", '{"status":"NOT_SERVING","missing":["order_svc"]}')
  end
end
