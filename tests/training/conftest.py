"""The trainings of these tests take their images from the tiny cascade."""

import cascade.tiny.image_sources  # noqa: F401
