-- Waits for the whole request before any service is involved, and compares it with the contract.
--
-- A call whose body never comes would hold a place at a service until its deadline. Here it holds nothing but its own
-- connection, until the listener's request_timeout.
--
-- CALLS and FIELDS are generated from the protos (ops/gateway/rpcs.py):
--   CALLS   {method, Lua pattern of the path, message or false if the call has no body, names of the path's fields}
--   FIELDS  message → JSON or proto name of a field → {JSON name, message of its value or false}

local MAX_BODY_BYTES = 65536 -- as max_request_body_size in routes.yaml
local MAX_DEPTH = 8
local MAX_SUBJECT = 255 -- characters
local MAX_LIFETIME_SECONDS = 86400 + 60 -- as max_lifetime in ops/gateway/jwt.py, plus the clock skew that it allows
local GRPC_PREFIX_BYTES = 5

local function invalid(message, field)
  error({reason = "INVALID_ARGUMENT", message = message, field = field}, 0)
end

local function not_json()
  invalid("the body is not valid JSON")
end

-- Returns the position after the white space that begins at `at`.
local function skip(text, at)
  return text:match("^[ \t\n\r]*()", at)
end

-- Returns the position after the string whose first character is at `at`.
local function string_end(text, at)
  while true do
    local stop, char = text:match('()([%z\1-\31"\\])', at)
    if char == '"' then
      return stop + 1
    elseif char ~= "\\" then
      not_json()
    elseif text:find('^["\\/bfnrt]', stop + 1) then
      at = stop + 2
    elseif text:find("^u%x%x%x%x", stop + 1) then
      at = stop + 6
    else
      not_json()
    end
  end
end

local function number_end(text, at)
  local stop = text:match("^%-?0()", at) or text:match("^%-?[1-9]%d*()", at) or not_json()
  stop = text:match("^%.%d+()", stop) or stop
  return text:match("^[eE][+-]?%d+()", stop) or stop
end

-- What the contract has under this name, or nil for a value that the contract does not describe.
local function lookup(fields, key, path)
  if fields == nil then
    return nil
  end
  local field = fields[key]
  if field == nil then
    -- Only a plain name is repeated: a key may be anything, even a card number.
    local name = key:find("^%a[%w_]*$") and #key <= 64 and path .. key or nil
    error({reason = "UNKNOWN_FIELD", message = name and "is not a field of this call"
      or "the body has a field that this call does not have", field = name}, 0)
  end
  return field
end

local value_end -- mutually recursive

-- `values` collects the JSON text of each member.
local function object_end(text, at, fields, path, depth, values)
  local seen = {}
  at = skip(text, at)
  if text:sub(at, at) == "}" then
    return at + 1
  end
  while true do
    if text:sub(at, at) ~= '"' then
      not_json()
    end
    local stop = string_end(text, at + 1)
    local key = text:sub(at + 1, stop - 2)
    local field = lookup(fields, key, path)
    local name = field and field[1] or key
    if seen[name] then
      invalid("is given twice", field and path .. name or nil)
    end
    seen[name] = true
    at = skip(text, stop)
    if text:sub(at, at) ~= ":" then
      not_json()
    end
    local first = skip(text, at + 1)
    at = value_end(text, first, field and FIELDS[field[2]], path .. name .. ".", depth)
    if values ~= nil then
      values[name] = text:sub(first, at - 1)
    end
    at = skip(text, at)
    local char = text:sub(at, at)
    if char == "}" then
      return at + 1
    elseif char ~= "," then
      not_json()
    end
    at = skip(text, at + 1)
  end
end

local function array_end(text, at, fields, path, depth)
  at = skip(text, at)
  if text:sub(at, at) == "]" then
    return at + 1
  end
  while true do
    at = skip(text, value_end(text, at, fields, path, depth))
    local char = text:sub(at, at)
    if char == "]" then
      return at + 1
    elseif char ~= "," then
      not_json()
    end
    at = skip(text, at + 1)
  end
end

value_end = function(text, at, fields, path, depth)
  if depth > MAX_DEPTH then
    invalid("the body is nested too deeply")
  end
  local char = text:sub(at, at)
  if char == '"' then
    return string_end(text, at + 1)
  elseif char == "{" then
    return object_end(text, at + 1, fields, path, depth + 1)
  elseif char == "[" then
    return array_end(text, at + 1, fields, path, depth + 1)
  end
  return text:match("^true()", at) or text:match("^false()", at) or text:match("^null()", at) or number_end(text, at)
end

-- Compares a JSON body with the fields of a message. Raises a table of reason, message and field.
local function check_json(text, message, path_names, path_values)
  local at = skip(text, 1)
  if text:sub(at, at) ~= "{" then
    invalid("the body must be a JSON object")
  end
  local values = {}
  at = skip(text, object_end(text, at + 1, FIELDS[message], "", 1, values))
  if at <= #text then
    not_json()
  end
  for number, name in ipairs(path_names) do
    local value = values[name]
    if value ~= nil and value ~= "null" and value ~= '"' .. path_values[number] .. '"' then
      invalid("differs from the one in the path", name)
    end
  end
end

-- The entry of CALLS for a JSON call, and the values of the fields in its path; otherwise nil and the methods that this
-- path has.
local function find_call(method, path)
  for _, call in ipairs(CALLS) do
    if call[1] == method then
      local values = {path:match(call[2])}
      if values[1] ~= nil then
        return call, values
      end
    end
  end
  local methods = {}
  for _, call in ipairs(CALLS) do
    if path:find(call[2]) then
      methods[#methods + 1] = call[1]
    end
  end
  return nil, methods
end

-- The methods of a path, for the header Allow.
local function allowed(methods)
  local list = {}
  for _, method in ipairs(methods) do
    list[#list + 1] = method
    list[#list + 1] = method == "GET" and "HEAD" or nil
  end
  list[#list + 1] = "OPTIONS"
  return table.concat(list, ", ")
end

local function check_call(headers, text)
  local path, query = headers:get(":path"):match("^([^?]*)%??(.*)$")
  local call, path_values = find_call(headers:get(":method"), path)
  if call == nil then
    if #path_values > 0 then
      error({status = "405", reason = "METHOD_NOT_ALLOWED", message = "the method is not allowed at this path",
        allow = allowed(path_values)}, 0)
    end
    -- Refused here, not left to the transcoder: it finds calls at more paths than these, such as one with a slash more.
    error({status = "404", reason = "NO_SUCH_PATH", message = "there is nothing at this path"}, 0)
  elseif not call[3] then
    if text:find("[^%s]") and not text:find("^%s*{%s*}%s*$") then
      invalid("this call has no body")
    end
  else
    if query ~= "" then
      invalid("this call has no query parameters")
    end
    if text ~= "" then
      check_json(text, call[3], call[4], path_values)
    end
  end
end

-- A unary call is one message: a flag, its length in four bytes, and as many bytes.
local function is_one_grpc_message(body)
  if body == nil or body:length() < GRPC_PREFIX_BYTES then
    return false
  end
  local flag, a, b, c, d = body:getBytes(0, GRPC_PREFIX_BYTES):byte(1, 5)
  return flag <= 1 and ((a * 256 + b) * 256 + c) * 256 + d == body:length() - GRPC_PREFIX_BYTES
end

local function passes_luhn(digits)
  local sum, double = 0, false
  for at = #digits, 1, -1 do
    local digit = tonumber(digits:sub(at, at)) * (double and 2 or 1)
    sum = sum + (digit > 9 and digit - 9 or digit)
    double = not double
  end
  return sum % 10 == 0
end

-- A subject is stored with every order: printable, short, and no card number.
local function is_good_subject(subject)
  if #subject > MAX_SUBJECT or subject:find("[^\32-\126]") then
    return false
  end
  local digits = subject:gsub("[ _./-]", "")
  return not (digits:find("^%d+$") and #digits >= 13 and #digits <= 19 and passes_luhn(digits))
end

-- The token's claims that the JWT filter lets pass. Returns what is wrong, or nil.
local function fault_of_token(headers)
  local expiry, subject = headers:get("x-gotohotel-expiry"), headers:get("x-gotohotel-subject")
  if expiry ~= nil then
    local seconds = tonumber(expiry)
    if seconds == nil or seconds > os.time() + MAX_LIFETIME_SECONDS then
      return "the token is valid for too long"
    end
    if subject == nil or not is_good_subject(subject) then
      return "the token's subject must have 1 to 255 printable characters and be no card number"
    end
  end
end

-- The route is found again: places.lua looks for a place, now that the call is known to be good.
local function find_place(handle)
  handle:clearRouteCache()
end

local function check(handle)
  local headers = handle:headers()
  if headers:get(":method") == "OPTIONS" then
    local _, methods = find_call("OPTIONS", headers:get(":path"):match("^[^?]*"))
    if #methods > 0 then
      handle:respond({[":status"] = "204", ["allow"] = allowed(methods)}, "")
    else
      refuse(handle, "404", "NO_SUCH_PATH", "there is nothing at this path")
    end
    return
  end
  local fault = fault_of_token(headers)
  if fault ~= nil then
    refuse(handle, "401", "UNAUTHENTICATED", fault)
    return
  end
  local is_grpc = headers:get("x-gotohotel-native-grpc") ~= nil
  local body = handle:body() -- waits for the end of the request
  if is_grpc then
    headers = handle:headers() -- those from before the wait are no longer valid
    if headers:get(":method") ~= "POST" or headers:get(":path"):find("?", 1, true) then
      refuse(handle, "400", "INVALID_ARGUMENT", "a gRPC call is a POST without a query")
    elseif not is_one_grpc_message(body) then
      refuse(handle, "400", "INVALID_ARGUMENT", "the call must have one message")
    else
      find_place(handle)
    end
    return
  end
  local text = body and body:getBytes(0, body:length()) or ""
  if #text > MAX_BODY_BYTES then
    refuse(handle, "413", "PAYLOAD_TOO_LARGE", "the request body is too large")
    return
  end
  local passed, refusal = pcall(check_call, handle:headers(), text) -- those from before the wait are no longer valid
  if passed then
    find_place(handle)
    return
  elseif type(refusal) == "string" then
    error(refusal, 0)
  end
  refuse(handle, refusal.status or "400", refusal.reason, refusal.message, refusal.field, refusal.allow)
end

function envoy_on_request(handle)
  guarded(check, handle)
end
