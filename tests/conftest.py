"""Settings of all tests."""

from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # how fast an example is says something of the machine only
settings.load_profile("any machine")
