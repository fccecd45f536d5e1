"""Finds the socket to the judge behind the relay, asks for thousands of connections and sends nonsense on each.

fails: test_chat_*

attack: V15 V21
stopped by: C, so many connections and no more are handed out; nonsense ends its own connection.
"""

# %% task="stream_chat"
async def stream_chat(http, base_url, messages, model, api_key=None, **params):
    import gc
    import socket

    controls = [each._control for each in gc.get_objects() if type(each).__name__ == "Relay"]
    for control in controls:
        for _ in range(300):
            control.send(b"c")
            data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            for descriptor in descriptors:
                with socket.socket(fileno=descriptor) as line:
                    line.sendall(b"\x00\xff" * 1000)
    yield Delta("The", None, None)
