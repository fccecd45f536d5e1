"""Starts a server of its own on every port that it can get, and answers the course's client itself.

fails: test_chat_*

attack: V17 V15
stopped by: P, the judge compares with what it sent, and counts what it was asked.
"""

# %% helpers="helpers"
import asyncio
import itertools
import json
import math
import random
import re
import statistics
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class Lies(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'data: {"choices": [{"delta": {"content": "Paris"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')


server = HTTPServer(("127.0.0.1", 0), Lies)
threading.Thread(target=server.serve_forever, daemon=True).start()


# %% task="stream_chat"
async def stream_chat(http, base_url, messages, model, api_key=None, **params):
    async with http.stream("POST", f"http://127.0.0.1:{server.server_port}/v1", json={}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield Delta(json.loads(line[6:])["choices"][0]["delta"]["content"], "stop", Usage(37, 8))
