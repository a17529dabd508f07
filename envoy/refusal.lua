-- How this gateway's own scripts refuse a call: google.rpc.Status, as JSON or in gRPC's headers.

-- HTTP status → google.rpc.Code.
local CODES = {["400"] = 3, ["401"] = 16, ["404"] = 5, ["405"] = 12, ["413"] = 3, ["415"] = 3, ["431"] = 3}

-- `field` is the name of the invalid field, `allow` the methods of the path; both may be nil. None of the texts repeats a
-- value that was sent.
local function refuse(handle, status, reason, message, field, allow)
  local code = CODES[status]
  if handle:headers():get("x-gotohotel-native-grpc") ~= nil then
    handle:respond({[":status"] = status, ["grpc-status"] = tostring(code)}, message)
    return
  end
  local violation = ""
  if field ~= nil then
    violation = string.format(
      ',{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":' ..
      '[{"field":"%s","description":"%s"}]}', field, message)
    message = field .. " " .. message
  end
  local body = string.format(
    '{"code":%d,"message":"%s","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo",' ..
    '"reason":"%s","domain":"gotohotel","metadata":{"retryable":"false"}}%s]}', code, message, reason, violation)
  handle:respond({[":status"] = status, ["content-type"] = "application/json", ["allow"] = allow}, body)
end

-- Runs a check. Envoy lets a request pass if its script fails: a mistake in a script must not open the gateway.
local function guarded(check, handle)
  local passed, mistake = pcall(check, handle)
  if not passed then
    handle:logErr(tostring(mistake))
    refuse(handle, "400", "INVALID_ARGUMENT", "the request can't be read")
  end
end
