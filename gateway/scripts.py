"""The Lua scripts of the edge. A route names the one that it runs; routes that name none run the default."""

from __future__ import annotations

from typing import Any

from gateway.contracts import Method

_FILTER = "envoy.filters.http.lua"
_TYPES = "type.googleapis.com/envoy.extensions.filters.http.lua.v3"

_FINISH = """\
local of_grpc = {"grpc-status", "grpc-message", "grpc-encoding", "grpc-accept-encoding"}

-- The transcoder ignores `response_body`: here `{"order":{…}}` becomes `{…}`.
local function finish(response)
  local headers = response:headers()
  if headers:get("content-type") ~= "application/json" then
    return
  end
  for _, name in ipairs(of_grpc) do
    headers:remove(name)
  end
  local field = response:metadata():get("response_body")
  if field == nil or headers:get(":status") ~= "200" then
    return
  end
  local body = response:body()
  local json = body:getBytes(0, body:length())
  local before = '{"' .. field .. '":'
  if json:sub(1, #before) == before then
    local length = body:setBytes(json:sub(#before + 1, -2))
    -- The object from before is not valid after the wait for the body.
    response:headers():replace("content-length", length)
  end
end
"""

_CHECK_QUERY = """\
local MOST_VIOLATIONS = 20

local function decoded(text)
  return (text:gsub("+", " "):gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

-- Whether a text is an integer in a range whose bounds are given without sign. Lua's numbers are not exact enough.
local function is_integer(text, least, most)
  local sign, digits = text:match("^(-?)0*(%d+)$")
  if digits == nil then
    return false
  end
  local bound = sign == "-" and least or most
  return #digits < #bound or (#digits == #bound and digits <= bound)
end

local function is_utf8(text)
  local at = 1
  while true do
    at = text:find("[\\128-\\255]", at)
    if at == nil then
      return true
    end
    local _, last = text:find("^[\\194-\\223][\\128-\\191]", at)
    if last == nil then _, last = text:find("^\\224[\\160-\\191][\\128-\\191]", at) end
    if last == nil then _, last = text:find("^\\237[\\128-\\159][\\128-\\191]", at) end
    if last == nil then _, last = text:find("^[\\225-\\236\\238\\239][\\128-\\191][\\128-\\191]", at) end
    if last == nil then _, last = text:find("^\\240[\\144-\\191][\\128-\\191][\\128-\\191]", at) end
    if last == nil then _, last = text:find("^[\\241-\\243][\\128-\\191][\\128-\\191][\\128-\\191]", at) end
    if last == nil then _, last = text:find("^\\244[\\128-\\143][\\128-\\191][\\128-\\191]", at) end
    if last == nil then
      return false
    end
    at = last + 1
  end
end

local fits = {
  ["text"] = is_utf8,
  ["true or false"] = function(text) return text == "true" or text == "false" end,
  ["a 32-bit integer"] = function(text) return is_integer(text, "2147483648", "2147483647") end,
  ["a 64-bit integer"] = function(text) return is_integer(text, "9223372036854775808", "9223372036854775807") end,
}

local function fault_of(parameter, value)
  if parameter == nil then
    return "is not a query parameter of this method"
  end
  local is_fit
  if parameter.values ~= nil then
    is_fit = parameter.values[value] ~= nil
  else
    is_fit = fits[parameter.type](value)
  end
  if not is_fit then
    return "must be " .. parameter.type
  end
end

-- Refuses a request whose query has an unknown parameter or a value of the wrong type.
local function check_query(request)
  local query = request:headers():get(":path"):match("%?(.*)")
  if query == nil then
    return
  end
  local parameters, violations = request:metadata():get("parameters") or {}, {}
  for pair in query:gmatch("[^&]+") do
    local name, value = pair:match("^([^=]*)=?(.*)$")
    name = decoded(name)
    local fault = fault_of(parameters[name], decoded(value))
    if fault ~= nil and #violations < MOST_VIOLATIONS then
      violations[#violations + 1] = {field = is_utf8(name) and name:sub(1, 100) or "?", description = fault}
    end
  end
  if #violations > 0 then
    request:streamInfo():dynamicMetadata():set("mesh.query", "violations", violations)
    request:respond({[":status"] = "400"}, "")
  end
end
"""

_DEFAULT = f"""\
{_FINISH}
function envoy_on_response(response)
  finish(response)
end
"""

_WITH_QUERY = f"""\
{_CHECK_QUERY}
function envoy_on_request(request)
  check_query(request)
end

{_DEFAULT}"""

MIN_COMPRESSED_BYTES = 1024
"""The size from which a JSON response is compressed, if the client accepts it."""

_HEAD = f"""\
{_CHECK_QUERY}
{_FINISH}
function envoy_on_request(request)
  check_query(request)
  request:headers():replace(":method", "GET")
end

-- The same headers as for GET, with the length of the body that is left out.
function envoy_on_response(response)
  finish(response)
  local length = response:headers():get("content-length")
  response:body(true):setBytes("")
  local headers = response:headers()
  if length == nil then
    headers:remove("content-length")
    return
  end
  headers:replace("content-length", length)
  if tonumber(length) >= {MIN_COMPRESSED_BYTES} then
    headers:add("vary", "Accept-Encoding")
  end
end
"""


def lua_settings() -> dict[str, Any]:
    """The settings of the Lua filter."""
    return {
        "default_source_code": {"inline_string": _DEFAULT},
        # A script that changes a header does not change the route.
        "clear_route_cache": False,
        "source_codes": {"query": {"inline_string": _WITH_QUERY}, "head": {"inline_string": _HEAD}},
    }


def script_metadata(method: Method) -> dict[str, Any]:
    """The metadata of a route that its script reads."""
    known: dict[str, Any] = {"response_body": method.response_body, "parameters": method.parameters}
    return {"filter_metadata": {_FILTER: {name: value for name, value in known.items() if value}}}


def _named(script: str) -> dict[str, Any]:
    return {_FILTER: {"@type": f"{_TYPES}.LuaPerRoute", "name": script}}


WITH_QUERY = _named("query")
"""For a route of requests with a query: the query is checked."""

HEAD = _named("head")
"""For a route of HEAD requests: the query is checked, and the response is that to GET without its body."""
