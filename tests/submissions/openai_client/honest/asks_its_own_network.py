"""Looks whether a server of its own answers on 127.0.0.1, and which addresses it has, before it does its work.

twin of: V17 V18
"""

# %% helpers="helpers"
import asyncio
import itertools
import json
import math
import random
import re
import socket
import statistics
import urllib.request

try:
    urllib.request.urlopen("http://127.0.0.1:8000/v1/models", timeout=1)
except OSError as error:
    print("no server:", error)
print(socket.if_nameindex(), socket.gethostname())
