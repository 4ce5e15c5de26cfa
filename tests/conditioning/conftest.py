from __future__ import annotations

import pytest

from tests.small import image_encoder, text_encoder


@pytest.fixture(scope="module")
def text_model():
    return text_encoder()


@pytest.fixture(scope="module")
def image_model():
    return image_encoder()
