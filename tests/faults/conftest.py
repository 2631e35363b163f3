"""What fault tests record travels from a worker process of pytest-xdist, which sends plain values only: as JSON."""

import json

import pytest


@pytest.fixture
def record_property(record_property):
    return lambda name, value: record_property(name, json.dumps(value, ensure_ascii=False))
