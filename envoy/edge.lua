-- Cleans and checks a request's headers before any other filter sees them.

local GRPC_TIMEOUT = "^%d%d?%d?%d?%d?%d?%d?%d?[HMSmun]$"
local MAX_BODY_BYTES = 65536 -- as max_request_body_size in routes.yaml
local MAX_HEADER_BYTES = 4096 -- of the path and of each header that goes on: a service accepts 8 KiB in all
local ENCODINGS = {identity = true, gzip = true, deflate = true}
-- Ids are not allowed in the query string: they would silently override the path's.
local NOT_IN_A_QUERY = {id = true, orderId = true, order_id = true}
-- All other headers, cookies among them, end here.
local KNOWN = {
  [":authority"] = true, [":method"] = true, [":path"] = true, [":scheme"] = true, ["host"] = true,
  ["accept"] = true, ["accept-language"] = true, ["authorization"] = true, ["content-length"] = true,
  ["content-type"] = true, ["idempotency-key"] = true, ["te"] = true,
  ["transfer-encoding"] = true, ["upgrade"] = true, ["connection"] = true, ["expect"] = true,
  ["x-forwarded-for"] = true, ["x-forwarded-proto"] = true, ["x-request-id"] = true,
}

-- gRPC's own headers go on if a service can read them. All clients share one connection to a service: a header that it
-- can't read fails other clients' calls too.
local function is_readable_by_grpc(name, value)
  if name == "grpc-timeout" then
    return value:find(GRPC_TIMEOUT) ~= nil
  elseif name == "grpc-encoding" then
    return ENCODINGS[value] ~= nil
  elseif name == "grpc-accept-encoding" then
    return value:find("^[%a, -]+$") ~= nil
  end
  return false
end

