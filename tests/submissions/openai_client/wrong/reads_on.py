"""Reads in a task of its own, which goes on when nobody wants the answer any more.

fails: test_chat_closes_the_connection
"""


# %% task="stream_chat"
async def stream_chat(http, base_url, messages, model, api_key=None, **params):
    pieces = asyncio.Queue()
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **params}
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def read():
        try:
            async with http.stream("POST", f"{base_url}/chat/completions", json=body, headers=headers) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode()
                    try:
                        text = json.loads(text)["error"]["message"]
                    except (ValueError, KeyError, TypeError):
                        pass
                    raise ServerError(response.status_code, text)
                decoder = SSEDecoder()
                async for chunk in response.aiter_bytes():
                    for data in decoder.feed(chunk):
                        if data == "[DONE]":
                            return pieces.put_nowait(None)
                        event = json.loads(data)
                        if "error" in event:
                            raise ServerError(event["error"]["code"], event["error"]["message"])
                        choice = event["choices"][0] if event["choices"] else {"delta": {}}
                        usage = event.get("usage")
                        usage = Usage(usage["prompt_tokens"], usage["completion_tokens"]) if usage else None
                        pieces.put_nowait(Delta(choice["delta"].get("content") or "", choice.get("finish_reason"), usage))
            raise StreamBroken("no [DONE]")
        except httpx.TransportError as error:
            pieces.put_nowait(StreamBroken(str(error)))
        except Exception as error:
            pieces.put_nowait(error)

    asyncio.create_task(read())
    while (piece := await pieces.get()) is not None:
        if isinstance(piece, Exception):
            raise piece
        yield piece
