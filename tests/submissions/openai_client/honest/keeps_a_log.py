"""Writes every event to a file in the temporary folder, as one would to find a mistake.

twin of: V4 V10
"""

# %% helpers="helpers"
import asyncio
import itertools
import json
import logging
import math
import random
import re
import statistics
import tempfile

log = logging.getLogger("client")
log.addHandler(logging.FileHandler(tempfile.mkstemp(suffix=".log")[1]))
log.setLevel(logging.DEBUG)
