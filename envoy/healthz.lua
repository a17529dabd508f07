-- GET /healthz: whether an order could be taken at this moment, and what is missing if not.

-- grpc.health.v1.HealthCheckRequest{service: "database"} in a gRPC frame: 5 bytes of header, then the message.
local CHECK_DATABASE = "\0\0\0\0\10\10\8database"
-- HealthCheckResponse{status: SERVING}, framed likewise.
local SERVING = "\0\0\0\0\2\8\1"
local TIMEOUT_MS = 2000

local function answer(handle, status, body)
  handle:respond({[":status"] = status, ["content-type"] = "application/json"}, body)
end

function envoy_on_request(handle)
  if handle:headers():get(":path"):match("^[^?]*") ~= "/healthz" then
    return
  end
  local headers, body = handle:httpCall("order_svc", {
    [":method"] = "POST",
    [":path"] = "/grpc.health.v1.Health/Check",
    [":authority"] = "order_svc",
    ["content-type"] = "application/grpc",
    ["te"] = "trailers",
  }, CHECK_DATABASE, TIMEOUT_MS)
  -- NOT_FOUND (5): an order_svc of the release before, which knows no such name, answers.
  if body == SERVING or headers["grpc-status"] == "5" then
    answer(handle, "200", '{"status":"SERVING"}')
  elseif headers[":status"] == "200" and body ~= nil then
    answer(handle, "503", '{"status":"NOT_SERVING","missing":["postgres"]}')
  else
    answer(handle, "503", '{"status":"NOT_SERVING","missing":["order_svc"]}')
  end
end
