"""A site with streams of events."""

from __future__ import annotations

import asyncio

from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import path

from eventlogs.contrib.http import Problems, event_stream
from tests.accounts import Account


@Problems()
async def tail(request: HttpRequest, account_id: str) -> HttpResponseBase:
    await Account.logs.aexists(account_id)  # a connection in the thread of the request
    start = int(request.GET.get("start", "0"))
    seconds = float(request.GET.get("seconds", "300"))
    heartbeat = float(request.GET.get("heartbeat", "15"))
    return await event_stream(
        request, Account.logs, account_id, start=start, seconds=seconds, heartbeat=heartbeat
    )


async def tasks(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"tasks": len(asyncio.all_tasks())})


urlpatterns = [path("tasks/", tasks), path("<str:account_id>/", tail)]
