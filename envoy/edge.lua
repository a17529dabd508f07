-- Rejects or cleans what Envoy's own filters let through and what would disturb services and other callers.

local GRPC_TIMEOUT = "^%d%d?%d?%d?%d?%d?%d?%d?[HMSmun]$"
local MAX_BODY_BYTES = 65536 -- bytes; as max_request_body_size in envoy.yaml
local ENCODINGS = {identity = true, gzip = true, deflate = true}
-- Ids are not allowed in the query string: they would silently override the path's.
local NOT_IN_A_QUERY = {id = true, orderId = true, order_id = true}

local function refuse(handle, status, reason, message)
  local body = string.format(
    '{"code":3,"message":"%s","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo",' ..
    '"reason":"%s","domain":"gotohotel"}]}', message, reason)
  handle:respond({[":status"] = status, ["content-type"] = "application/json"}, body)
end

-- All clients share one connection to a service: a header that its gRPC can't read fails other clients' calls too.
local function drop_unreadable_headers(headers, is_grpc)
  local dropped = {}
  for name, value in pairs(headers) do
    local readable = true
    if name == "grpc-timeout" then
      readable = is_grpc and value:find(GRPC_TIMEOUT) ~= nil
    elseif name == "grpc-encoding" then
      readable = is_grpc and ENCODINGS[value] ~= nil
    elseif name == "grpc-accept-encoding" then
      readable = is_grpc and value:find("^[%a, -]+$") ~= nil
    elseif name:sub(1, 5) == "grpc-" or name:sub(-4) == "-bin" then
      readable = false
    end
    if not readable then
      dropped[#dropped + 1] = name
    end
  end
  for _, name in ipairs(dropped) do
    headers:remove(name)
  end
end

local function has_id_in_query(path)
  local query = path:match("%?(.*)$")
  if query == nil then
    return false
  end
  for parameter in query:gmatch("[^&]+") do
    local name = parameter:match("^[^=]*"):gsub("%%(%x%x)", function(code)
      return string.char(tonumber(code, 16))
    end)
    if NOT_IN_A_QUERY[name:match("^[^.]*")] then
      return true
    end
  end
  return false
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type") or ""
  local path = headers:get(":path") or ""
  local is_grpc = content_type:find("^application/grpc") ~= nil
  drop_unreadable_headers(headers, is_grpc)
  if is_grpc then
    -- Marked here, because transcoding makes every call look like gRPC.
    headers:add("x-gotohotel-native-grpc", "1")
    if handle:streamInfo():protocol() ~= "HTTP/2" then
      refuse(handle, "415", "UNSUPPORTED_MEDIA_TYPE", "gRPC requires HTTP/2")
    end
  elseif (tonumber(headers:get("content-length") or 0) or 0) > MAX_BODY_BYTES then
    -- The transcoder's own limit is for what arrives at once: a body that comes in pieces may get past it.
    refuse(handle, "413", "PAYLOAD_TOO_LARGE", "the request body is too large")
  elseif headers:get("upgrade") ~= nil then
    refuse(handle, "400", "INVALID_ARGUMENT", "protocol upgrade is not supported")
  elseif path:find("^/gotohotel%.") or path:find("^/grpc%.") then
    refuse(handle, "415", "UNSUPPORTED_MEDIA_TYPE", "this path is for gRPC")
  elseif has_id_in_query(path) then
    refuse(handle, "400", "INVALID_ARGUMENT", "ids are not allowed in the query string")
  end
end

-- The transcoder's refusals repeat what was sent, and that may be a card number: only the field's name is kept.
function envoy_on_response(handle)
  if handle:headers():get("x-gotohotel-refused") == nil then
    return
  end
  handle:headers():remove("x-gotohotel-refused")
  local body = handle:body()
  if body == nil then
    return
  end
  local text = body:getBytes(0, body:length())
  local field = text:match('"message":"([%a][%w_.]*):')
  local message = "the request is not valid for this method"
  local violation = ""
  if field ~= nil then
    field = field:gsub("_(%l)", string.upper)
    message = field .. " has the wrong type"
    violation = string.format(
      ',{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":' ..
      '[{"field":"%s","description":"has the wrong type"}]}', field)
  end
  local refusal = string.format(
    '{"code":3,"message":"%s","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo",' ..
    '"reason":"INVALID_ARGUMENT","domain":"gotohotel"}%s]}', message, violation)
  body:setBytes(refusal)
  handle:headers():replace("content-length", tostring(#refusal))
end
