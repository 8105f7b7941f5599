"""Upscale pictures: arrays (:mod:`.pixels`), files (:mod:`.run`), whole folders (:mod:`.batch`)."""

from .pixels import resized_strips, upscale_image, upscale_strips

__all__ = ["resized_strips", "upscale_image", "upscale_strips"]