-- Removes headers that do not go on. Returns false if one that does is too long.
local function clean(headers, is_grpc)
  local dropped = {}
  local fits = true
  for name, value in pairs(headers) do
    if KNOWN[name] or (is_grpc and is_readable_by_grpc(name, value)) then
      fits = fits and (#value <= MAX_HEADER_BYTES or name == "authorization") -- the token ends at the gateway
    else
      dropped[#dropped + 1] = name
    end
  end
  for _, name in ipairs(dropped) do
    headers:remove(name)
  end
  return fits
end

local BASE64URL = {}
for place = 1, 64 do
  BASE64URL[("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"):sub(place, place)] = place - 1
end

local function decode_base64url(text)
  local decoded, value, bits = {}, 0, 0
  for char in text:gmatch(".") do
    value = value * 64 + (BASE64URL[char] or 0)
    bits = bits + 6
    if bits >= 8 then
      bits = bits - 8
      local divisor = 2 ^ bits
      decoded[#decoded + 1] = string.char(math.floor(value / divisor))
      value = value % divisor
    end
  end
  return table.concat(decoded)
end

local last_header, last_is_critical -- of the token before: the header names the key, and most tokens have the same

-- Whether a token's header names an extension that must be understood (crit, RFC 7515): the gateway knows none.
local function has_critical_extension(token)
  local header = token:match("^[^.]*")
  if header ~= last_header then
    local decoded = decode_base64url(header)
    last_header = header
    last_is_critical = decoded:find('"crit"', 1, true) ~= nil or decoded:find("\\", 1, true) ~= nil -- an escape may hide it
  end
  return last_is_critical
end

-- The scheme's name is not case-sensitive; anything but a single bearer token counts as no token.
local function normalize_authorization(headers)
  local value = headers:get("authorization")
  if value ~= nil then
    local scheme, token = value:match("^(%a+) +([%w%-_.]+)$")
    if scheme ~= nil and scheme:lower() == "bearer" and not has_critical_extension(token) then
      headers:replace("authorization", "Bearer " .. token)
    else
      headers:remove("authorization")
    end
  end
end

-- A browser's EventSource can't set headers. On a watch the token may be in the query (RFC 6750, 2.3), and the id of the
-- last event, which EventSource sends by itself, is the etag that the caller has.
local function prepare_watch(headers)
  local path, query = headers:get(":path"):match("^([^?]*)%??(.*)$")
  if not path:find(":watch$") then
    return
  end
  local last = (headers:get("last-event-id") or ""):match("^%x+$")
  local kept = {last and "etag=" .. last}
  for parameter in query:gmatch("[^&]+") do
    local token = parameter:match("^access_token=(.*)$")
    if token == nil and not (last and parameter:find("^etag=")) then
      kept[#kept + 1] = parameter
    elseif token ~= nil and headers:get("authorization") == nil then
      headers:add("authorization", "Bearer " .. token)
    end
  end
  headers:replace(":path", path .. (#kept > 0 and "?" .. table.concat(kept, "&") or ""))
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

-- gRPC from a browser, over any version of HTTP.
local GRPC_WEB = {
  ["application/grpc-web"] = true, ["application/grpc-web+proto"] = true,
  ["application/grpc-web-text"] = true, ["application/grpc-web-text+proto"] = true,
}

local function check(handle)
  local headers = handle:headers()
  if headers:get(":path") == nil then
    refuse(handle, "400", "INVALID_ARGUMENT", "CONNECT is not supported")
    return
  end
  prepare_watch(headers)
  local content_type = headers:get("content-type") or ""
  local path = headers:get(":path")
  local is_web = GRPC_WEB[content_type] ~= nil
  local is_grpc = is_web or content_type == "application/grpc" or content_type:find("^application/grpc%+") ~= nil
  local is_endless = path:find("^[^?]*:watch$") or path:find("^[^?]*:watch%?")
  if headers:get(":method") == "HEAD" and not is_grpc and not is_endless then
    -- Answered like GET, without the body.
    headers:replace(":method", "GET")
    handle:streamInfo():dynamicMetadata():set("gotohotel", "head", true)
  end
  local fits = clean(headers, is_grpc)
  normalize_authorization(headers)
  if is_grpc then
    -- Marked here, because transcoding makes every call look like gRPC.
    headers:add("x-gotohotel-native-grpc", "1")
  end
  if not fits then
    refuse(handle, "431", "HEADERS_TOO_LARGE", "the path or a header is longer than 4096 bytes")
  elseif is_grpc then
    if not is_web and handle:streamInfo():protocol() ~= "HTTP/2" then
      refuse(handle, "415", "UNSUPPORTED_MEDIA_TYPE", "gRPC requires HTTP/2")
    end
  elseif content_type:find("^application/grpc") then
    refuse(handle, "415", "UNSUPPORTED_MEDIA_TYPE", "this content type is not supported")
  elseif (tonumber(headers:get("content-length") or 0) or 0) > MAX_BODY_BYTES then
    -- Refused before it arrives; body.lua counts what has no length.
    refuse(handle, "413", "PAYLOAD_TOO_LARGE", "the request body is too large")
  elseif headers:get("upgrade") ~= nil then
    refuse(handle, "400", "INVALID_ARGUMENT", "protocol upgrade is not supported")
  elseif path:find("^/gotohotel%.") or path:find("^/grpc%.") then
    refuse(handle, "415", "UNSUPPORTED_MEDIA_TYPE", "this path is for gRPC")
  elseif has_id_in_query(path) then
    refuse(handle, "400", "INVALID_ARGUMENT", "ids are not allowed in the query string")
  end
end

function envoy_on_request(handle)
  guarded(check, handle)
end

-- Clients without knowledge of google.rpc.RetryInfo find the time to wait in the header that HTTP has for it, also in a
-- service's answers.
local function add_retry_after(handle)
  local body = handle:body() -- waits: header objects from before are no longer valid
  local text = body and body:getBytes(0, body:length()) or ""
  handle:headers():replace("retry-after", tostring(math.ceil(tonumber(text:match('"retryDelay":"([%d.]+)s"')) or 1)))
end

-- Removes the body of an answer to HEAD; its length stays.
local function drop_body(handle)
  local body = handle:body()
  if body ~= nil then
    local length = handle:headers():get("content-length") or tostring(body:length())
    body:setBytes("")
    handle:headers():replace("content-length", length)
  end
end

-- The transcoder's refusals repeat what was sent, and that may be a card number: only the field's name is kept.
local function answer(handle)
  local headers = handle:headers()
  if handle:streamInfo():downstreamSslConnection() ~= nil then
    -- RFC 6797: for a year, browsers use TLS only.
    headers:replace("strict-transport-security", "max-age=31536000")
  end
  local content_type = headers:get("content-type")
  if content_type == "application/json" or content_type == "text/event-stream" then
    -- Answers are about guests: no cache keeps them. What gRPC says in headers is in the body.
    headers:replace("cache-control", "no-store")
    headers:remove("grpc-accept-encoding")
    headers:remove("grpc-status")
    headers:remove("grpc-message")
    headers:remove("grpc-status-details-bin")
  end
  local status = headers:get(":status")
  if status == "429" or status == "503" then
    if headers:get("retry-after") == nil then
      add_retry_after(handle)
    end
    return
  elseif headers:get("x-gotohotel-refused") == nil then
    return
  end
  headers:remove("x-gotohotel-refused")
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
    '"reason":"INVALID_ARGUMENT","domain":"gotohotel","metadata":{"retryable":"false"}}%s]}', message, violation)
  body:setBytes(refusal)
  handle:headers():replace("content-length", tostring(#refusal))
end

function envoy_on_response(handle)
  answer(handle)
  if (handle:streamInfo():dynamicMetadata():get("gotohotel") or {}).head then
    drop_body(handle)
  end
end
