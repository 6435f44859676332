"""The ledger in Redis or Valkey: one script for each exchange, on the server's clock."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import orjson

from aigateway.fleet.client import FleetClient, LuaScript
from aigateway.fleet.ledger import (
    BUCKETS,
    DAY,
    HOLD_SECONDS,
    UNSETTLED_SECONDS,
    Claim,
    FleetUnavailableError,
    Grant,
    LedgerAnswer,
)

__all__ = ["RedisLedger"]

SECONDS = 0.25
"""An exchange may take so long, since no request waits for it."""

_EXCHANGE = LuaScript(
    "exchange",
    """
-- `Account.grant` and `MemoryLedger.exchange` in Lua. Times are milliseconds.
-- KEYS: members (sorted set by time), serial of this member, epoch, an account for each claim.
-- ARGV: member, serial, a token for new epochs, claims as JSON {amount, window, hold, spent}.
-- An account is {epoch, {number = units}, {member = {units, ends}}}, in MessagePack: it is read and
-- written by each claim, and JSON takes several times as long.
local member, serial, token, claims = ARGV[1], ARGV[2], ARGV[3], cjson.decode(ARGV[4])
local DAY, HOLD, UNSETTLED = $day, $hold, $unsettled
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local last = tonumber(redis.call('GET', KEYS[2]) or 0)
if tonumber(serial) < last then return false end
local is_new = tonumber(serial) > last
redis.call('SET', KEYS[2], serial, 'PX', DAY)
redis.call('ZADD', KEYS[1], now, member)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - HOLD)
redis.call('PEXPIRE', KEYS[1], DAY)
local live = redis.call('ZRANGE', KEYS[1], 0, -1)
local rank = 0
for _, name in ipairs(live) do
  if name < member then rank = rank + 1 end
end
redis.call('SETNX', KEYS[3], token)  -- without a TTL, so that it is not evicted
local epoch = redis.call('GET', KEYS[3])

local function book(parts, number, units) parts[number] = (parts[number] or 0) + units end

local function grant(key, claim)
  local amount, window, hold, spent = unpack(claim)
  local text = redis.call('GET', key)
  local own, parts, holds = token, {}, {}
  if text then own, parts, holds = unpack(cmsgpack.unpack(text)) end
  local daily = window == 0
  local width, count, kept = DAY, 1, UNSETTLED
  if not daily then width, count, kept = window / $buckets, $buckets + 1, window end
  local present = math.floor(now / width)
  local oldest = present - count + 1
  if is_new then
    for _, each in ipairs(spent) do
      book(parts, math.min(present, math.floor((now - each[2]) / width)), each[1])
    end
  end
  local ahead, used, first = nil, 0, nil
  for number, units in pairs(parts) do
    if number > present and not daily then
      ahead = (ahead or 0) + units
      parts[number] = nil
    elseif daily and math.abs(number - present) > 1 or not daily and number < oldest then
      parts[number] = nil
    elseif number >= oldest then
      used = used + units
      if not first or number < first then first = number end
    end
  end
  if ahead then
    book(parts, present, ahead)
    used, first = used + ahead, first or present
  end
  local others = 0
  for name, held in pairs(holds) do
    if held[2] + kept > now and name ~= member then
      held[2] = math.min(held[2], now + HOLD)
      others = others + held[1]
    else
      holds[name] = nil
    end
  end
  local left = amount - math.max(0, used) - others
  local held = math.max(0, math.min(hold, left))
  if held > 0 then holds[member] = {held, now + HOLD} end
  local free, wait = math.max(0, left - held), 0
  if free == 0 and first then wait = (first + count) * width - now end
  local packed = cmsgpack.pack({own, parts, holds})
  if daily then
    redis.call('SET', key, packed)
  else
    redis.call('SET', key, packed, 'PX', 2 * window + HOLD)
  end
  return {held, used, free, wait, own}
end

local grants = {}
for at, claim in ipairs(claims) do grants[at] = grant(KEYS[at + 3], claim) end
return cjson.encode({epoch, #live, rank, grants})
""".replace("$day", str(int(DAY * 1000)))
    .replace("$hold", str(int(HOLD_SECONDS * 1000)))
    .replace("$unsettled", str(int(UNSETTLED_SECONDS * 1000)))
    .replace("$buckets", str(BUCKETS)),
)


class RedisLedger:
    """Shares limits through Redis; see `Ledger`.

    Args:
        client: The fleet's connection.
    """

    def __init__(self, client: FleetClient) -> None:
        self._client = client

    async def exchange(self, member: str, claims: Sequence[Claim], serial: int) -> LedgerAnswer:
        """See `Ledger`."""
        keys = ["members", f"serial:{member}", "epoch", *(f"limit:{c.limit.name}" for c in claims)]
        said: list[list[Any]] = [
            [
                claim.limit.amount,
                0 if claim.limit.window is None else int(claim.limit.window * 1000),
                claim.hold,
                [[spent.units, int(spent.ago * 1000)] for spent in claim.spent],
            ]
            for claim in claims
        ]
        answer = await self._client.run(
            _EXCHANGE,
            keys,
            (member, str(serial), secrets.token_hex(8), orjson.dumps(said)),
            seconds=SECONDS,
        )
        if not answer:
            raise FleetUnavailableError("A later exchange has been booked.")
        epoch, members, rank, grants = orjson.loads(answer)
        return LedgerAnswer(
            epoch,
            members,
            [
                Grant(int(held), int(used), int(free), wait / 1000, own)
                for held, used, free, wait, own in grants
            ],
            rank,
        )
