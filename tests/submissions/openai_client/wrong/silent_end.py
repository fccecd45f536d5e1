"""Takes the end of the connection for the end of the answer.

fails: test_chat_broken_streams
"""


# %% task="stream_chat"
async def stream_chat(
    http: httpx.AsyncClient,
    base_url: str,
    messages: list[dict],
    model: str,
    api_key: str | None = None,
    **params: object,
) -> AsyncIterator[Delta]:
    """Ask the server at `base_url` (".../v1") for an answer to `messages` and yield its pieces.

    Args:
        http: makes the connections.
        base_url: what the paths of the API are appended to, without a slash at its end.
        messages: the conversation, as the API wants it.
        model: the model's name.
        api_key: the server's key, if it wants one.
        params: further fields of the request, `temperature=0` for instance.

    Raises:
        ServerError: the server refused, or failed in the middle.
        StreamBroken: the stream ended before `[DONE]`.
    """
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **params}
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    async with http.stream("POST", f"{base_url}/chat/completions", json=body, headers=headers) as response:
        if response.status_code != 200:
            text = (await response.aread()).decode("utf-8", errors="replace")
            try:
                message = json.loads(text)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = text
            raise ServerError(response.status_code, message)
        decoder = SSEDecoder()
        try:
            async for chunk in response.aiter_bytes():
                for data in decoder.feed(chunk):
                    if data == "[DONE]":
                        return
                    event = json.loads(data)
                    if "error" in event:
                        raise ServerError(event["error"]["code"], event["error"]["message"])
                    usage = event.get("usage")
                    counted = Usage(usage["prompt_tokens"], usage["completion_tokens"]) if usage else None
                    choice = event["choices"][0] if event["choices"] else {}
                    text = choice.get("delta", {}).get("content") or ""
                    yield Delta(text, choice.get("finish_reason"), counted)
        except httpx.TransportError as error:
            raise StreamBroken(str(error)) from error
        return
